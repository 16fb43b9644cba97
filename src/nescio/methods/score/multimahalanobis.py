"""Mahalanobis distances at several depths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.bounds import Positive
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import moments
from nescio.core.needs import Maps, Needs
from nescio.core.stage import Score


def _means(maps: Maps) -> Sequence[Tensor]:
    return [fmap.mean(dim=(2, 3)) for fmap in maps.layers]


class MultiMahalanobis(Score, name="multimahalanobis"):
    """Negative sum over layers of the Mahalanobis distance to the nearest class mean, each in units of its ID spread.

    ``-Σ_l min_k (x_l - μ_lk)ᵀ Σ_l⁻¹ (x_l - μ_lk) / s_l``: ``x_l`` the spatial mean of the last feature map of each
    resolution (a probe takes it), ``s_l`` the standard deviation of the distance over the training images.
    ``x_l (B, K_l) -> score (B,)``. Before it, ``perturb`` is the original's input perturbation.

    Args:
        shrink: as for ``mahalanobis``, above 0, for the covariance of each layer.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018. They weigh the layers by a logistic regression on OOD (or adversarial) images; no OOD image is seen
    here, so all layers count alike.
    """

    needs = Needs(features=False, train=True, labels=True, probes={"mean": _means})
    means: Tensor
    whitening: Tensor
    spread: Tensor

    def __init__(self, *, shrink: Annotated[float, Positive] = 1e-6) -> None:
        super().__init__()
        self.shrink = shrink

    def fit(self, data: FeatureSet) -> None:
        """Estimate the Gaussians in a pass per layer, the spread of the distances in one more."""
        depth = len(next(data.chunks()).probed("mean"))
        layers = [data.map(lambda f, i=i: f.with_h(f.probed("mean")[i])) for i in range(depth)]  # type: ignore[misc]
        gaussians = [moments(layer, self.name) for layer in layers]
        roots = [numerics.whitening(m.within, self.shrink) for m in gaussians]
        self.whitening = torch.cat([root.flatten() for root in roots])
        self.means = torch.cat([(m.means @ root).flatten() for m, root in zip(gaussians, roots, strict=True)])
        distances = torch.cat([self._distances(f) for f in data.chunks()])
        spread = distances.std(dim=0, correction=0)
        self.spread = torch.where(spread > 0, spread, 1)

    def _layers(self, widths: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Whitening ``(K, K)`` and whitened class means ``(C, K)`` of each layer."""
        classes = len(self.means) // sum(widths)
        roots = torch.split(self.whitening, [w * w for w in widths])
        means = torch.split(self.means, [classes * w for w in widths])
        for width, root, mean in zip(widths, roots, means, strict=True):
            yield root.view(width, width), mean.view(classes, width)

    def _distances(self, f: Features) -> Tensor:
        """Squared distance to the nearest class at each layer ``(B, layers)``."""
        layers = f.probed("mean")
        widths = [p.shape[1] for p in layers]
        if sum(w * w for w in widths) != len(self.whitening):
            raise InputError(f"stage '{self.name}' was fitted on feature maps with other widths; fit it for this model")
        return torch.stack(
            [
                numerics.squared_distances(x.to(torch.float64) @ root, means).amin(dim=1)
                for x, (root, means) in zip(layers, self._layers(widths), strict=True)
            ],
            dim=1,
        )

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return -(self._distances(f) / self.spread).sum(dim=1)
