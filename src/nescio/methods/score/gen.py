"""Generalised entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.errors import InputError, check_share
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


class GEN(Score, name="gen"):
    """Negative generalised entropy of the M largest probabilities: ``-Σ p^γ (1 - p)^γ``.

    ``logits (B, C) -> score (B,)``.

    Args:
        gamma: exponent γ, in (0, 1]. 0.1 is the authors'.
        M: number of classes that count, 1 or more; all where there are fewer. 100 is the authors' for ImageNet.

    Source: Liu, Lochman and Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023.
    """

    needs = Needs(features=False, logits=True)

    def __init__(self, *, gamma: float = 0.1, M: int = 100) -> None:
        super().__init__()
        self.gamma = check_share("gamma", gamma)
        if gamma == 0 or M < 1:
            raise InputError(f"gen needs gamma above 0 and M of 1 or more, got gamma={gamma:g} and M={M}")
        self.M = M

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        p = f.logits.to(torch.float64).softmax(dim=1)
        p = p.topk(min(self.M, p.shape[1]), dim=1).values
        return -(p * (1 - p).clamp(min=0)).pow(self.gamma).sum(dim=1)
