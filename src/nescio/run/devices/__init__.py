"""One extraction on several devices: each process runs the network on its share of the batches of one bank."""
