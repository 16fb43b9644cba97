"""Methods that train the network, a file each: the loss, and where it has them its head and its score."""
