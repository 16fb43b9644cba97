"""The numbers that the page's script reads: score histograms, and what every threshold accepts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.evaluation import metrics
from nescio.evaluation.results import Results
from nescio.report import words

BINS = 48
CROWDED = 0.5
"""Share of the ID images in one bin from which the bins are made uneven."""
STEPS = 1000
"""Positions of the threshold, at most: at each, 0.1 % of the ID images more are rejected."""

LARGEST = 1e300
"""Stands for infinity."""

Scores = npt.NDArray[np.float64]


def bin_edges(ids: Scores, oods: Scores) -> Scores:
    """Edges of a histogram's bins, over all but the few most extreme scores; what lies beyond counts at the ends.

    The bins are equally wide, unless most ID images would then fall into one of them, as with a softmax that is nearly
    always 1: then they hold equal shares of the two sets together.
    """
    both = np.concatenate([ids, oods])
    finite = both[np.isfinite(both)]
    if len(finite) == 0:
        return np.linspace(0.0, 1.0, BINS + 1)
    low, high = np.quantile(finite, [0.002, 0.998])
    edges = np.linspace(low, max(high, low + 1e-9 * max(1.0, abs(low))), BINS + 1)
    if counts(ids, edges).max() <= CROWDED * len(ids):
        return edges
    weights = np.concatenate([np.full(len(s), 1 / len(s)) for s in (ids, oods)])[np.isfinite(both)]
    order = finite.argsort()
    reached = np.cumsum(weights[order])
    uneven = np.unique(np.interp(np.linspace(0, reached[-1], BINS + 1), reached, finite[order]))
    return uneven if len(uneven) > 2 else edges


def is_even(edges: Scores) -> bool:
    """Whether all bins are equally wide."""
    widths = np.diff(edges)
    return bool(np.allclose(widths, widths[0], rtol=1e-3, atol=0.0))


def counts(scores: Scores, edges: Scores) -> npt.NDArray[np.int64]:
    """How many scores are in each bin."""
    return np.histogram(scores.clip(edges[0], edges[-1]), edges)[0].astype(np.int64)


def rejected_shares(n: int) -> tuple[list[float], int]:
    """Shares of n ID images that the threshold may reject, and which of them is the default, 5 %.

    One position for each image, or where there are more, 1,000.
    """
    steps = min(n, STEPS)
    shares = [i / steps for i in range(steps)]
    default = math.floor(0.05 * steps + 1e-9)
    shares[default] = 0.05  # with fewer images, the share that falls on the same image
    return shares, default


def embedded(results: Results) -> dict[str, Any]:
    """Everything for the movable threshold, by detector in order.

    How many images are accepted falls from position to position: each number is kept as its difference from the one
    before.
    """
    equal = bool(results.manifest.get("equal", False))
    names = [s.name for s in results.ood_sets]
    shares, default = rejected_shares(max(len(results.id_scores(d, o)) for d in results.detectors for o in names))
    return {
        "sets": names,
        "rejected": shares,
        "default": default,
        "detectors": [_detector(results, d, 1 - np.asarray(shares), equal=equal) for d in results.detectors],
    }


def _detector(results: Results, detector: str, tprs: Scores, *, equal: bool) -> dict[str, Any]:
    sets: list[dict[str, Any]] = []
    cuts: list[dict[str, Any]] = []
    for s in results.ood_sets:
        ids, oods = results.id_scores(detector, s.name), s.scores[detector]
        if equal or not cuts:  # else all sets have the same ID images
            thresholds = metrics.thresholds_at_tprs(ids, tprs)
            shown = [_short(t) for t in thresholds]
            cuts.append({"thresholds": shown, "images": len(ids), "accepted": _accepted(ids, thresholds)})
        edges = bin_edges(ids, oods)
        bins = {"edges": [_short(e) for e in edges], "even": is_even(edges)}
        bins |= {"id": counts(ids, edges).tolist(), "ood": counts(oods, edges).tolist()}
        sets.append(bins | {"images": len(oods), "accepted": _accepted(oods, thresholds)})
    ends = [edge for s in sets for edge in (s["edges"][0], s["edges"][-1])]
    return {"name": detector, "digits": words.digits(ends), "cuts": cuts, "sets": sets}


def _accepted(scores: Scores, thresholds: Scores) -> list[int]:
    """How many scores are at or above each threshold, as differences."""
    accepted = len(scores) - np.searchsorted(np.sort(scores), thresholds, "left")
    return [int(step) for step in np.diff(accepted, prepend=0)]


def _short(value: float) -> float:
    """Twelve digits tell softmaxes near 1 apart; JSON has no infinity."""
    return float(f"{min(max(value, -LARGEST), LARGEST):.12g}")
