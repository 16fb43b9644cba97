"""Closeness of the feature to the predicted class's weight vector."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.bounds import AtLeast
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import mean_feature
from nescio.core.needs import Needs
from nescio.core.stage import Score

_EPS = 1e-8


@of_arrays
def nci(h: Tensor, rows: Tensor, mean: Tensor, alpha: float = 0.0) -> Tensor:
    """``NCI`` of features ``h (B, L)``, the predicted classes' rows ``(B, L)`` and the mean ``(L,)``."""
    centred = (h - mean).to(torch.float64)
    along = (centred * rows).sum(dim=1) / centred.norm(dim=1).clamp(min=_EPS)
    score: Tensor = along + alpha * h.to(torch.float64).abs().sum(dim=1)
    return score


class NCI(Score, name="nci"):
    """Projection of the predicted class's weights on the centred feature, plus a share of the feature's L1 norm.

    ``w_c · (h - μ) / ‖h - μ‖ + α ‖h‖₁``, μ the mean training feature; ``h (B, L) -> score (B,)``. Where ``h = μ`` the
    first term is 0.

    Args:
        alpha: weight of the norm, 0 or more. The authors choose it on a validation set of OOD images; without one, 0.

    Source: Liu and Qin, "Detecting Out-of-Distribution Through the Lens of Neural Collapse", CVPR 2025.
    """

    needs = Needs(head=True, logits=True, train=True)

    mean: Tensor

    def __init__(self, *, alpha: Annotated[float, AtLeast(0)] = 0.0) -> None:
        super().__init__()
        self.alpha = alpha

    def fit(self, data: FeatureSet) -> None:
        """Average the training features."""
        self.mean = mean_feature(data)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return nci(f.h, f.head.weight[f.pred], self.mean, self.alpha)
