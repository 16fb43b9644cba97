"""Distance to the nearest class relative to that to all classes."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.arrays import of_arrays
from nescio.core.features import Features
from nescio.methods.score.mahalanobis import Mahalanobis, mahalanobis


@of_arrays
def rmd(h: Tensor, means: Tensor, whitening: Tensor, mean: Tensor, total_whitening: Tensor) -> Tensor:
    """``RMD``: as ``mahalanobis``, with the mean ``(L,)`` of all features and a matrix for their covariance."""
    return mahalanobis(h, means, whitening) + _from_one(h, mean.to(torch.float64) @ total_whitening, total_whitening)


def _from_one(h: Tensor, whitened_mean: Tensor, whitening: Tensor) -> Tensor:
    return (h.to(torch.float64) @ whitening - whitened_mean).square().sum(dim=1)


class RMD(Mahalanobis, name="rmd"):
    """Mahalanobis distance to the nearest class less the distance to one Gaussian over all classes, negated.

    ``-min_k [MD_k(h) - MD_0(h)]``, both squared; ``h (B, L) -> score (B,)``.

    Args:
        shrink: as for ``mahalanobis``, for both covariances.

    Source: Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021.
    """

    mean: Tensor
    total_whitening: Tensor

    def take(self, moments: numerics.Moments) -> None:
        """Learn the classes' Gaussians and the one over all."""
        super().take(moments)
        self.total_whitening = numerics.whitening(moments.total, self.shrink)
        self.mean = moments.mean @ self.total_whitening

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return super().forward(f) + _from_one(f.h, self.mean, self.total_whitening)
