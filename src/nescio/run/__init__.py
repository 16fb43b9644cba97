"""How a network is run over images, and the features it leaves on disk."""
