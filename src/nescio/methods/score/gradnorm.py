"""Size of the gradient at the head, in closed form."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.bounds import Positive
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


@of_arrays
def gradnorm(h: Tensor, z: Tensor, T: float = 1.0) -> Tensor:
    """``GradNorm`` of features ``h (B, L)`` and logits ``z (B, C)``: scores ``(B,)`` float64."""
    away = ((z.to(torch.float64) / T).softmax(dim=1) - 1 / z.shape[1]).abs().sum(dim=1)
    return h.to(torch.float64).abs().sum(dim=1) * away / T


class GradNorm(Score, name="gradnorm"):
    """L1 norm of the head's weight gradient of ``KL(uniform ‖ softmax(f / T))``, without a backward pass.

    The gradient is the outer product of ``(p - 1/C) / T`` and ``h``, so its norm is ``‖h‖₁ · ‖p - 1/C‖₁ / T``;
    ``h (B, L), logits (B, C) -> score (B,)``.

    Args:
        T: temperature, above 0. 1 is the authors'.

    Source: Huang, Geng and Li, "On the Importance of Gradients for Detecting Distributional Shifts in the Wild",
    NeurIPS 2021, eqs. 6-9. Their code sums over the classes where the formula averages: a factor C, the same ranking.
    """

    needs = Needs(logits=True)

    def __init__(self, *, T: Annotated[float, Positive] = 1.0) -> None:
        super().__init__()
        self.T = T

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return gradnorm(f.h, f.logits, self.T)
