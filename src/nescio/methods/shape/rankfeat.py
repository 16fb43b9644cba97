"""Removal of the feature map's dominant direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nescio.core.features import Features
from nescio.core.needs import Maps, Needs
from nescio.core.stage import Shape


class RankFeat(Shape, name="rankfeat"):
    """Subtract the rank-one part with the largest singular value from the last feature map.

    ``X' = X - σ₁ u₁ v₁ᵀ`` for each image's map ``X (K, H·W)``, then the network's own pooling:
    ``h (B, L) -> h' (B, L)``. A probe does this within the network's pass. No training images.

    Source: Song, Sebe and Wang, "RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection", NeurIPS 2022, at
    the last block. Their best variant averages these logits with those after removal one block earlier.
    """

    @property
    def needs(self) -> Needs:
        """Penultimate features of the deflated map."""
        return Needs(features=False, probes={self.name: _without_first_rank})

    def unexportable(self) -> str | None:
        """It has no such operation."""
        return "needs eigenvectors of each image's feature map, which ONNX cannot compute"

    def forward(self, f: Features) -> Features:
        """Take the features of the deflated map."""
        return f.with_h(f.probed(self.name)[0])


def _without_first_rank(maps: Maps) -> Sequence[Tensor]:
    fmap = maps.layers[-1]
    x = fmap.flatten(2)
    if x.shape[1] < x.shape[2]:
        u = _first_direction(x @ x.mT)
        deflated = x - u @ (u.mT @ x)
    else:
        v = _first_direction(x.mT @ x)
        deflated = x - (x @ v) @ v.mT
    return [maps.rest(deflated.view(fmap.shape))]


def _first_direction(square: Tensor) -> Tensor:
    """Eigenvector of the largest eigenvalue ``(B, n, 1)``, held fixed in gradients: equal eigenvalues have none.

    NaN where an image's matrix is not finite: the decomposition would refuse the whole batch.
    """
    square = square.detach()
    finite = square.isfinite().all(dim=(1, 2), keepdim=True)
    vectors = torch.linalg.eigh(torch.where(finite, square, 0)).eigenvectors[..., -1:]
    return torch.where(finite, vectors, torch.nan)
