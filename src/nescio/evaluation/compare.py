"""Two runs, or two detectors of one run, against each other: what got better, what got worse, and how surely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from rich.table import Table

from nescio.core.errors import InputError, nearest, some
from nescio.evaluation import metrics
from nescio.evaluation.results import Results
from nescio.evaluation.rows import Scored
from nescio.evaluation.tables import table_of

Verdict = Literal["better", "worse", "same"]
_LESS_IS_BETTER = {"fpr95": True, "auroc": False}


@dataclass(frozen=True)
class Change:
    """How a metric of a detector on an OOD set changed, in shares; ``paired`` where both scored the same images."""

    first: str
    second: str
    ood: str
    metric: str
    difference: metrics.Difference
    paired: bool
    tolerance: float

    @property
    def verdict(self) -> Verdict:
        """Better or worse where the interval excludes zero and the change is above the tolerance."""
        d = self.difference
        if d.low <= 0 <= d.high or abs(d.value) <= self.tolerance:
            return "same"
        return "better" if (d.value < 0) == _LESS_IS_BETTER[self.metric] else "worse"


def compare(
    old: Results,
    new: Results,
    *,
    pairs: Mapping[str, str] | None = None,
    tolerance: float = 0.001,
    resamples: int = 1000,
) -> list[Change]:
    """Changes of FPR95 and AUROC of each detector on each OOD set that both runs have, with 95 % intervals.

    Where both runs scored the same images the bootstrap is paired; else the images are drawn apart for each.

    Args:
        old: the run to compare with.
        new: the run that is judged.
        pairs: which detector of ``new`` stands against one of ``old``; equal names where None.
        tolerance: changes up to this share count as none, however sure they are.
        resamples: draws of the bootstrap.

    Raises:
        InputError: there is no detector or OOD set that both have.
    """
    if old.manifest.get("equal", False) != new.manifest.get("equal", False):
        raise InputError(
            "one of the two runs used equal numbers of ID and OOD images, equal= (--equal), the other did not: run one "
            "again"
        )
    pairs = {d: d for d in old.detectors if d in new.detectors} if pairs is None else pairs
    for detectors, results in ((pairs, old), (pairs.values(), new)):
        unknown = [d for d in detectors if d not in results.detectors]
        if unknown:
            raise InputError(f"the results have no detector '{unknown[0]}'{nearest(unknown[0], results.detectors)}")
    theirs = {s.name: s for s in new.ood_sets}
    shared = [(s, theirs[s.name]) for s in old.ood_sets if s.name in theirs]
    if not pairs or not shared:
        what, ours, others = ("OOD set", [s.name for s in old.ood_sets], list(theirs))
        if not pairs:
            what, ours, others = "detector", old.detectors, new.detectors
        raise InputError(f"the two runs have no {what} in common: {some(ours)} and {some(others)}")
    return [
        Change(first, second, before.name, metric, difference, paired, tolerance)
        for first, second in pairs.items()
        for before, after in shared
        for paired, found in [_judged(old, new, before, after, first, second, resamples)]
        for metric, difference in found.items()
    ]


def _judged(
    old: Results, new: Results, before: Scored, after: Scored, first: str, second: str, resamples: int
) -> tuple[bool, dict[str, metrics.Difference]]:
    names = ("id", before.name)
    same = all(old.manifest["data"][n]["identity"] == new.manifest["data"][n]["identity"] for n in names)
    if not same:
        return False, metrics.unpaired(
            (old.id_scores(first, before.name), before.scores[first]),
            (new.id_scores(second, after.name), after.scores[second]),
            resamples=resamples,
        )
    ids = _common(old.judged(first, before.name), new.judged(second, after.name))
    oods = _common((before.rows[first], before.scores[first]), (after.rows[second], after.scores[second]))
    return True, metrics.paired((ids[0], oods[0]), (ids[1], oods[1]), resamples=resamples)


_Scores = npt.NDArray[np.float64]
_Judged = tuple[npt.NDArray[np.int64], _Scores]
"""Rows and scores."""


def _common(one: _Judged, other: _Judged) -> tuple[_Scores, _Scores]:
    """The scores of the images that both have: an image may have been bad in one run or pass alone."""
    _, at, at_too = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    return one[1][at], other[1][at_too]


def table_of_changes(changes: list[Change]) -> Table:
    """The changes for a terminal, in percentage points, worse ones marked."""
    columns = ("detector", "OOD set", "metric"), ("change", "interval", "p", "")
    table = table_of(*columns, title="change in percentage points, 95 % interval")
    style = {"worse": "bold red", "better": "green", "same": ""}
    for c in changes:
        d = c.difference
        name = c.first if c.first == c.second else f"{c.first} → {c.second}"
        span = f"{d.low * 100:+.2f} … {d.high * 100:+.2f}"
        verdict = c.verdict if c.paired else f"{c.verdict}, other images"
        metric = {"fpr95": "FPR95 ↓", "auroc": "AUROC ↑"}[c.metric]
        table.add_row(name, c.ood, metric, f"{d.value * 100:+.2f}", span, f"{d.p:.3f}", verdict, style=style[c.verdict])
    return table
