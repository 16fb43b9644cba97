"""Stages that change how the network is run: each makes a pass of its own."""

from nescio.methods.input import bats, csi, mcdropout, odin, perturb

__all__ = ["bats", "csi", "mcdropout", "odin", "perturb"]
