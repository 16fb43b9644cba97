"""OOD metrics. They know two arrays of scores and nothing else.

One convention everywhere: a higher score means more in-distribution; ID is the positive class; an image is accepted
when ``score >= threshold``. All results are shares in [0, 1], computed in float64 and exact under ties. NaN is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nescio.errors import InputError, check_share

Scores = npt.NDArray[np.float64]


def _scores(name: str, values: npt.ArrayLike) -> Scores:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise InputError(f"expected {name} scores of shape (N,) with N > 0, got {scores.shape}")
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} of the {name} scores are NaN")
    return scores


def _threshold(sorted_id: Scores, tpr: float) -> float:
    # how many ID images must be accepted; the tolerance keeps 0.95 * 2000 from becoming 1900.0000000000002
    accept = max(1, math.ceil(check_share("tpr", tpr) * len(sorted_id) - 1e-9))
    return float(sorted_id[len(sorted_id) - accept])


def threshold_at_tpr(id_scores: npt.ArrayLike, tpr: float = 0.95) -> float:
    """The largest threshold that accepts at least a share ``tpr`` of the ID images (no interpolation)."""
    return _threshold(np.sort(_scores("ID", id_scores)), tpr)


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


def bootstrap(
    metric: Callable[[npt.ArrayLike, npt.ArrayLike], float],
    id_scores: npt.ArrayLike,
    ood_scores: npt.ArrayLike,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric; ID and OOD images are resampled separately.

    Returns:
        the lower and upper end of the interval that holds a share ``level`` of the resampled values.
    """
    ids, oods = _scores("ID", id_scores), _scores("OOD", ood_scores)
    tail = (1 - check_share("level", level)) / 2
    rng = np.random.default_rng(seed)
    values = [
        metric(ids[rng.integers(len(ids), size=len(ids))], oods[rng.integers(len(oods), size=len(oods))])
        for _ in range(resamples)
    ]
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
