"""OOD metrics of histograms: memory does not grow with the images, and the error is known.

Scores of one bin count as tied. Each value comes with the lowest and the highest that the metric has for any scores
with these counts: every bin's images in the worst and in the best order. Counts ``(B,)`` are by ascending bins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nescio.core.errors import InputError

Counts = npt.NDArray[np.int64]


class Bounded(NamedTuple):
    """A metric of the bins, and the lowest and highest value that it may have for the scores in them."""

    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """The most that the value may differ from the exact one."""
        return max(self.value - self.low, self.high - self.value, 0.0)


def detection(ids: Counts, oods: Counts, *, tpr: float = 0.95, ood_share: float = 0.5) -> dict[str, Bounded]:
    """``fpr_at_tpr``, ``auroc``, … of counts of ID and OOD scores; the names are those of the array functions.

    Raises:
        InputError: there are no ID or no OOD scores.
    """
    for name, counts in (("ID", ids), ("OOD", oods)):
        if not counts.sum():
            raise InputError(f"there are no {name} scores: add some first")
    orders = _orders(ids, oods)
    flipped = [(oods[::-1], ids[::-1]) for ids, oods in orders]
    of = {
        "fpr_at_tpr": [_fpr(*order, tpr) for order in orders],
        "fpr_at_tpr_ood_positive": [_fpr(*order, tpr) for order in flipped],
        "auroc": [_auroc(*order) for order in orders],
        # the worst order has no ties at all: each positive image is a threshold of its own
        "aupr_in": [_precision(*orders[0]), _precision(*orders[1]), _precision_untied(*orders[2])],
        "aupr_out": [_precision(*flipped[0]), _precision(*flipped[1]), _precision_untied(*flipped[2])],
        "detection_accuracy": [_accuracy(*order, ood_share) for order in orders],
    }
    return {name: _bounded(*values) for name, values in of.items()}


def selective(right: Counts, wrong: Counts) -> dict[str, Bounded]:
    """``aurc`` and ``augrc`` of counts of ID images that were classified right and wrong."""
    orders = _orders(right, wrong)
    return {f.__name__[1:]: _bounded(*(f(*order) for order in orders)) for f in (_aurc, _augrc)}


def _bounded(value: float, one: float, other: float) -> Bounded:
    return Bounded(value, min(one, other), max(one, other))


def _orders(good: Counts, bad: Counts) -> list[tuple[Counts, Counts]]:
    """The two kinds of images within each bin: tied, the good ones above the bad ones, and below."""
    none = np.zeros_like(good)

    def apart(lower: Counts, upper: Counts) -> Counts:
        return np.stack([lower, upper], axis=1).ravel()

    return [(good, bad), (apart(none, good), apart(bad, none)), (apart(good, none), apart(none, bad))]


def _fpr(ids: Counts, oods: Counts, tpr: float) -> float:
    accepted = ids[::-1].cumsum()
    at = np.searchsorted(accepted, max(1, math.ceil(tpr * accepted[-1] - 1e-9)))
    return float(oods[::-1].cumsum()[at] / oods.sum())


def _auroc(ids: Counts, oods: Counts) -> float:
    return float((ids * (oods.cumsum() - oods / 2)).sum() / (float(ids.sum()) * float(oods.sum())))


def _precision(positive: Counts, negative: Counts) -> float:
    right, wrong = positive[::-1].cumsum(), negative[::-1].cumsum()
    return float((positive[::-1] * right / np.maximum(right + wrong, 1)).sum() / right[-1])


def _precision_untied(positive: Counts, negative: Counts) -> float:
    """The sum of i / (i + w) over positive images i = 1, 2, …, with the w negative ones above each."""
    right, wrong = positive[::-1].cumsum(), negative[::-1].cumsum()
    return float((positive[::-1] - wrong * _harmonic(right - positive[::-1] + wrong, right + wrong)).sum() / right[-1])


def _accuracy(ids: Counts, oods: Counts, ood_share: float) -> float:
    tpr, fpr = (np.append(0, counts[::-1].cumsum()) / counts.sum() for counts in (ids, oods))
    return float(((1 - ood_share) * tpr + ood_share * (1 - fpr)).max())


def _aurc(right: Counts, wrong: Counts) -> float:
    errors, n = wrong[::-1], (right + wrong)[::-1]
    above, rate = n.cumsum() - n, errors / np.maximum(n, 1)
    before = errors.cumsum() - errors
    # the sum of (before + j · rate) / (above + j) over the images j = 1 … n of a bin
    risk = errors + (before - above * rate) * _harmonic(above, above + n)
    return float(risk.sum() / n.sum())


def _augrc(right: Counts, wrong: Counts) -> float:
    errors, n = wrong[::-1], (right + wrong)[::-1]
    return float((n * (errors.cumsum() - errors / 2)).sum() / float(n.sum()) ** 2)


def _harmonic(first: Counts, last: Counts) -> npt.NDArray[np.float64]:
    """The sum of 1 / k over k = first + 1 … last."""
    from scipy.special import digamma

    found: npt.NDArray[np.float64] = digamma(last + 1.0) - digamma(first + 1.0)
    return found
