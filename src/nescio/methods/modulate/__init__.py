"""Stages that change the logits."""

from nescio.methods.modulate import ls, lts, temperature

__all__ = ["ls", "lts", "temperature"]
