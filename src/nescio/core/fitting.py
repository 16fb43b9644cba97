"""What stages that learn from labelled training features share."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.errors import InputError, some
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features

BY_IMAGES = (
    "give the images to nescio.bench, nescio.fit or a loaded detector (nescio.load(FILE)(images)), or compute the "
    "features with that pass: session.features(images, readers=[detector])"
)
"""Where a detector gets features of the pass that it reads."""


def check_width(f: Features) -> None:
    """Refuse raw features that the head cannot read.

    Raises:
        InputError: they are not of shape (B, L), L the head's.
    """
    if not f.has_h:
        return
    if f.h.ndim != 2:
        raise InputError(f"expected features of shape (B, L), got {tuple(f.h.shape)}")
    if f.has_head and f.h.shape[1] != (width := f.head.weight.shape[1]):
        raise InputError(f"expected features of shape (B, {width}), which the head reads, got {tuple(f.h.shape)}")


def checked(data: FeatureSet, network_pass: str, columns: Collection[str], wanted_by: str) -> FeatureSet:
    """The same data, whose first whole pass looks for what no detector can be fitted on.

    Args:
        data: raw features.
        network_pass: key of the pass that they must come from.
        columns: probes and heads whose columns are read.
        wanted_by: the detector, for the message.

    Raises:
        InputError: while the data are read: there are none, another pass made them, or some of them are not finite.
    """

    def check(f: Features, title: str, start: int, rest: Iterator[Features]) -> None:
        check_width(f)
        if f.network_pass != network_pass:
            raise InputError(
                f"these {title} features do not come from the pass that detector '{wanted_by}' is fitted on: "
                f"{BY_IMAGES}"
            )
        bad = ~f.finite(columns)
        if bad.any():
            first, total, n = start + int(bad.nonzero()[0]), start + len(f), int(bad.sum())
            for other in rest:
                total, n = total + len(other), n + int((~other.finite(columns)).sum())
            raise InputError(
                f"{n:,} of {total:,} {title} features have NaN or infinity (the first is row {first:,}); leave "
                "these rows out (nescio.bench and nescio.fit do this for images)"
            )

    def watched(rows: FeatureSet, title: str) -> FeatureSet:
        seen = False

        def chunks() -> Iterator[Features]:
            nonlocal seen
            stream, start = filter(len, rows.chunks()), 0
            for f in stream:
                if not seen:
                    check(f, title, start, stream)
                start += len(f)
                yield f
            if start == 0:
                raise InputError(
                    f"there are no {title} features, and detector '{wanted_by}' is fitted on them: give some"
                )
            seen = True

        return FeatureSet.stream(chunks if rows.has_rows else None, rows.head)

    held_out = data.held_out
    return watched(data, "training").with_held_out(None if held_out is None else watched(held_out, "held-out"))


def labelled(data: FeatureSet, wanted_by: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs ``h (B, L)``, ``y (B,)`` of the training features.

    Raises:
        InputError: a label is missing or outside the head's range.
    """
    n, start = data.n_classes, 0
    for f in data.chunks():
        asked = f"stage '{wanted_by}' needs images with labels in 0…{n - 1}"
        if f.labels is None:
            raise InputError(f"{asked}, but there are no labels: give them as fit(h, labels)")
        bad = ((f.labels < 0) | (f.labels >= n)).nonzero().flatten()
        if len(bad):
            row, label = start + int(bad[0]), int(f.labels[bad[0]])
            raise InputError(f"{asked}, but row {row:,} has the label {label}: correct it, or leave such rows out")
        start += len(f)
        yield f.h, f.labels


def refuse_empty(counts: Tensor, wanted_by: str) -> None:
    """Name the classes that have no training image."""
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if empty:
        raise InputError(
            f"stage '{wanted_by}' needs training images of each of {len(counts)} classes, but has none of "
            f"class {some(empty)}; add some to the training set"
        )


def prototypes(data: FeatureSet, wanted_by: str) -> Tensor:
    """Mean training feature of each class by true label, ``(C, L)``, in the head's dtype.

    Raises:
        InputError: a label is missing or outside the head's range, or a class has no image; the class is named.
    """
    means, counts = numerics.class_means(labelled(data, wanted_by), data.n_classes)
    refuse_empty(counts, wanted_by)
    return means.to(data.dtype)


def mean_feature(data: FeatureSet) -> Tensor:
    """Mean of all training features ``(L,)``, whatever their labels, in the head's dtype."""
    pairs = ((f.h, torch.zeros(len(f), dtype=torch.int64, device=f.h.device)) for f in data.chunks())
    return numerics.class_means(pairs, 1)[0][0].to(data.dtype)


def subsample(data: FeatureSet, share: float, *, rest: bool = False) -> Iterator[Features]:
    """A random share of the training features, the same for any chunking; at least the first one.

    ``rest`` gives what the same call without it leaves out.
    """
    rng = np.random.default_rng(0)
    first = True
    for f in data.chunks():
        keep = rng.random(len(f)) < share
        keep[0] |= first
        first = False
        keep ^= rest
        if keep.any():
            yield f.rows(torch.from_numpy(np.flatnonzero(keep)))


def held_out(data: FeatureSet, share: float) -> tuple[FeatureSet, FeatureSet]:
    """Data to fit on, and ID features for a scale that nothing is fitted on.

    The second are those given for it, or else a random share of the training features, which the first then lack.
    """
    if data.held_out is not None:
        return data, data.held_out
    if not data.has_rows:
        return data, data
    fit = FeatureSet.stream(lambda: subsample(data, share, rest=True), data.head)
    return fit, FeatureSet.stream(lambda: subsample(data, share), data.head)
