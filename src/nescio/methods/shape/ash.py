"""Activation shaping: prune a large share of the features of each image, adjust the rest; or adjust alone."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.bounds import Share
from nescio.core.features import Features
from nescio.core.stage import Shape

_MAX_EXPONENT = 50.0
"""Keeps ``exp`` finite in float32; ratios of real features stay far below it."""


def _kept(h: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The largest ``L - round(L p)`` entries of each row and where they are."""
    top = h.topk(numerics.n_top(h.shape[1], 1 - p), dim=1)
    return top.values, top.indices


def _factor(h: Tensor, p: float) -> Tensor:
    """``exp(Σ h / Σ kept h)`` of each row, ``(B, 1)``."""
    return numerics.sum_over_top(h, 1 - p).clamp(max=_MAX_EXPONENT).exp()


class ASHP(Shape, name="ashp"):
    """Set all but the largest features of each image to zero (ASH-P). ``h (B, L) -> h' (B, L)``.

    Args:
        p: share of the features that is pruned, in [0, 1). 0.6 is the authors' for ImageNet.

    Source: Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR 2023.
    """

    def __init__(self, *, p: Annotated[float, Share(below_one=True)] = 0.6) -> None:
        super().__init__()
        self.p = p

    def forward(self, f: Features) -> Features:
        """Shape a batch."""
        values, where = _kept(f.h, self.p)
        return f.with_h(torch.zeros_like(f.h).scatter(1, where, values))


class ASHB(Shape, name="ashb"):
    """Prune as ASH-P, and set each of the k kept features to ``Σ h / k`` (ASH-B). ``h (B, L) -> h' (B, L)``.

    Args:
        p: share of the features that is pruned, in [0, 1). 0.65 is the authors' for ImageNet.

    Source: Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR 2023.
    """

    def __init__(self, *, p: Annotated[float, Share(below_one=True)] = 0.65) -> None:
        super().__init__()
        self.p = p

    def forward(self, f: Features) -> Features:
        """Shape a batch."""
        values, where = _kept(f.h, self.p)
        level = f.h.sum(dim=1, keepdim=True) / values.shape[1]
        return f.with_h(torch.zeros_like(f.h).scatter(1, where, level.expand_as(values)))


class ASHS(Shape, name="ashs"):
    """Prune as ASH-P, and multiply what is kept by ``exp(Σ h / Σ kept h)`` (ASH-S). ``h (B, L) -> h' (B, L)``.

    Negative features count as zero in both sums, and the exponent ends at 50.

    Args:
        p: share of the features that is pruned, in [0, 1). 0.9 is the authors' for ImageNet.

    Source: Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection", ICLR 2023.
    """

    def __init__(self, *, p: Annotated[float, Share(below_one=True)] = 0.9) -> None:
        super().__init__()
        self.p = p

    def forward(self, f: Features) -> Features:
        """Shape a batch."""
        values, where = _kept(f.h, self.p)
        return f.with_h(torch.zeros_like(f.h).scatter(1, where, values * _factor(f.h, self.p)))


class SCALE(Shape, name="scale"):
    """Multiply all features by ``exp(Σ h / Σ largest h)``: ASH-S without the pruning. ``h (B, L) -> h' (B, L)``.

    Negative features count as zero in both sums, and the exponent ends at 50.

    Args:
        p: share of the features that is not among the largest, in [0, 1). 0.85 is the authors' for ImageNet.

    Source: Xu et al., "Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement", ICLR 2024.
    """

    def __init__(self, *, p: Annotated[float, Share(below_one=True)] = 0.85) -> None:
        super().__init__()
        self.p = p

    def forward(self, f: Features) -> Features:
        """Scale a batch."""
        return f.with_h(f.h * _factor(f.h, self.p))
