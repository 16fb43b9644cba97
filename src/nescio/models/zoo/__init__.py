"""Networks by name: libraries, CLIP, CIFAR variants, a user's own code."""
