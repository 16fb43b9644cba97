"""Quantiles of any number of values, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SAMPLE = 1 << 14
_BUCKET_BITS = 16
_BUCKETS = 1 << _BUCKET_BITS
_INT16_MAX, _INT32_MAX = 0x7FFF, 0x7FFFFFFF
_PIECE = 1 << 18
"""Values that are counted at once: their keys stay in a core's cache."""


def quantile(values: Tensor, share: float) -> Tensor:
    """Quantile of all entries (linear interpolation), for any number of them: ``torch.quantile`` takes 16 million."""
    flat = values.detach().cpu().numpy().ravel()
    position = share * (flat.size - 1)
    low, part = int(position), position - int(position)
    high = min(low + 1, flat.size - 1)
    near, below = _near(flat, low, high)
    ordered = np.partition(near, (low - below, high - below))  # several times as fast as kthvalue
    return values.new_tensor(float(ordered[low - below]) * (1 - part) + float(ordered[high - below]) * part)


def _near(values: npt.NDArray[Any], low: int, high: int) -> tuple[npt.NDArray[Any], int]:
    """The values of the ranks from ``low`` to ``high`` and some around them, and how many are smaller than these.

    A sample says between which two values they lie; were they not to, all values are given.
    """
    step = values.size // _SAMPLE | 1  # odd, so that it meets all columns of a matrix
    if step == 1:
        return values, 0
    sample = np.sort(values[::step])
    at, around = low // step, 2 * int(sample.size**0.5)
    least, most = sample[max(0, at - around)], sample[min(sample.size - 1, at + around)]
    below, near = int(np.count_nonzero(values < least)), values[(values >= least) & (values <= most)]
    return (near, below) if below <= low and high < below + near.size else (values, 0)


def _pieces(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    for x in chunks:
        yield from torch.split(x.flatten(), _PIECE)


@dataclass(frozen=True)
class Counts:
    """How often values occur in a stream, in ascending order.

    Attributes:
        of_float16: of each float16 ``(65536,)``; None where a value is none.
        of_upper: of each pattern of the upper 16 bits of a float32 ``(65536,)``.
    """

    of_float16: Tensor | None
    of_upper: Tensor


def count(chunks: Iterable[Tensor]) -> Counts:
    """Count float32 values in one pass.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    halves, upper = torch.zeros(_BUCKETS, dtype=torch.int64), torch.zeros(_BUCKETS, dtype=torch.int64)
    only_halves = True
    for x in _pieces(chunks):
        if not torch.isfinite(x).all():
            raise ValueError("quantiles: some features are not finite")
        half = x.half()
        if only_halves and not torch.equal(half.to(x.dtype), x):
            upper += _upper_of_halves(halves)
            only_halves = False
        if only_halves:
            halves += torch.bincount(_sortable_half(half), minlength=_BUCKETS).cpu()
        else:
            upper += torch.bincount(_high(_sortable(x)), minlength=_BUCKETS).cpu()
    if int(halves.sum() + upper.sum()) == 0:
        raise ValueError("quantiles: no values")
    return Counts(halves, _upper_of_halves(halves)) if only_halves else Counts(None, upper)


def _sortable_half(x: Tensor) -> Tensor:
    """Float16 bits as int32 from 0, in the order of the values."""
    bits = x.contiguous().view(torch.int16).to(torch.int32)
    return (bits ^ ((bits >> 15) & _INT16_MAX)) + _BUCKETS // 2


def _halves() -> Tensor:
    """All float16 values in the order of their counts, as float32; NaN and infinity stand at the ends."""
    key = torch.arange(_BUCKETS, dtype=torch.int32) - _BUCKETS // 2
    return (key ^ ((key >> 15) & _INT16_MAX)).to(torch.int16).view(torch.float16).to(torch.float32)


def _upper_of_halves(counts: Tensor) -> Tensor:
    """Counts by the upper bits of the float32 of counted float16 values."""
    return torch.zeros_like(counts).index_add_(0, _high(_sortable(_halves())), counts)


def quantiles(
    data: Callable[[], Iterable[Tensor]], shares: Sequence[float], counts: Counts | None = None
) -> list[float]:
    """Quantiles of all float32 values in a stream, exactly (linear interpolation, as ``numpy.quantile``).

    A radix selection: one pass counts the upper 16 bits of the values in sortable order, a second one the lower 16
    bits within the few buckets that hold the wanted ranks. Where all are float16 values the first says everything.
    Memory does not grow with the stream.

    Args:
        data: called once per pass; returns a fresh iterable of tensors of any shape.
        shares: in [0, 1].
        counts: ``count`` of the same values, where they are counted already.

    Raises:
        ValueError: the stream is empty or holds a value that is not finite.
    """
    counts = count(data()) if counts is None else counts
    n = int(counts.of_upper.sum())
    positions = [share * (n - 1) for share in shares]
    ranks = {rank for p in positions for rank in (math.floor(p), math.ceil(p))}
    if counts.of_float16 is None:
        values = _values_at(ranks, counts.of_upper, data())
    else:
        ends, halves = counts.of_float16.cumsum(0), _halves()
        values = {rank: float(halves[int(torch.searchsorted(ends, rank, right=True))]) for rank in ranks}
    between = [(values[math.floor(p)], values[math.ceil(p)], p - math.floor(p)) for p in positions]
    return [low + (high - low) * part for low, high, part in between]


def _values_at(ranks: Collection[int], upper: Tensor, chunks: Iterable[Tensor]) -> dict[int, float]:
    """The values of these ranks, by a pass over the values whose upper bits were counted."""
    ends = upper.cumsum(0)
    bucket = {rank: int(torch.searchsorted(ends, rank, right=True)) for rank in ranks}
    lower = {b: torch.zeros(_BUCKETS, dtype=torch.int64) for b in bucket.values()}
    for x in _pieces(chunks):
        key = _sortable(x)
        high = _high(key)
        for b in lower:
            lower[b] += torch.bincount(key[high == b] & (_BUCKETS - 1), minlength=_BUCKETS).cpu()
    values = {}
    for rank, b in bucket.items():
        before = int(ends[b] - upper[b])
        low = int(torch.searchsorted(lower[b].cumsum(0), rank - before, right=True))
        values[rank] = _from_sortable(((b - _BUCKETS // 2) << _BUCKET_BITS) | low)
    return values


def _sortable(x: Tensor) -> Tensor:
    """Float32 bits as int32 in the order of the floats they stand for."""
    bits = x.to(torch.float32).contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & _INT32_MAX)


def _high(key: Tensor) -> Tensor:
    """The bucket of a sortable key: its upper 16 bits, from 0."""
    return (key >> _BUCKET_BITS) + _BUCKETS // 2


def _from_sortable(key: int) -> float:
    bits = key ^ ((key >> 31) & _INT32_MAX)
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
