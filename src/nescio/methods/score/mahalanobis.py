"""Distances to class-conditional Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.errors import check_positive
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import labelled, refuse_empty
from nescio.core.needs import Needs
from nescio.core.stage import Score


class Mahalanobis(Score, name="mahalanobis"):
    """Negative squared Mahalanobis distance to the nearest class mean, one covariance for all classes.

    ``-min_k (h - μ_k)ᵀ Σ⁻¹ (h - μ_k)``; ``h (B, L) -> score (B,)``. Class means by true label, and the covariance
    around them, accumulated in float64 over the training features.

    Args:
        shrink: ``Σ + shrink · mean(diag Σ) · I`` is inverted instead of Σ, above 0. The default changes nothing of a
            well-conditioned Σ and keeps the inverse defined where features are constant or images few.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018: its penultimate layer, without input perturbation and without the weights that their regression over
    layers learns from OOD data.
    """

    needs = Needs(train=True, labels=True)

    means: Tensor
    whitening: Tensor

    def __init__(self, *, shrink: float = 1e-6) -> None:
        super().__init__()
        self.shrink = check_positive("shrink", shrink)

    def fit(self, data: FeatureSet) -> None:
        """Estimate means and covariance in one pass."""
        moments = numerics.moments(labelled(data, self.name), data.n_classes)
        refuse_empty(moments.counts, self.name)
        self.take(moments)

    def take(self, moments: numerics.Moments) -> None:
        """Learn what the score reads."""
        self.whitening = numerics.whitening(moments.within, self.shrink)
        self.means = moments.means @ self.whitening

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return -numerics.squared_distances(f.h.to(torch.float64) @ self.whitening, self.means).amin(dim=1)


class RelativeMahalanobis(Mahalanobis, name="rmd"):
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
        background = (f.h.to(torch.float64) @ self.total_whitening - self.mean).square().sum(dim=1)
        return background + super().forward(f)
