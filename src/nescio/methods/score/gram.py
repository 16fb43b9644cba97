"""Deviation of feature correlations from what the predicted class has shown."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from nescio.core.bounds import AtLeast
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import held_out
from nescio.core.needs import Maps, Needs
from nescio.core.stage import Score

_TINY = 1e-6
_AT_ONCE = 1 << 18
HELD_OUT = 0.1


class Gram(Score, name="gram"):
    """Negative deviation of Gram statistics from the range that training images of the predicted class span.

    Statistics of a feature map ``F (K, H·W)``: the row sums of ``G_p = F^p (F^p)ᵀ``, to the power 1/p with their sign,
    for p = 1 … orders. Beyond the range ``[min, max]`` of the images predicted as the same class, entry g deviates by
    ``(min - g) / |min|`` or ``(g - max) / |max|``. The deviations of a layer are summed, divided by their mean over ID
    images that the ranges were not taken from (a tenth of the training images, or ``--held-out``), and the layers
    added up. A probe takes the statistics from the last map of each resolution: ``(B, orders · K) -> score (B,)``.

    Args:
        orders: highest power p, 1 or more. 10 is the authors'.

    Source: Sastry and Oore, "Detecting Out-of-Distribution Examples with Gram Matrices", ICML 2020. Their code taps
    every convolution. A class that is never predicted in training has the range of all images.
    """

    lowest: Tensor
    highest: Tensor
    expected: Tensor

    def __init__(self, *, orders: Annotated[int, AtLeast(1)] = 10) -> None:
        super().__init__()
        self.orders = orders

    @property
    def _probe(self) -> str:
        return f"gram{self.orders}"

    @property
    def needs(self) -> Needs:
        """Row sums of the Gram matrices of each feature map, of training images and held-out ones."""
        probes = {self._probe: functools.partial(_statistics, orders=self.orders)}
        return Needs(features=False, logits=True, train=True, held_out=True, probes=probes)

    def fit(self, data: FeatureSet) -> None:
        """Find the ranges in one pass, the expected deviations in another."""
        ranges, scale = held_out(data, HELD_OUT)
        n = data.n_classes
        low = high = None
        for f in ranges.chunks():
            g = torch.cat(f.probed(self._probe), dim=1).to(torch.float64)
            if low is None or high is None:
                low, high = g.new_full((n, g.shape[1]), torch.inf), g.new_full((n, g.shape[1]), -torch.inf)
            where = f.pred[:, None].expand_as(g)
            low.scatter_reduce_(0, where, g, "amin")
            high.scatter_reduce_(0, where, g, "amax")
        if low is None or high is None:
            raise InputError(f"stage '{self.name}' needs more training images")
        seen = low.isfinite()
        self.lowest, self.highest = torch.where(seen, low, low.amin(dim=0)), torch.where(seen, high, high.amax(dim=0))
        total, count = low.new_zeros(()), 0
        for f in scale.chunks():
            total, count = total + self._deviations(f).sum(dim=0), count + len(f)
        expected = total / max(1, count)
        self.expected = torch.where(expected > 0, expected, 1)

    def _deviations(self, f: Features) -> Tensor:
        """Summed deviation of each layer ``(B, layers)``."""
        layers = f.probed(self._probe)
        bounds = (
            torch.split(limits[f.pred], [p.shape[1] for p in layers], dim=1) for limits in (self.lowest, self.highest)
        )
        return torch.stack(
            [
                ((low - g).clamp(min=0) / (low.abs() + _TINY) + (g - high).clamp(min=0) / (high.abs() + _TINY)).sum(1)
                for g, low, high in zip((p.to(torch.float64) for p in layers), *bounds, strict=True)
            ],
            dim=1,
        )

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return -(self._deviations(f) / self.expected).sum(dim=1)


def _statistics(maps: Maps, orders: int) -> Sequence[Tensor]:
    return [_row_sums(fmap, orders) for fmap in maps.layers]


def _row_sums(fmap: Tensor, orders: int) -> Tensor:
    """``(B, K, H, W) -> (B, orders · K)``; by ``Σ_j F_i · F_j = F_i · Σ_j F_j`` no Gram matrix is made.

    Maps are scaled to a largest entry of 1 first, and back at the end: their tenth powers would not fit a float. Few
    images are taken at a time, so that their powers stay in the caches.
    """
    if torch.compiler.is_compiling():  # of a graph that is traced, the number of images is open
        return _row_sums_of_few(fmap.flatten(2), orders)
    at_once = max(1, _AT_ONCE // fmap[0].numel())
    return torch.cat([_row_sums_of_few(few, orders) for few in torch.split(fmap.flatten(2), at_once)])


def _row_sums_of_few(x: Tensor, orders: int) -> Tensor:
    x = x.to(torch.float64)
    largest = x.abs().amax(dim=(1, 2), keepdim=True).clamp(min=_TINY)
    x = x / largest
    power, sums = torch.ones_like(x), []
    for p in range(1, orders + 1):
        power = power * x
        rows = (power @ power.sum(dim=1)[..., None])[..., 0]
        size = torch.where(rows == 0, 1, rows.abs()).pow(1 / p)  # the power has no gradient at 0
        sums.append(rows.sign() * size * largest[..., 0].square())
    return torch.cat(sums, dim=1).to(torch.float32)
