"""Batches of decoded images, read by worker processes."""

from __future__ import annotations

import functools
import math
import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nescio.core.errors import BadImage, InputError
from nescio.data.decode import NO_MEMORY, decode
from nescio.data.preprocess import AnyTransform
from nescio.data.source import Source
from nescio.data.workers import AHEAD, MEMORY, in_order


@dataclass
class Batch:
    """Consecutive images from ``start``: those decoded (``good``: their positions), and the reasons of the others.

    The decoded ones are a tensor ``(B, C, H, W)`` with channels last in memory.
    """

    start: int
    size: int
    images: Tensor | None
    good: Any
    bad: list[tuple[int, str]]


class _Slots:
    """Memory shared with forked processes, through which batches come back: a slot for each that may be on its way.

    A pipe would copy them three times and hold few; PyTorch's shared memory asks the busy process for each one.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._memory, self._count, self._nbytes = mmap.mmap(-1, count * nbytes), count, nbytes

    def _slot(self, number: int, dtype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
        at = number % self._count * self._nbytes
        return np.frombuffer(self._memory, dtype, count=math.prod(shape), offset=at).reshape(shape)

    def put(self, number: int, batch: Batch) -> Parcel:
        """Leave a batch's images in the slot of its number, if they fit there."""
        if batch.images is None or batch.images.nbytes > self._nbytes:
            return batch, None
        pixels = batch.images.permute(0, 2, 3, 1).numpy()
        form = pixels.dtype.str, pixels.shape
        self._slot(number, *form)[:] = pixels
        batch.images = None
        return batch, form

    def take(self, number: int, parcel: Parcel) -> Batch:
        """The batch, with a copy of its images."""
        batch, form = parcel
        if form is not None:  # not PyTorch's copy: its threads would wait for cores that decode
            batch.images = torch.from_numpy(self._slot(number, *form).copy()).permute(0, 3, 1, 2)
        return batch


Parcel = tuple[Batch, tuple[str, Sequence[int]] | None]
"""A batch, and type and shape of its images where these lie in a slot."""


def _sent(
    source: Source,
    transform: AnyTransform,
    spans: Sequence[range],
    slots: _Slots | None,
    number: int,
    entering: Callable[[int], None],
) -> Parcel:
    """A batch on its way from the process that decodes it."""
    batch = _batch(source, transform, spans, number, entering)
    return slots.put(number, batch) if slots else (batch, None)


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
    return Batch(start, size, _stacked(images) if images else None, np.array(good, dtype=np.int64), bad)


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Images ``(C, H, W)`` as a batch ``(B, C, H, W)`` with channels last in memory, as they were decoded."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


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
    most = transform.nbytes * max(map(len, batches), default=0)
    processes, slots = min(workers, len(batches)), None
    if processes * most > 0 and multiprocessing.get_context().get_start_method() == "fork":
        slots = _Slots(AHEAD * processes, most)
    work = functools.partial(_sent, source, transform, batches, slots)
    # twice: each image, then all of them as one tensor
    for number, parcel in enumerate(in_order(work, len(batches), workers, MEMORY + 2 * most)):
        yield slots.take(number, parcel) if slots else parcel[0]
