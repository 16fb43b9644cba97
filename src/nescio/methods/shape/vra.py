"""Rectification of activations from both sides."""

from __future__ import annotations

import logging
from typing import Annotated

import torch
from torch import Tensor

from nescio.core.bounds import Share
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import quantiles
from nescio.core.needs import Needs
from nescio.core.stage import Shape

log = logging.getLogger(__name__)


class VRA(Shape, name="vra"):
    """Set low features to zero and clip high ones: ``0`` below α, ``h`` between, ``β`` above.

    ``h (B, L) -> h' (B, L)``.

    Args:
        low: α as a quantile, a share in [0, 1], of all raw training features. 0.6 is the authors'.
        high: β likewise; not below ``low``. 0.95 is the authors'.

    Source: Xu et al., "VRA: Variational Rectified Activation for Out-of-distribution Detection", NeurIPS 2023.
    """

    needs = Needs(train=True)

    floor: Tensor
    ceiling: Tensor

    def __init__(self, *, low: Annotated[float, Share] = 0.6, high: Annotated[float, Share] = 0.95) -> None:
        super().__init__()
        self.low, self.high = low, high
        if low > high:
            raise InputError(f"vra needs low <= high, got low={low:g} and high={high:g}")

    def fit(self, data: FeatureSet) -> None:
        """Find both quantiles of the training features."""
        floor, ceiling = quantiles(data, [self.low, self.high])
        log.info("%r keeps %.4g to %.4g", self, floor, ceiling)
        device = data.device
        self.floor, self.ceiling = torch.tensor(floor, device=device), torch.tensor(ceiling, device=device)

    def forward(self, f: Features) -> Features:
        """Rectify a batch."""
        clipped = f.h.clamp(max=self.ceiling.to(f.h.dtype))
        return f.with_h(torch.where(f.h < self.floor, 0, clipped))
