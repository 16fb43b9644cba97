"""What stages that learn from labelled training features share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nescio import ops
from nescio.errors import InputError, some
from nescio.features import Features, TrainingData


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
    means, counts = ops.class_means(labelled(data, wanted_by), data.head.n_classes)
    refuse_empty(counts, wanted_by)
    return means.to(data.head.weight.dtype)


def mean_feature(data: TrainingData) -> Tensor:
    """Mean of all training features ``(L,)``, whatever their labels, in the head's dtype."""
    pairs = ((f.h, torch.zeros(len(f), dtype=torch.int64, device=f.h.device)) for f in data())
    return ops.class_means(pairs, 1)[0][0].to(data.head.weight.dtype)


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
