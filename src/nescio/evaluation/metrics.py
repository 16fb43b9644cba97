"""OOD metrics. They know two arrays of scores and nothing else.

One convention everywhere: a higher score means more in-distribution; ID is the positive class; an image is accepted
when ``score >= threshold``. All results are shares in [0, 1], computed in float64 and exact under ties. NaN is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nescio.core.errors import InputError, check_share

Scores = npt.NDArray[np.float64]


def _scores(name: str, values: npt.ArrayLike) -> Scores:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise InputError(f"expected {name} scores of shape (N,) with N > 0, got {scores.shape}")
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} of the {name} scores are NaN: leave these images out")
    return scores


def thresholds_at_tprs(id_scores: npt.ArrayLike, tprs: npt.ArrayLike) -> Scores:
    """The largest thresholds that accept at least each of some shares of the ID images (no interpolation).

    Args:
        id_scores: ``(N,)``.
        tprs: shares in [0, 1] ``(K,)``; at least one image is always accepted.
    """
    ranked = np.sort(_scores("ID", id_scores))
    # how many ID images must be accepted; the tolerance keeps 0.95 * 2000 from becoming 1900.0000000000002
    accept = np.ceil(np.asarray(tprs, dtype=np.float64) * len(ranked) - 1e-9).clip(1).astype(np.int64)
    return ranked[len(ranked) - accept]


def threshold_at_tpr(id_scores: npt.ArrayLike, tpr: float = 0.95) -> float:
    """The largest threshold that accepts at least a share ``tpr`` of the ID images (no interpolation)."""
    return float(thresholds_at_tprs(id_scores, [check_share("tpr", tpr)])[0])


def fpr_at_tpr(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, tpr: float = 0.95) -> float:
    """Share of OOD images accepted at the largest threshold that accepts at least ``tpr`` of ID. FPR95 by default."""
    ood = _scores("OOD", ood_scores)
    return float(np.count_nonzero(ood >= threshold_at_tpr(id_scores, tpr)) / len(ood))


def fpr_at_tpr_ood_positive(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, tpr: float = 0.95) -> float:
    """The other direction: share of ID images rejected where at least ``tpr`` of the OOD images are rejected."""
    return fpr_at_tpr(-_scores("OOD", ood_scores), -_scores("ID", id_scores), tpr)


def auroc(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Probability that a random ID image scores above a random OOD image, ties counting half (Mann-Whitney)."""
    ranked, probe = np.sort(_scores("ID", id_scores)), np.sort(_scores("OOD", ood_scores))
    swapped = len(probe) > len(ranked)
    if swapped:  # look the smaller set up in the larger one
        ranked, probe = probe, ranked
    below = np.searchsorted(ranked, probe, "left").sum(dtype=np.int64)
    up_to = np.searchsorted(ranked, probe, "right").sum(dtype=np.int64)
    share_below = float(below + up_to) / 2 / (len(ranked) * len(probe))
    return share_below if swapped else 1 - share_below


def _average_precision(positive: Scores, negative: Scores) -> float:
    thresholds, counts = np.unique(positive, return_counts=True)
    true_positives = len(positive) - np.cumsum(counts) + counts
    false_positives = len(negative) - np.searchsorted(np.sort(negative), thresholds, "left")
    precision = true_positives / (true_positives + false_positives)
    return float((counts * precision).sum() / len(positive))


def aupr_in(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Average precision with ID as the positive class (no interpolation; a tied group is one threshold)."""
    return _average_precision(_scores("ID", id_scores), _scores("OOD", ood_scores))


def aupr_out(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> float:
    """Average precision with OOD as the positive class, ranked by the negated score."""
    return _average_precision(-_scores("OOD", ood_scores), -_scores("ID", id_scores))


def risk_coverage(scores: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Scores, Scores]:
    """Error rate among the k highest-scored images, for k = 1…N.

    Args:
        scores: ``(N,)``, of ID images.
        correct: ``(N,)`` bool, whether the classifier was right.

    Returns:
        coverage ``(N,)`` = k/N and risk ``(N,)``. Within a tied group, the expectation over its random orders.
    """
    ranked = _scores("ID", scores)
    right = np.asarray(correct, dtype=bool)
    if right.shape != ranked.shape:
        raise InputError(f"expected {len(ranked)} values for correct, got {right.shape}")
    _, group, size = np.unique(-ranked, return_inverse=True, return_counts=True)
    errors = np.bincount(group, weights=~right, minlength=len(size))
    k = np.arange(1, len(ranked) + 1)
    wrong = np.cumsum(np.repeat(errors / size, size))
    return k / len(ranked), wrong / k


def aurc(scores: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the risk-coverage curve (mean risk over all coverages): lower is better.

    Source: Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.
    """
    return float(risk_coverage(scores, correct)[1].mean())


def augrc(scores: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the generalised risk-coverage curve: lower is better.

    The generalised risk at a coverage is the share of *all* images that are accepted and wrong, so that errors do not
    weigh the more the fewer images are accepted. The area is the average share of undetected errors over all
    coverages, by the trapezoidal rule from (0, 0): ``(1 - a) a (1 - AUROC) + (1 - a)² / 2``, with the accuracy a and
    the AUROC of right against wrong images.

    Source: Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification Systems", NeurIPS 2024.

    Args:
        scores: ``(N,)``, of ID images.
        correct: ``(N,)`` bool, whether the classifier was right.
    """
    coverage, risk = risk_coverage(scores, correct)
    wrong = coverage * risk
    return float(wrong.mean() - wrong[-1] / (2 * len(wrong)))


def detection_accuracy(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, ood_share: float = 0.5) -> float:
    """Share of images that the best threshold judges right, where a stated share of all images is OOD.

    The largest ``(1 - π) · TPR + π · TNR`` over all thresholds, among them one that accepts everything and one that
    accepts nothing; π is ``ood_share``, whatever the numbers of scores. One minus it is the least detection error.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018, section 3.1 (``1 - min {P_in(q ≤ δ) P(x ∈ P_in) + P_out(q > δ) P(x ∈ P_out)}``; equal shares there).
    """
    fpr, tpr = roc(id_scores, ood_scores)
    share = check_share("ood_share", ood_share)
    return float(((1 - share) * tpr + share * (1 - fpr)).max())


def roc(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> tuple[Scores, Scores]:
    """The ROC curve, ID positive: false and true positive rates from (0, 0) to (1, 1), a point per distinct score."""
    positive, negative = np.sort(_scores("ID", id_scores)), np.sort(_scores("OOD", ood_scores))
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    tpr = 1 - np.searchsorted(positive, thresholds, "left") / len(positive)
    fpr = 1 - np.searchsorted(negative, thresholds, "left") / len(negative)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


METRICS: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    "fpr95": fpr_at_tpr,
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
}
"""What a table reports for each OOD set."""


Counts = npt.NDArray[np.int64]
Pair = tuple[float, float]
RESAMPLED = ("fpr95", "auroc")
"""What ``Resampled`` gives, by the names of ``METRICS``."""
TAILS = (0.025, 0.975)
"""Ends of an interval that holds 95 % of the resampled values."""


class Resampled:
    """FPR95 and AUROC of one pair of score arrays under any number of copies of each image: sorted once, read often."""

    def __init__(self, id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> None:
        ids, oods = _scores("ID", id_scores), _scores("OOD", ood_scores)
        self._id_order, self._ood_order = np.argsort(ids, kind="stable"), np.argsort(oods, kind="stable")
        ids, oods = ids[self._id_order], oods[self._ood_order]
        self._below, self._up_to = np.searchsorted(oods, ids, "left"), np.searchsorted(oods, ids, "right")

    @property
    def sizes(self) -> tuple[int, int]:
        """How many ID and how many OOD images."""
        return len(self._id_order), len(self._ood_order)

    @property
    def exact(self) -> Scores:
        """FPR95 and AUROC of the images as they are."""
        ids, oods = (np.ones(n, dtype=np.int64) for n in self.sizes)
        return np.asarray(self(ids, oods), dtype=np.float64)

    def __call__(self, id_copies: Counts, ood_copies: Counts) -> Pair:
        """FPR95 and AUROC where ID image i occurs ``id_copies[i]`` times and OOD image j ``ood_copies[j]`` times."""
        w = id_copies[self._id_order]
        v = np.concatenate([[0], np.cumsum(ood_copies[self._ood_order])])
        n, m = int(w.sum()), int(v[-1])
        may_be_rejected = n - max(1, math.ceil(0.95 * n - 1e-9))
        threshold = int(np.searchsorted(np.cumsum(w), may_be_rejected, "right"))
        area = float((w * (v[self._below] + v[self._up_to])).sum()) / 2 / (n * m)
        return 1 - float(v[self._below[threshold]]) / m, area


@dataclass(frozen=True)
class Difference:
    """How much higher a metric is for the second of two detectors: the difference, its interval, and a p-value."""

    value: float
    low: float
    high: float
    p: float


def intervals(
    id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Pair]:
    """Percentile bootstrap intervals of FPR95 and AUROC; ID and OOD images are resampled separately.

    Returns:
        by metric the lower and upper end of the interval that holds 95 % of the resampled values.
    """
    resampled = Resampled(id_scores, ood_scores)
    values = np.array([resampled(w, v) for w, v in _copies(*resampled.sizes, resamples, seed)])
    low, high = np.quantile(values, TAILS, axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(RESAMPLED)}


def paired(
    first: tuple[npt.ArrayLike, npt.ArrayLike], second: tuple[npt.ArrayLike, npt.ArrayLike], *, resamples: int = 1000
) -> dict[str, Difference]:
    """Paired bootstrap of two detectors on the same images: what the second gains or loses, and how surely.

    Each draw of images is judged by both, so what makes an image hard for both does not count. The p-value is twice
    the smaller share of draws on either side of zero (counting one draw more, so it is never 0).

    Args:
        first: ID and OOD scores of one detector.
        second: those of the other, image by image in the same order.
        resamples: draws.

    Raises:
        InputError: the two were not scored on the same number of images.
    """
    (ids, oods), (ids2, oods2) = ((_scores("ID", i), _scores("OOD", o)) for i, o in (first, second))
    if len(ids) != len(ids2) or len(oods) != len(oods2):
        raise InputError("the two detectors were scored on different images and cannot be paired")
    a, b = Resampled(ids, oods), Resampled(ids2, oods2)
    drawn = _copies(*a.sizes, resamples)
    return _differences(b.exact - a.exact, [np.subtract(b(w, v), a(w, v)) for w, v in drawn])


def unpaired(
    first: tuple[npt.ArrayLike, npt.ArrayLike], second: tuple[npt.ArrayLike, npt.ArrayLike], *, resamples: int = 1000
) -> dict[str, Difference]:
    """As ``paired``, for detectors that were scored on different images: drawn for each by itself."""
    a, b = Resampled(*first), Resampled(*second)
    values = [[r(w, v) for w, v in _copies(*r.sizes, resamples, i)] for i, r in enumerate((a, b))]
    return _differences(b.exact - a.exact, list(np.subtract(values[1], values[0])))


def _differences(exact: Scores, drawn: list[Scores]) -> dict[str, Difference]:
    values = np.array(drawn)
    low, high = np.quantile(values, TAILS, axis=0)
    fewer = np.minimum((values <= 0).sum(axis=0), (values >= 0).sum(axis=0))
    p = np.minimum(1, 2 * (fewer + 1) / (len(values) + 1))
    return {n: Difference(*map(float, (exact[i], low[i], high[i], p[i]))) for i, n in enumerate(RESAMPLED)}


def _copies(n: int, m: int, resamples: int, seed: int = 0) -> Iterator[tuple[Counts, Counts]]:
    """How often each image occurs in each draw with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield (np.bincount(rng.integers(n, size=n), minlength=n), np.bincount(rng.integers(m, size=m), minlength=m))
