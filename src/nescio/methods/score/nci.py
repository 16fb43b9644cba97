"""Closeness of the feature to the predicted class's weight vector."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.errors import check_at_least
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import mean_feature
from nescio.core.needs import Needs
from nescio.core.stage import Score

_EPS = 1e-8


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

    def __init__(self, *, alpha: float = 0.0) -> None:
        super().__init__()
        self.alpha = check_at_least("alpha", alpha, 0)

    def fit(self, data: FeatureSet) -> None:
        """Average the training features."""
        self.mean = mean_feature(data)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        centred = (f.h - self.mean).to(torch.float64)
        along = (centred * f.head.weight[f.pred]).sum(dim=1) / centred.norm(dim=1).clamp(min=_EPS)
        score: Tensor = along + self.alpha * f.h.to(torch.float64).abs().sum(dim=1)
        return score
