"""Thresholds with a guarantee: split conformal calibration on held-out ID scores.

Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; the beta law of what one calibration set
gives and the stronger form that follows from it: Vovk, "Conditional validity of inductive conformal predictors",
ACML 2012. All of it assumes that new ID images are exchangeable with the calibration images, and says nothing of OOD
images.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self, TypeGuard

import numpy as np
import numpy.typing as npt

from nescio.core.errors import InputError

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

NOISE = 2e-5
"""Of the median distance of calibration scores from the threshold: scores that differ by less are the same."""
ROUNDING = 1e-6
"""Of the threshold, where half of the calibration scores or more are equal to it."""


@dataclass(frozen=True)
class Group:
    """Predicted classes that share a threshold, and the calibration scores of the images that were predicted so.

    Attributes:
        classes: the predicted classes; None for all.
        scores: ``(n,)``, ascending.
        rank: the threshold is the ``rank``-th smallest of them.
    """

    classes: tuple[int, ...] | None
    scores: Scores = field(repr=False)  # thousands, which nobody wants printed
    rank: int

    @property
    def threshold(self) -> float:
        """The score that is enough to be accepted."""
        return float(self.scores[self.rank - 1])

    @cached_property
    def tolerance(self) -> float:
        """By how much less a score may be and still count as the same: what rounding may change, and more.

        The same image has other last bits in another batch or on another machine. In 20 detectors on two networks
        that was at most 4e-6 of the median distance of the calibration scores from the threshold.
        """
        with np.errstate(invalid="ignore"):
            scale = float(np.nanmedian(np.abs(self.scores - self.threshold)))
        tolerance = NOISE * scale if scale else ROUNDING * abs(self.threshold)
        return tolerance if math.isfinite(tolerance) else 0.0

    @cached_property
    def reached(self) -> Scores:
        """The least scores that count as the calibration scores ``(n,)``, ascending.

        Both the verdict and the p-value follow from these. To count a score as a higher one only ever accepts more
        images and raises p-values, so that what is promised of ID images holds.
        """
        return self.scores - self.tolerance

    @property
    def least(self) -> float:
        """The least accepted score: the threshold, less the tolerance."""
        return float(self.reached[self.rank - 1])


@dataclass(frozen=True)
class ClassTally:
    """What became of the calibration images that were predicted as one class.

    Attributes:
        index: the predicted class.
        images: of the calibration images.
        rejected: of these.
        median: of their scores.
    """

    index: int
    images: int
    rejected: int
    median: float


@dataclass(frozen=True)
class Calibration:
    """What says, of any image's score, how it stands among the calibration images', and whether to accept it.

    Attributes:
        accept: share of new ID images that is to be accepted, in (0, 1).
        confidence: of the calibration sets that could have been drawn, the share for which that is to hold; None where
            it is to hold on average over them.
        groups: one for all images, or several by predicted class.
        by_class: how the calibration images fared, for a picture of the input later on; empty where unknown.
    """

    accept: float
    confidence: float | None
    groups: tuple[Group, ...]
    by_class: tuple[ClassTally, ...] = field(default=(), repr=False)

    @classmethod
    def fit(
        cls,
        scores: npt.ArrayLike,
        pred: npt.ArrayLike | None = None,
        *,
        accept: float = 0.95,
        confidence: float | None = None,
        n_classes: int | None = None,
    ) -> Self:
        """Thresholds from held-out ID scores.

        With ``n_classes``, each predicted class with enough images has its own threshold, and holds the guarantee by
        itself; the others share one, together with the smallest class that has enough where they alone do not suffice.

        Args:
            scores: of ID images that neither the classifier nor the detector was fitted on ``(n,)``.
            pred: the raw predictions ``(n,)``; needed with ``n_classes``.
            accept: share of new ID images to accept, in (0, 1).
            confidence: for the form that holds for this share of calibration sets, in (0, 1).
            n_classes: number of classes, for thresholds by predicted class.

        Raises:
            InputError: a share is none, a score is NaN, or there are too few images for the guarantee.
        """
        check_shares(accept, confidence)
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 1 or np.isnan(values).any():
            raise InputError(f"expected calibration scores of shape (n,) without NaN, got shape {values.shape}")
        least = images_needed(accept, confidence)
        if len(values) < least:
            raise InputError(
                f"{len(values):,} calibration images are too few to accept {accept:g}"
                f"{f' with confidence {confidence:g}' if confidence else ''}: give {least:,} or more"
            )
        split: list[tuple[tuple[int, ...] | None, Scores]] = [(None, values)]
        if n_classes is not None:
            if pred is None:
                raise InputError(
                    "thresholds by predicted class need the predictions of the calibration images: give them"
                )
            predicted = np.asarray(pred, dtype=np.int64)
            split = [(c, values[np.isin(predicted, c)]) for c in _classes(predicted, n_classes, least)]
        groups = (Group(c, np.sort(s), threshold_rank(len(s), accept, confidence)) for c, s in split)
        made = cls(accept, confidence, tuple(groups))
        return made if pred is None else replace(made, by_class=made.tally(values, np.asarray(pred, dtype=np.int64)))

    def check(self, n_classes: int) -> None:
        """Refuse what ``fit`` does not make: for a calibration that comes out of a file.

        Args:
            n_classes: of the classifier.

        Raises:
            InputError: a share, a score, a rank, the groups of classes or the tallies do not follow from each other.
        """
        check_shares(self.accept, self.confidence)
        for g in self.groups:
            if g.scores.dtype != np.float64 or g.scores.ndim != 1 or not np.isfinite(g.scores).all():
                raise InputError("calibration scores are not finite float64 numbers (n,)")
            if (np.diff(g.scores) < 0).any():
                raise InputError("calibration scores are not in ascending order")
            rank = threshold_rank(len(g.scores), self.accept, self.confidence)
            if rank < 1 or type(g.rank) is not int or g.rank != rank:
                raise InputError(f"the rank {g.rank} of a threshold is not the one that the guarantee needs ({rank})")
        named = [c for g in self.groups if g.classes is not None for c in g.classes]
        together = len(self.groups) == 1 and self.groups[0].classes is None
        if not together and (any(type(c) is not int for c in named) or sorted(named) != list(range(n_classes))):
            raise InputError("the groups of predicted classes must have each class once")
        if self.by_class:
            self._check_tallies()

    def _check_tallies(self) -> None:
        numbers = [n for t in self.by_class for n in (t.index, t.images, t.rejected)]
        if any(type(n) is not int or n < 0 for n in numbers) or not all(_is_number(t.median) for t in self.by_class):
            raise InputError("the counts by class are not numbers of images and scores")
        for g in self.groups:
            tallies = [t for t in self.by_class if g.classes is None or t.index in g.classes]
            rejected = {int(np.count_nonzero(g.scores < t)) for t in (g.least, g.threshold)}  # as counted now, and once
            if sum(t.images for t in tallies) != len(g.scores) or sum(t.rejected for t in tallies) not in rejected:
                raise InputError("the counts by class do not match the calibration scores")

    @property
    def alpha(self) -> float:
        """Share of new ID images that may be rejected."""
        return _alpha(self.accept)

    @property
    def n(self) -> int:
        """Calibration images."""
        return sum(len(g.scores) for g in self.groups)

    def accepted(self, scores: Scores, pred: Labels) -> npt.NDArray[np.bool_]:
        """Whether each of some scores ``(B,)`` with raw predictions ``(B,)`` is accepted; NaN is not."""
        accepted = np.zeros(len(scores), dtype=bool)
        for group, of_group in self._split(pred):
            accepted[of_group] = scores[of_group] >= group.least
        return accepted

    def close(self, scores: Scores, pred: Labels, tolerances: float = 0.5) -> npt.NDArray[np.bool_]:
        """Whether each of some scores ``(B,)`` is at most that many tolerances from the least accepted one."""
        close = np.zeros(len(scores), dtype=bool)
        for group, of_group in self._split(pred):
            with np.errstate(invalid="ignore"):  # of infinities, nothing is near
                close[of_group] = np.abs(scores[of_group] - group.least) <= tolerances * group.tolerance
        return close

    def p_values(self, scores: Scores, pred: Labels) -> Scores:
        """Of scores ``(B,)``: ``(1 + calibration images that score this low) / (n + 1)``, within the group.

        Scores that differ by less than ``Group.tolerance`` count as the same. For a new ID image,
        ``P(p_value <= a) <= a`` for every a; a rejected image has a p-value of at most ``alpha``.
        It is about ID images alone: no probability that the image is one.
        """
        p = np.full(len(scores), np.nan)
        for group, of_group in self._split(pred):
            p[of_group] = (1 + np.searchsorted(group.reached, scores[of_group], "right")) / (len(group.scores) + 1)
        return np.where(np.isnan(scores), np.nan, p)

    def tally(self, scores: Scores, pred: Labels) -> tuple[ClassTally, ...]:
        """How scores ``(B,)`` with raw predictions ``(B,)`` fare, by predicted class."""
        rejected = ~self.accepted(scores, pred)
        each = ((int(c), pred == c) for c in np.unique(pred))
        return tuple(ClassTally(c, int(m.sum()), int(rejected[m].sum()), float(np.median(scores[m]))) for c, m in each)

    def _split(self, pred: Labels) -> list[tuple[Group, npt.NDArray[np.bool_]]]:
        everything = np.ones(len(pred), dtype=bool)
        return [(g, everything if g.classes is None else np.isin(pred, g.classes)) for g in self.groups]

    def rejects_at_most(self, certainty: float = 0.9) -> float:
        """The share of new ID images that this very calibration set rejects, at most, with this certainty.

        Over groups, the largest. Exact where scores do not tie, cautious where they do.
        """
        from scipy.special import betaincinv

        return max(float(betaincinv(g.rank, len(g.scores) + 1 - g.rank, certainty)) for g in self.groups)

    def promise(self) -> str:
        """The guarantee, as it is, in words."""
        n, rejected = f"{self.n:,} images", f"at most {100 * self.alpha:.4g} % of new ID images"
        by_class = "" if self.groups[0].classes is None else ", in each group of predicted classes,"
        assumed = "it assumes that new ID images are like these"
        if self.confidence is not None:
            sets = f"{100 * self.confidence:.4g} % of the calibration sets that could have been drawn"
            return f"{rejected}{by_class} are rejected, for {sets} ({n}); {assumed}"
        worst = f"up to {100 * self.rejects_at_most():.3g} % with 90 % certainty"
        return (
            f"{rejected}{by_class} are rejected, on average over calibration sets that could have been drawn ({n}); "
            f"this one may reject more: {worst}; {assumed}"
        )


def check_shares(accept: object, confidence: object) -> None:
    """Refuse shares that no calibration can be made for. Raises InputError."""
    for name, share in (("accept", accept), ("confidence", confidence)):
        if share is None and name == "confidence":
            continue
        if not _is_number(share):
            raise InputError(f"{name}={str(share)[:40]} is not a number")
        if not 0 < share < 1:
            hint = "; write 0.95 for 95 %" if 1 < share <= 100 else ""
            raise InputError(f"{name}={share:g} must be between 0 and 1{hint}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def threshold_rank(n: int, accept: float, confidence: float | None = None) -> int:
    """Which of n ascending calibration scores is the threshold, counted from one; 0 where n is too small.

    With the k-th smallest as the least accepted score, new ID images are rejected at a rate that over calibration sets
    is Beta(k, n + 1 - k) (where scores do not tie). Its mean k / (n + 1) is at most α for ``k = ⌊α (n + 1)⌋``; with
    ``confidence``, k is the largest for which the rate is at most α with that probability.
    """
    alpha = _alpha(accept)
    highest = math.floor(round(alpha * (n + 1), 9))
    if confidence is None:
        return highest
    from scipy.special import betainc  # a quarter of a second that few commands need

    # P(rate <= α) falls in k
    return bisect_right(range(1, n + 1), -confidence, key=lambda k: -betainc(k, n + 1 - k, alpha))


def images_needed(accept: float, confidence: float | None = None) -> int:
    """The fewest calibration images with which anything can be rejected and the guarantee holds."""
    alpha = _alpha(accept)
    if confidence is None:
        return math.ceil(round(1 / alpha - 1, 9)) or 1
    return math.ceil(round(math.log(1 - confidence) / math.log(1 - alpha), 9))


def _alpha(accept: float) -> float:
    return round(1 - accept, 12)  # 0.05, not 0.050000000000000044: a rank is a whole number of it


def _classes(pred: Labels, n_classes: int, least: int) -> list[tuple[int, ...]]:
    """Each class with enough images by itself, those with too few together."""
    counts = np.bincount(pred, minlength=n_classes)
    by_count = np.argsort(counts, kind="stable")
    shared = int(np.count_nonzero(counts < least))
    while shared and counts[by_count[:shared]].sum() < least and shared < n_classes:
        shared += 1
    groups = [tuple(sorted(by_count[:shared].tolist()))] if shared else []
    return groups + [(int(c),) for c in np.sort(by_count[shared:])]
