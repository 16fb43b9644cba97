"""What the features hold outside of their principal space."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.errors import InputError, check_at_least
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features, Head
from nescio.core.needs import Needs
from nescio.core.stage import Score

_FILLED = 1e-6
"""A residual smaller than this share of the features' length is rounding."""


def _origin(head: Head) -> Tensor:
    """The point ``(L,)`` float64 from which the logits are linear without a bias: ``-W⁺ b``."""
    origin: Tensor = -torch.linalg.pinv(head.weight.to(torch.float64)) @ head.bias.to(torch.float64)
    return origin


def _default_dim(width: int) -> int:
    """The authors' choice by the width of the features."""
    return 1000 if width >= 2048 else 512 if width >= 768 else width // 2


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

    def __init__(self, *, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim if dim is None else check_at_least("dim", dim, 0)

    def fit(self, data: FeatureSet) -> None:
        """Find the principal space in one pass, accumulated in float64."""
        origin = _origin(data.head)
        width = len(origin)
        dim = _default_dim(width) if self.dim is None else self.dim
        if dim >= width:
            raise InputError(f"stage '{self.name}': dim={dim} leaves nothing of {width} features; take a smaller one")
        products = origin.new_zeros(width, width)
        for f in data.chunks():
            x = f.h.to(torch.float64) - origin
            products.addmm_(x.T, x)
        self.origin = origin
        self.outside = torch.linalg.eigh(products).eigenvectors[:, : width - dim].contiguous()

    def residual(self, h: Tensor) -> Tensor:
        """``‖P⊥ (h - o)‖``, ``(B, L) -> (B,)`` float64."""
        residual: Tensor = ((h.to(torch.float64) - self.origin) @ self.outside).norm(dim=1)
        return residual

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return -self.residual(f.h)


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
            residuals += self.residual(f.h).sum()
            lengths += (f.h - self.origin).norm(dim=1).sum()
        self.alpha = torch.where(residuals > _FILLED * lengths, logits / residuals, 0)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return f.logits.to(torch.float64).logsumexp(dim=1) - self.alpha * self.residual(f.h)
