"""Distances to class-conditional Gaussians."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.arrays import of_arrays
from nescio.core.bounds import Positive
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import moments
from nescio.core.needs import Needs
from nescio.core.stage import Score


@of_arrays
def mahalanobis(h: Tensor, means: Tensor, whitening: Tensor) -> Tensor:
    """``Mahalanobis`` of features ``h (B, L)``, class means ``(C, L)`` and a matrix ``whitening (L, L)``.

    ``whitening @ whitening.T`` is the inverse of the covariance: a Cholesky factor of it, for one. Scores ``(B,)``.
    """
    return _nearest(h, means.to(torch.float64) @ whitening, whitening)


def _nearest(h: Tensor, whitened_means: Tensor, whitening: Tensor) -> Tensor:
    return -numerics.squared_distances(h.to(torch.float64) @ whitening, whitened_means).amin(dim=1)


class Mahalanobis(Score, name="mahalanobis"):
    """Negative squared Mahalanobis distance to the nearest class mean, one covariance for all classes.

    ``-min_k (h - μ_k)ᵀ Σ⁻¹ (h - μ_k)``; ``h (B, L) -> score (B,)``. Class means by true label, and the covariance
    around them, accumulated in float64 over the training features.

    Args:
        shrink: ``Σ + shrink · mean(diag Σ) · I`` is inverted instead of Σ, above 0. The default does not change a
            well-conditioned Σ and keeps the inverse defined where features are constant or images few.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018: its penultimate layer, without input perturbation and without the weights that their regression over
    layers learns from OOD data.
    """

    needs = Needs(train=True, labels=True)

    means: Tensor
    whitening: Tensor

    def __init__(self, *, shrink: Annotated[float, Positive] = 1e-6) -> None:
        super().__init__()
        self.shrink = shrink

    def fit(self, data: FeatureSet) -> None:
        """Estimate means and covariance in one pass."""
        self.take(moments(data, self.name))

    def take(self, moments: numerics.Moments) -> None:
        """Learn what the score reads."""
        self.whitening = numerics.whitening(moments.within, self.shrink)
        self.means = moments.means @ self.whitening

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return _nearest(f.h, self.means, self.whitening)
