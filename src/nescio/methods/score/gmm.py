"""Likelihood under one Gaussian per class."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.arrays import of_arrays
from nescio.core.bounds import Positive
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import class_means, labelled, moments, refuse_empty
from nescio.core.needs import Needs
from nescio.core.stage import Score


@of_arrays
def gmm(h: Tensor, means: Tensor, whitening: Tensor, offset: Tensor) -> Tensor:
    """``GMM`` of features ``h (B, L)``: scores ``(B,)`` float64.

    ``whitening`` is one over each class's standard deviations ``(C, L)``, or matrices whose squares ``A Aᵀ`` are the
    inverse covariances, ``(C, L, L)``, or ``(1, L, L)`` for all classes. ``means (C, L)`` are multiplied by it already.
    ``offset (C,)`` is what each class's log-density adds to half the squared distance.
    """
    h = h.to(torch.float64)
    if whitening.ndim == 2:  # ‖(h - μ) w‖² = h² w² - 2 h w · μ w + (μ w)²
        a = whitening
        distances = h.square() @ a.square().T - 2 * h @ (a * means).T + means.square().sum(dim=1)
    elif len(whitening) == 1:
        distances = numerics.squared_distances(h @ whitening[0], means)
    else:
        pairs = zip(whitening, means, strict=True)
        distances = torch.stack([(h @ a - mean).square().sum(dim=1) for a, mean in pairs], dim=1)
    return (offset - distances / 2).logsumexp(dim=1)


class GMM(Score, name="gmm"):
    """Log-likelihood of the feature under a mixture of one Gaussian per class.

    ``log Σ_k π_k N(h; μ_k, Σ_k)``, π_k the share of class k; ``h (B, L) -> score (B,)``. Means and covariances by true
    label, accumulated in float64.

    Args:
        covariance: ``diag`` (each class its variances, C·L numbers), ``tied`` (one matrix for all classes) or ``full``
            (a matrix for each, C·L² numbers: for few classes).
        shrink: ``shrink · mean(diag Σ)``, of all classes together, is added to each variance; above 0.

    Source: Mukhoti et al., "Deep Deterministic Uncertainty: A New Simple Baseline", CVPR 2023 (full covariances).
    """

    needs = Needs(train=True, labels=True)

    means: Tensor
    whitening: Tensor
    offset: Tensor

    def __init__(
        self, *, covariance: Literal["diag", "tied", "full"] = "diag", shrink: Annotated[float, Positive] = 1e-6
    ) -> None:
        super().__init__()
        self.covariance, self.shrink = covariance, shrink

    def fit(self, data: FeatureSet) -> None:
        """Estimate the mixture in two passes; in one if the covariance is tied."""
        if self.covariance == "tied":
            tied = moments(data, self.name)
            means, counts, scatter = tied.means, tied.counts, tied.within[None]
        else:
            means, counts = class_means(data, self.name)()
            refuse_empty(counts, self.name)
            scatter = self._scatter(data, means, counts)
        if self.covariance == "diag":
            level = scatter.mean()
            variances = scatter + self.shrink * torch.where(level > 0, level, 1)
            self.whitening, self.means = variances.rsqrt(), means * variances.rsqrt()
            log_det = variances.log().sum(dim=1)
        else:
            level = scatter.diagonal(dim1=1, dim2=2).mean()
            values, vectors = torch.linalg.eigh(scatter)
            values = values.clamp(min=0) + self.shrink * torch.where(level > 0, level, 1)
            self.whitening = (vectors / values.sqrt()[:, None, :]).contiguous()
            self.means = (means[:, None, :] @ self.whitening)[:, 0]
            log_det = values.log().sum(dim=1)
        log_share = (counts / counts.sum()).log()
        self.offset = log_share - (log_det + means.shape[1] * math.log(2 * math.pi)) / 2

    def _scatter(self, data: FeatureSet, means: Tensor, counts: Tensor) -> Tensor:
        """Covariance of each class around its mean: ``(C, L, L)``, or variances ``(C, L)``."""
        full = self.covariance == "full"
        scatter = means.new_zeros(*means.shape, means.shape[1]) if full else torch.zeros_like(means)
        for h, y in labelled(data, self.name):
            x = h.to(torch.float64) - means[y]
            if full:
                for c in torch.unique(y):
                    scatter[c].addmm_(x[y == c].T, x[y == c])
            else:
                scatter.index_add_(0, y, x.square())
        return scatter / counts.clamp(min=1).view(-1, *[1] * (scatter.ndim - 1))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return gmm(f.h, self.means, self.whitening, self.offset)
