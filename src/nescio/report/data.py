"""The numbers that the page's script reads: score histograms, and what every threshold accepts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio import metrics
from nescio.results import Results

BINS = 48
STEPS = 1000
"""Positions of the threshold, at most: at each, 0.1 % of the ID images more are rejected."""

Scores = npt.NDArray[np.float64]


def spread(ids: Scores, oods: Scores) -> tuple[float, float]:
    """The span of scores that a histogram shows: all but the few most extreme of either set."""
    both = np.concatenate([ids, oods])
    finite = both[np.isfinite(both)]
    if len(finite) == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.quantile(finite, [0.002, 0.998]))
    return low, max(high, low + 1e-9 * max(1.0, abs(low)))


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
        span = spread(ids, oods)
        id_bins, ood_bins = (np.histogram(v.clip(*span), BINS, span)[0].tolist() for v in (ids, oods))
        about = {"low": _short(span[0]), "high": _short(span[1]), "id": id_bins, "ood": ood_bins}
        sets.append(about | {"images": len(oods), "accepted": _accepted(oods, thresholds)})
    return {"name": detector, "cuts": cuts, "sets": sets}


def _accepted(scores: Scores, thresholds: Scores) -> list[int]:
    """How many scores are at or above each threshold, as differences."""
    counts = len(scores) - np.searchsorted(np.sort(scores), thresholds, "left")
    return [int(step) for step in np.diff(counts, prepend=0)]


def _short(value: float) -> float | None:
    """Six digits draw the same line; JSON has no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
