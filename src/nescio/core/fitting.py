"""What stages that learn from labelled training features share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.errors import InputError, some
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.quantiles import count
from nescio.core.quantiles import quantiles as quantiles_of

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


def class_means(data: FeatureSet, wanted_by: str) -> Callable[[], tuple[Tensor, Tensor]]:
    """What gives the mean training feature of each class ``(C, L)`` float64, and the classes' sizes ``(C,)``.

    Raises:
        InputError: when it is called: a label is missing or outside the head's range.
    """
    return data.asked("class means", lambda: numerics.class_means(labelled(data, wanted_by), data.n_classes))


def prototypes(data: FeatureSet, wanted_by: str) -> Tensor:
    """Mean training feature of each class by true label, ``(C, L)``, in the head's dtype.

    Raises:
        InputError: a label is missing or outside the head's range, or a class has no image; the class is named.
    """
    means, counts = class_means(data, wanted_by)()
    refuse_empty(counts, wanted_by)
    return means.to(data.dtype)


def class_means_of_right(data: FeatureSet, wanted_by: str) -> tuple[Tensor, Tensor]:
    """Mean training feature of each class over the rows that are predicted right ``(C, L)`` float64, and over how many.

    The mean of the whole class where none is. It is that of all rows less those predicted wrong, mostly a few.

    Raises:
        InputError: as for ``prototypes``.
    """

    def wrong() -> tuple[Tensor, Tensor]:
        pairs = (
            (f.h[bad], f.labels[bad]) for f in data.chunks() if f.labels is not None for bad in [f.pred != f.labels]
        )
        return numerics.class_means(pairs, data.n_classes)

    asked = class_means(data, wanted_by), data.asked("class means of those predicted wrong", wrong)
    means, counts = asked[0]()
    refuse_empty(counts, wanted_by)
    wrong_means, wrongs = asked[1]()
    right = counts - wrongs
    sums = means * counts[:, None] - wrong_means * wrongs[:, None]
    return torch.where(right[:, None] > 0, sums / right.clamp(min=1)[:, None], means), right


def mean_feature(data: FeatureSet) -> Tensor:
    """Mean of all training features ``(L,)``, whatever their labels, in the head's dtype."""

    def mean() -> Tensor:
        pairs = ((f.h, torch.zeros(len(f), dtype=torch.int64, device=f.h.device)) for f in data.chunks())
        return numerics.class_means(pairs, 1)[0][0]

    return data.asked("mean", mean)().to(data.dtype)


def scatter(data: FeatureSet) -> Callable[[], numerics.Scatter]:
    """What gives the second moment of the training features ``(L, L)`` float64."""
    return data.asked("scatter", lambda: numerics.scatter(f.h for f in data.chunks()))


def moments(data: FeatureSet, wanted_by: str) -> numerics.Moments:
    """Means and covariances of the training features by true label, in one read.

    Raises:
        InputError: as for ``prototypes``.
    """
    products, means = scatter(data), class_means(data, wanted_by)
    refuse_empty(means()[1], wanted_by)
    return data.asked("moments", lambda: numerics.moments(products(), *means()))()


def quantiles(data: FeatureSet, shares: Sequence[float]) -> list[float]:
    """Quantiles of all entries of the training features, exactly: in one read where all are float16, else in two."""

    def entries() -> Iterator[Tensor]:
        return (f.h for f in data.chunks())

    counts = data.asked("values counted", lambda: count(entries()))()
    return quantiles_of(entries, shares, counts)


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
