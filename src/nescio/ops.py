"""Numerics that methods share. Everything that sees a training set takes an iterable and streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_BUCKET_BITS = 16
_BUCKETS = 1 << _BUCKET_BITS
_INT32_MAX = 0x7FFFFFFF


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity along the last dimension; 0 where either vector is zero.

    Shapes: ``(..., L), (..., L) -> (...)``.
    """
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    dot = (a * b).sum(dim=-1)
    return torch.where(norm > 0, dot / torch.where(norm > 0, norm, torch.ones_like(norm)), torch.zeros_like(dot))


def class_means(chunks: Iterable[tuple[Tensor, Tensor]], n_classes: int) -> tuple[Tensor, Tensor]:
    """Mean vector of each class in one pass, accumulated in float64.

    Args:
        chunks: pairs ``h (B, L)``, ``y (B,)`` with ``y`` in ``[0, n_classes)``.
        n_classes: C.

    Returns:
        means ``(C, L)`` float64 (zero for an empty class) and counts ``(C,)`` int64.

    Raises:
        ValueError: there was no chunk at all.
    """
    total = counts = None
    for h, y in chunks:
        if total is None or counts is None:
            total = h.new_zeros(n_classes, h.shape[1], dtype=torch.float64)
            counts = torch.zeros(n_classes, dtype=torch.int64, device=h.device)
        total.index_add_(0, y, h.to(torch.float64))
        counts += torch.bincount(y, minlength=n_classes)
    if total is None or counts is None:
        raise ValueError("class_means: no features to average")
    return total / counts.clamp(min=1)[:, None], counts


def _sortable(x: Tensor) -> Tensor:
    """Float32 bits as int32 in the order of the floats they stand for."""
    bits = x.to(torch.float32).contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & _INT32_MAX)


def _from_sortable(key: int) -> float:
    bits = key ^ ((key >> 31) & _INT32_MAX)
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def quantile(data: Callable[[], Iterable[Tensor]], q: float) -> float:
    """The ``q`` quantile of all float32 values in a stream, exactly (linear interpolation, as ``numpy.quantile``).

    A radix selection: one pass counts the upper 16 bits of the values in sortable order, a second one the lower 16
    bits within the one or two buckets that hold the wanted ranks. Memory does not grow with the stream.

    Args:
        data: called once per pass; returns a fresh iterable of tensors of any shape.
        q: share in [0, 1].

    Raises:
        ValueError: the stream is empty or holds a value that is not finite.
    """
    upper = torch.zeros(_BUCKETS, dtype=torch.int64)
    for x in data():
        if not torch.isfinite(x).all():
            raise ValueError("quantile: the features hold values that are not finite")
        high = (_sortable(x) >> _BUCKET_BITS) + _BUCKETS // 2
        upper += torch.bincount(high.flatten(), minlength=_BUCKETS).cpu()
    n = int(upper.sum())
    if n == 0:
        raise ValueError("quantile: no values")
    position = q * (n - 1)
    ranks = sorted({math.floor(position), math.ceil(position)})
    ends = upper.cumsum(0)
    buckets = [int(torch.searchsorted(ends, rank, right=True)) for rank in ranks]
    lower = {b: torch.zeros(_BUCKETS, dtype=torch.int64) for b in buckets}
    for x in data():
        key = _sortable(x).flatten()
        high = (key >> _BUCKET_BITS) + _BUCKETS // 2
        for b in lower:
            low = key[high == b] & (_BUCKETS - 1)
            lower[b] += torch.bincount(low, minlength=_BUCKETS).cpu()
    values = []
    for rank, b in zip(ranks, buckets, strict=True):
        before = int(ends[b] - upper[b])
        low_bits = int(torch.searchsorted(lower[b].cumsum(0), rank - before, right=True))
        values.append(_from_sortable(((b - _BUCKETS // 2) << _BUCKET_BITS) | low_bits))
    return values[0] + (values[-1] - values[0]) * (position - ranks[0])
