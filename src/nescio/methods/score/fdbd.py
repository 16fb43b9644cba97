"""Distance to the decision boundaries."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import mean_feature
from nescio.core.needs import Needs
from nescio.core.stage import Score

_EPS = 1e-8


@of_arrays
def fdbd(h: Tensor, z: Tensor, pred: Tensor, mean: Tensor, gaps: Tensor) -> Tensor:
    """``FDBD`` of features ``h (B, L)``, logits ``z (B, C)`` and predictions ``(B,)``: scores ``(B,)`` float64.

    ``mean (L,)`` is the mean training feature, ``gaps (C, C)`` are the distances between the head's rows.
    """
    logits, gaps = z.to(torch.float64), gaps[pred]
    differences = (logits.gather(1, pred[:, None]) - logits).abs()
    boundary = torch.where(gaps > 0, differences / torch.where(gaps > 0, gaps, 1), 0)
    away = (h - mean).to(torch.float64).norm(dim=1).clamp(min=_EPS)
    score: Tensor = boundary.sum(dim=1) / max(1, logits.shape[1] - 1) / away
    return score


class FDBD(Score, name="fdbd"):
    """Mean distance from the feature to the decision boundaries, relative to its distance from the training mean.

    ``mean_{k≠c} |f_c - f_k| / ‖w_c - w_k‖ / ‖h - μ‖`` for the predicted class c;
    ``h (B, L), logits (B, C) -> score (B,)``. A class with the same weights as c has no boundary with it and adds 0.

    Source: Liu and Qin, "Fast Decision Boundary based Out-of-Distribution Detector", ICML 2024.
    """

    needs = Needs(head=True, logits=True, train=True)

    mean: Tensor
    gaps: Tensor

    def fit(self, data: FeatureSet) -> None:
        """Average the training features; measure the distances between the head's rows."""
        self.mean = mean_feature(data)
        weight = data.head.weight.to(torch.float64)
        self.gaps = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return fdbd(f.h, f.logits, f.pred, self.mean, self.gaps)
