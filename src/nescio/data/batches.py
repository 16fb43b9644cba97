"""Batches of decoded images, read by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nescio.data.decode import decode
from nescio.data.sources import Source
from nescio.data.transforms import Transform
from nescio.errors import BadImage


@dataclass
class Batch:
    """Consecutive images from ``start``: those decoded (``good``: their places), and the reasons of the others."""

    start: int
    size: int
    images: Tensor | None
    good: Any
    bad: list[tuple[int, str]]


class _Images(Dataset[Batch]):
    """Whole batches by number, so that a worker reads its images one after the other."""

    def __init__(self, source: Source, transform: Transform, start: int, batch_size: int) -> None:
        self.source, self.transform = source, transform
        self.starts = range(start, len(source), batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> Batch:
        start = self.starts[number]
        size = min(self.starts.step, len(self.source) - start)
        images: list[Tensor] = []
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        for i in range(size):
            try:
                images.append(self.transform.geometry(decode(self.source.read(start + i))))
                good.append(i)
            except BadImage as e:
                bad.append((i, str(e)))
            except Exception as e:  # noqa: BLE001 - whatever one image does, the others go on
                bad.append((i, f"{type(e).__name__}: {e}"))
        return Batch(start, size, torch.stack(images) if images else None, np.array(good, dtype=np.int64), bad)


def default_workers() -> int:
    """Decoding processes: one per core, at most 8."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def read_batches(
    source: Source, transform: Transform, start: int, batch_size: int, workers: int | None
) -> Iterator[Batch]:
    """Images from number ``start`` on, in order, as the transform's geometry leaves them.

    Whatever a single image does wrong becomes a reason in its batch; the others go on.

    Args:
        source: the images.
        transform: its geometry is applied.
        start: the first image.
        batch_size: images per batch.
        workers: decoding processes; one per core, at most 8, where None. 0 decodes in this process.
    """
    images = _Images(source, transform, start, batch_size)
    workers = default_workers() if workers is None else workers
    # a generator of its own: whoever reads images keeps the random numbers of whoever trains as they are
    own = torch.Generator()
    return iter(DataLoader(images, batch_size=None, num_workers=min(workers, len(images)), generator=own))
