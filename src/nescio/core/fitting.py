"""What stages that learn from labelled training features share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.errors import InputError, some
from nescio.core.features import Features, TrainingData

Chunks = Callable[[], Iterator[Features]]
BY_IMAGES = (
    "give the images to nescio.bench, nescio.fit or a loaded detector (nescio.load(FILE)(images)), or make the "
    "features by that pass: extract(…, network_pass=…), with pass_of(detector) or training_pass(detector) of "
    "nescio.run.extraction"
)
"""Where a detector gets features of the pass that it reads."""


def check_width(f: Features) -> None:
    """Refuse raw features that the head cannot read.

    Raises:
        InputError: they are not of shape (B, L), L the head's.
    """
    width = f.head.weight.shape[1]
    if f.h.ndim != 2 or f.h.shape[1] != width:
        raise InputError(f"expected features of shape (B, {width}), as the head reads, got {tuple(f.h.shape)}")


def checked(data: TrainingData, network_pass: str, columns: Collection[str], wanted_by: str) -> TrainingData:
    """The same data, whose first whole pass looks for what no detector can be fitted on.

    Args:
        data: raw features.
        network_pass: key of the pass that they must come from.
        columns: probes and heads whose columns are read.
        wanted_by: the detector, for the message.

    Raises:
        InputError: while the data are read: there are none, another pass made them, or some of them are not finite.
    """

    def watched(chunks: Chunks | None, title: str) -> Chunks | None:
        return None if chunks is None else _Watched(chunks, title, network_pass, columns, wanted_by)

    return TrainingData(data.head, watched(data.chunks, "training"), watched(data.held_out, "held-out"))


class _Watched:
    """Chunks of features that are checked until all of them have been seen once."""

    def __init__(self, chunks: Chunks, title: str, network_pass: str, columns: Collection[str], wanted_by: str) -> None:
        self.chunks, self.title, self.network_pass = chunks, title, network_pass
        self.columns, self.wanted_by, self.seen = columns, wanted_by, False

    def __call__(self) -> Iterator[Features]:
        stream, start = self.chunks(), 0
        for f in stream:
            if not self.seen:
                self._check(f, start, stream)
            start += len(f)
            yield f
        if start == 0:
            raise InputError(f"there are no {self.title} features, which detector '{self.wanted_by}' is fitted on")
        self.seen = True

    def _check(self, f: Features, start: int, rest: Iterator[Features]) -> None:
        check_width(f)
        if f.network_pass != self.network_pass:
            raise InputError(
                f"these {self.title} features come from another pass than the one that detector '{self.wanted_by}' is "
                f"fitted on: {BY_IMAGES}"
            )
        bad = ~f.finite(self.columns)
        if bad.any():
            first, total, n = start + int(bad.nonzero()[0]), start + len(f), int(bad.sum())
            for other in rest:
                total, n = total + len(other), n + int((~other.finite(self.columns)).sum())
            raise InputError(
                f"{n:,} of {total:,} {self.title} features hold NaN or infinity, the first is row {first:,}; leave "
                "these rows out (nescio.bench and nescio.fit leave such images out by themselves)"
            )


def labelled(data: TrainingData, wanted_by: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs ``h (B, L)``, ``y (B,)`` of the training features.

    Raises:
        InputError: a label is missing or outside the head's range.
    """
    n = data.head.n_classes
    for f in data():
        if f.labels is None or (f.labels < 0).any() or (f.labels >= n).any():
            raise InputError(f"stage '{wanted_by}' needs images with labels in 0…{n - 1}")
        yield f.h, f.labels


def refuse_empty(counts: Tensor, wanted_by: str) -> None:
    """Name the classes that have no training image."""
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if empty:
        raise InputError(
            f"stage '{wanted_by}' needs training images of each of {len(counts)} classes, but there are none of "
            f"class {some(empty)}; add some to the training set"
        )


def prototypes(data: TrainingData, wanted_by: str) -> Tensor:
    """Mean training feature of each class by true label, ``(C, L)``, in the head's dtype.

    Raises:
        InputError: a label is missing or outside the head's range, or a class has no image; the class is named.
    """
    means, counts = numerics.class_means(labelled(data, wanted_by), data.head.n_classes)
    refuse_empty(counts, wanted_by)
    return means.to(data.head.weight.dtype)


def mean_feature(data: TrainingData) -> Tensor:
    """Mean of all training features ``(L,)``, whatever their labels, in the head's dtype."""
    pairs = ((f.h, torch.zeros(len(f), dtype=torch.int64, device=f.h.device)) for f in data())
    return numerics.class_means(pairs, 1)[0][0].to(data.head.weight.dtype)


def subsample(data: TrainingData, share: float, *, rest: bool = False) -> Iterator[Features]:
    """A random share of the training features, the same for any chunking; at least the first one.

    ``rest`` gives what the same call without it leaves out.
    """
    rng = np.random.default_rng(0)
    first = True
    for f in data():
        keep = rng.random(len(f)) < share
        keep[0] |= first
        first = False
        keep ^= rest
        if keep.any():
            yield f.rows(torch.from_numpy(np.flatnonzero(keep)).to(f.h.device))


def held_out(data: TrainingData, share: float) -> tuple[TrainingData, TrainingData]:
    """Data to fit on, and ID features for a scale that nothing is fitted on.

    The second are those given for it, or else a random share of the training features, which the first then lack.
    """
    if data.held_out is not None:
        return data, TrainingData(data.head, data.held_out)
    if data.chunks is None:
        return data, data
    fit = TrainingData(data.head, lambda: subsample(data, share, rest=True))
    return fit, TrainingData(data.head, lambda: subsample(data, share))
