"""Truncation of each feature to the bulk of its distribution."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core.bounds import Positive
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import mean_feature
from nescio.core.needs import Needs
from nescio.core.stage import Shape


class Typical(Shape, name="typical"):
    """Clip each feature to its typical set in training: ``[μ_l - λ σ_l, μ_l + λ σ_l]``. ``h (B, L) -> h' (B, L)``.

    μ and σ are mean and standard deviation of the raw training features. This is what the public code of BATS does;
    ``bats`` is the paper's truncated batch norm.

    Args:
        lam: λ, in standard deviations, above 0. 3.25 is the authors' for CIFAR, 1.05 for a ViT on ImageNet.

    Source: Zhu et al., "Boosting Out-of-distribution Detection with Typical Features", NeurIPS 2022.
    """

    needs = Needs(train=True)

    low: Tensor
    high: Tensor

    def __init__(self, *, lam: Annotated[float, Positive] = 3.25) -> None:
        super().__init__()
        self.lam = lam

    def fit(self, data: FeatureSet) -> None:
        """Find mean and variance of each feature in a pass each."""
        mean = mean_feature(data)
        spread = self.lam * mean_feature(data.map(lambda f: f.with_h((f.h - mean).square()))).sqrt()
        self.low, self.high = mean - spread, mean + spread

    def forward(self, f: Features) -> Features:
        """Clip a batch."""
        return f.with_h(torch.minimum(torch.maximum(f.h, self.low.to(f.h.dtype)), self.high.to(f.h.dtype)))
