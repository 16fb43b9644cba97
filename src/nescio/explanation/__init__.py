"""What a classifier says at every position of an image."""
