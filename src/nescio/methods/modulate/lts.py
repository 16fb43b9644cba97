"""Logit scaling by how concentrated the features are."""

from __future__ import annotations

from typing import Annotated

from nescio.core import numerics
from nescio.core.bounds import Share
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Modulate


class LTS(Modulate, name="lts"):
    """Multiply the logits by ``(Σ h / Σ largest h)²`` of the raw features. ``logits (B, C) -> (B, C)``.

    Negative features count as zero.

    Args:
        p: share of the features that counts as the largest, in (0, 1]. 0.05 is the authors'.

    Source: Djurisic, Liu and Nikolic, "Logit Scaling for Out-of-Distribution Detection", 2024.
    """

    needs = Needs(logits=True)

    def __init__(self, *, p: Annotated[float, Share(above_zero=True)] = 0.05) -> None:
        super().__init__()
        self.p = p

    def forward(self, f: Features) -> Features:
        """Scale a batch's logits."""
        return f.with_logits(f.logits * numerics.sum_over_top(f.raw.h, self.p).square())
