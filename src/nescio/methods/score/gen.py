"""Generalised entropy."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.bounds import AtLeast, Share
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


@of_arrays
def gen(z: Tensor, gamma: float = 0.1, M: int = 100) -> Tensor:
    """``GEN`` of logits ``z (B, C)``: scores ``(B,)`` float64."""
    p = z.to(torch.float64).softmax(dim=1)
    p = p.topk(min(M, p.shape[1]), dim=1).values
    return -(p * (1 - p).clamp(min=0)).pow(gamma).sum(dim=1)


class GEN(Score, name="gen"):
    """Negative generalised entropy of the M largest probabilities: ``-Σ p^γ (1 - p)^γ``.

    ``logits (B, C) -> score (B,)``.

    Args:
        gamma: exponent γ, in (0, 1]. 0.1 is the authors'.
        M: number of classes that count, 1 or more; all where there are fewer. 100 is the authors' for ImageNet.

    Source: Liu, Lochman and Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023.
    """

    needs = Needs(features=False, logits=True)

    def __init__(
        self, *, gamma: Annotated[float, Share(above_zero=True)] = 0.1, M: Annotated[int, AtLeast(1)] = 100
    ) -> None:
        super().__init__()
        self.gamma, self.M = gamma, M

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return gen(f.logits, self.gamma, self.M)
