"""Regret of the predictive normalised maximum likelihood learner."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.arrays import of_arrays
from nescio.core.bounds import Positive
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score

_SMALLEST = 1e-12


@of_arrays
def pnml(h: Tensor, z: Tensor, whitening: Tensor) -> Tensor:
    """``PNML`` of features ``h (B, L)``, the logits ``z (B, C)`` of ``h / ‖h‖``, and a matrix ``whitening (L, L)``.

    ``whitening @ whitening.T`` is the inverse of ``Σ_i d_i d_iᵀ`` over the training directions. Scores ``(B,)``.
    """
    q = (numerics.normalised(h).to(torch.float64) @ whitening).square().sum(dim=1, keepdim=True)
    p = z.to(torch.float64).softmax(dim=1).clamp(_SMALLEST, 1 - _SMALLEST)
    best = p / (p + (1 - p) * p.pow(q / (1 + q)))
    regret: Tensor = best.sum(dim=1).log()
    return -regret / torch.tensor(float(max(2, p.shape[1]))).log()


class PNML(Score, name="pnml"):
    """Negative regret of a learner that may refit its last layer to the image and any label.

    ``-log Σ_k p_k / (p_k + (1 - p_k) p_k^g) / log C``, ``g = q / (1 + q)``, ``q = zᵀ (Σ_i z_i z_iᵀ)⁻¹ z`` over the
    training features, all features scaled to length one, and ``p`` the softmax of the head on ``z``;
    ``h (B, L) -> score (B,)``, in [-1, 0].

    Args:
        shrink: ``shrink · mean(diag)`` is added to the diagonal before the inverse, above 0: directions that no
            training feature has are then the ones with the largest regret.

    Source: Bibas, Feder and Hassner, "Single Layer Predictive Normalized Maximum Likelihood for Out-of-Distribution
    Detection", NeurIPS 2021. Their code takes the pseudo-inverse, which gives such directions no regret at all.
    """

    needs = Needs(head=True, logits=True, train=True)

    whitening: Tensor

    def __init__(self, *, shrink: Annotated[float, Positive] = 1e-6) -> None:
        super().__init__()
        self.shrink = shrink

    def fit(self, data: FeatureSet) -> None:
        """Accumulate the second moment of the training directions in float64."""
        width = data.head.weight.shape[1]
        products = data.head.weight.new_zeros(width, width, dtype=torch.float64)
        for f in data.chunks():
            z = numerics.normalised(f.h.to(torch.float64))
            numerics.add_square(products, z)
        self.whitening = numerics.whitening(numerics.whole_square(products), self.shrink)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return pnml(f.h, f.head(numerics.normalised(f.h), f.pred), self.whitening)
