"""Clipping of unusually high activations."""

from __future__ import annotations

import logging
from typing import Annotated

import torch
from torch import Tensor

from nescio.core.bounds import Positive, Share
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import quantiles
from nescio.core.needs import Needs
from nescio.core.stage import Shape

log = logging.getLogger(__name__)


class ReAct(Shape, name="react"):
    """Clip the features from above: ``h' = min(h, λ)``, element-wise. ``h (B, L) -> h' (B, L)``.

    Args:
        clip: λ itself, in units of the features, above 0. Published with FM + LS: 1.6 (DenseNet, CIFAR), 1.0
            (ResNet-18, CIFAR), 0.8 (ResNet-50), 0.2 (MobileNetV2).
        q: or λ as this quantile, a share in [0, 1], of all raw training features. The paper's 0.9 is the default
            where neither is given. It transfers poorly: for a DenseNet on CIFAR-10 the published λ = 1.6 lies
            between the 97th and the 99th percentile, and ``q=0.9`` detects worse than no clipping at all.

    Source: Sun, Guo and Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021. The
    quantile is exact here and over the raw features, also after ``fm``; the authors' code takes it in NumPy.
    """

    limit: Tensor

    def __init__(
        self, *, clip: Annotated[float, Positive] | None = None, q: Annotated[float, Share] | None = None
    ) -> None:
        super().__init__()
        if clip is not None and q is not None:
            raise InputError(f"react takes clip or q, not both (got clip={clip:g} and q={q:g})")
        self.clip, self.q = clip, q

    @property
    def needs(self) -> Needs:
        """By its options."""
        return Needs(train=self.clip is None)

    def fit(self, data: FeatureSet) -> None:
        """Take λ as given, or find the quantile in two passes over the training features."""
        limit = self.clip
        if limit is None:
            (limit,) = quantiles(data, [0.9 if self.q is None else self.q])
            log.info("%r clips at %.4g", self, limit)
        self.limit = torch.tensor(limit, device=data.device)

    def forward(self, f: Features) -> Features:
        """Clip a batch."""
        return f.with_h(f.h.clamp(max=self.limit.to(f.h.dtype)))
