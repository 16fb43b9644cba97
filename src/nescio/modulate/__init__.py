"""Stages that change the logits."""

from nescio.modulate import ls, temperature

__all__ = ["ls", "temperature"]
