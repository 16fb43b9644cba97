"""Stages that change how the network is run; each makes a pass of its own."""

from nescio.input import odin

__all__ = ["odin"]
