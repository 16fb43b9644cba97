"""Energy less what the features hold outside of their principal space."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.methods.score.residual import Residual, residual

_FILLED = 1e-6
"""A residual smaller than this share of the features' length is rounding."""


@of_arrays
def vim(h: Tensor, z: Tensor, origin: Tensor, outside: Tensor, alpha: Tensor) -> Tensor:
    """``ViM`` of features ``h (B, L)`` and logits ``z (B, C)``, ``alpha`` the scale, the rest as for ``residual``."""
    score: Tensor = z.to(torch.float64).logsumexp(dim=1) + alpha * residual(h, origin, outside)
    return score


class ViM(Residual, name="vim", place="score"):
    """Energy less a virtual logit: the residual, scaled to the size of the training images' largest logits.

    ``logsumexp f - α ‖P⊥ (h - o)‖``, ``α = Σ max_k f_k / Σ ‖P⊥ (h - o)‖`` over the training features;
    ``h (B, L), logits (B, C) -> score (B,)``. Where the principal space holds the training features whole (few images),
    α is 0. The softmax probability of the virtual logit falls as this score rises.

    Args:
        dim: dimension of the principal space, as for ``residual``.

    Source: Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022.
    """

    needs = Needs(head=True, logits=True, train=True)

    alpha: Tensor

    def fit(self, data: FeatureSet) -> None:
        """Find the principal space, then the scale, in a pass each."""
        super().fit(data)
        logits, residuals, lengths = self.origin.new_zeros(3)
        for f in data.chunks():
            logits += f.logits.to(torch.float64).amax(dim=1).sum()
            residuals -= residual(f.h, self.origin, self.outside).sum()
            lengths += (f.h - self.origin).norm(dim=1).sum()
        self.alpha = torch.where(residuals > _FILLED * lengths, logits / residuals, 0)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return vim(f.h, f.logits, self.origin, self.outside, self.alpha)
