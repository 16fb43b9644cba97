"""What the features hold outside of their principal space."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.bounds import AtLeast
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features, Head
from nescio.core.fitting import scatter
from nescio.core.needs import Needs
from nescio.core.stage import Score


def _origin(head: Head) -> Tensor:
    """The point ``(L,)`` float64 from which the logits are linear without a bias: ``-W⁺ b``."""
    origin: Tensor = -torch.linalg.pinv(head.weight.to(torch.float64)) @ head.bias.to(torch.float64)
    return origin


def _default_dim(width: int) -> int:
    """The authors' choice by the width of the features."""
    return 1000 if width >= 2048 else 512 if width >= 768 else width // 2


@of_arrays
def residual(h: Tensor, origin: Tensor, outside: Tensor) -> Tensor:
    """``Residual`` of features ``h (B, L)``: scores ``(B,)`` float64.

    ``origin (L,)`` is ``-W⁺ b``, the columns of ``outside (L, D)`` span what is no part of the principal space.
    """
    length: Tensor = ((h.to(torch.float64) - origin) @ outside).norm(dim=1)
    return -length


class Residual(Score, name="residual"):
    """Negative length of the part of the feature that lies outside the principal space of the training features.

    ``-‖P⊥ (h - o)‖``, origin ``o = -W⁺ b``; ``P⊥`` spans the eigenvectors of the training features' second moment
    around ``o`` but the ``dim`` largest. ``h (B, L) -> score (B,)``.

    Args:
        dim: dimension of the principal space, from 0 to L - 1. The authors' by default: 1000 for L ≥ 2048, 512 for
            L ≥ 768, else L / 2.

    Source: Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022.
    """

    needs = Needs(head=True, train=True)

    origin: Tensor
    outside: Tensor

    def __init__(self, *, dim: Annotated[int, AtLeast(0)] | None = None) -> None:
        super().__init__()
        self.dim = dim

    def fit(self, data: FeatureSet) -> None:
        """Find the principal space in one pass, accumulated in float64."""
        origin = _origin(data.head)
        width = len(origin)
        dim = _default_dim(width) if self.dim is None else self.dim
        if dim >= width:
            raise InputError(f"stage '{self.name}': dim={dim} leaves none of {width} features; give a smaller dim")
        self.origin = origin
        spread = scatter(data)
        vectors = data.asked("principal axes", lambda: torch.linalg.eigh(spread().around(origin)).eigenvectors)()
        self.outside = vectors[:, : width - dim].contiguous()

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return residual(f.h, self.origin, self.outside)
