"""Batches of decoded images, read by worker processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nescio.core.errors import BadImage, InputError
from nescio.data.decode import NO_MEMORY, decode
from nescio.data.preprocess import AnyTransform
from nescio.data.source import Source
from nescio.data.workers import MEMORY, in_order


@dataclass
class Batch:
    """Consecutive images from ``start``: those decoded (``good``: their positions), and the reasons of the others."""

    start: int
    size: int
    images: Tensor | None
    good: Any
    bad: list[tuple[int, str]]


def _batch(
    source: Source, transform: AnyTransform, spans: Sequence[range], number: int, entering: Callable[[int], None]
) -> Batch:
    """A whole batch by its number, so that a process reads its images one after the other."""
    start, size = spans[number].start, len(spans[number])
    images: list[Tensor] = []
    good: list[int] = []
    bad: list[tuple[int, str]] = []
    for i in range(size):
        try:
            entering(start + i)
            images.append(transform.geometry(decode(source.read(start + i))))
            good.append(i)
        except InputError:
            raise  # not this image's fault
        except Exception as e:  # noqa: BLE001 - whatever one image does, the others go on
            bad.append((i, why_not(e)))
    return Batch(start, size, torch.stack(images) if images else None, np.array(good, dtype=np.int64), bad)


def why_not(e: Exception) -> str:
    """The reason why an image could not be read."""
    if isinstance(e, BadImage):
        return str(e)
    return NO_MEMORY if isinstance(e, MemoryError) else f"{type(e).__name__}: {e}"


def default_workers(processes: int = 1) -> int:
    """Decoding processes of each of so many processes on this machine: one per core, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // processes, 8))


def spans(start: int, stop: int, size: int) -> list[range]:
    """Consecutive ranges of ``size`` positions, the last one as long as what is left."""
    return [range(at, min(at + size, stop)) for at in range(start, stop, size)]


def read_batches(
    source: Source, transform: AnyTransform, start: int, batch_size: int, workers: int | None
) -> Iterator[Batch]:
    """Images from number ``start`` on, in order, ``batch_size`` at a time; all else as for ``read_spans``."""
    return read_spans(source, transform, spans(start, len(source), batch_size), workers)


def read_spans(
    source: Source, transform: AnyTransform, batches: Sequence[range], workers: int | None = None
) -> Iterator[Batch]:
    """Batches of images, as the transform's geometry leaves them.

    Whatever a single image does wrong becomes a reason in its batch; the others go on.

    Args:
        source: the images.
        transform: its geometry is applied.
        batches: the positions of each.
        workers: decoding processes; one per core, at most 8, where None. An image that ends two of them, or takes more
            than ``MEMORY``, is a bad one. 0 decodes in this process, which an image can then end.

    Raises:
        InputError: the source as a whole cannot be read on; or no decoding process lives.
    """
    workers = default_workers() if workers is None else workers
    # twice: each image, then all of them as one tensor
    pixels = 2 * transform.nbytes * max(map(len, batches), default=0)
    yield from in_order(functools.partial(_batch, source, transform, batches), len(batches), workers, MEMORY + pixels)
