"""Stages that change the penultimate features or the head."""

from nescio.shape import fm, react

__all__ = ["fm", "react"]
