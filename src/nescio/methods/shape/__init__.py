"""Stages that change the penultimate features or the head."""

from nescio.methods.shape import ash, dice, fm, line, rankfeat, react, typical, vra

__all__ = ["ash", "dice", "fm", "line", "rankfeat", "react", "typical", "vra"]
