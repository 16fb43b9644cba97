"""Stages that change how the network is run: each makes a pass of its own."""
