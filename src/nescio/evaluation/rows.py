"""What a bench run found, row by row, and beside it what papers print."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.core import numerics
from nescio.core.errors import InputError, nearest
from nescio.data.source import Source
from nescio.evaluation.suites.suite import AVERAGE

SHARES = ("fpr95", "auroc", "aupr_in", "aupr_out", "aurc", "id_accuracy")
"""The columns that are shares in [0, 1] here and percent in every file and table."""
_KINDS: dict[str, type[Any]] = {"detector": str, "ood": str, "own_pass": str, "n_id": int, "n_ood": int}
"""Of a row's entries; the others are numbers."""


@dataclass(frozen=True)
class Row:
    """One detector on one OOD set. Shares in [0, 1].

    ``seconds``: fitting the detector plus scoring the ID and the OOD set from the bank, without the network.
    ``own_pass``: the stage for which the network ran over every image once more; empty where the plain pass served.
    ``intervals``: bootstrap 95 % intervals of the metrics, where they were asked for.
    """

    detector: str
    ood: str
    fpr95: float
    auroc: float
    aupr_in: float
    aupr_out: float
    aurc: float
    id_accuracy: float
    n_id: int
    n_ood: int
    seconds: float
    own_pass: str = ""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def printable(self) -> dict[str, Any]:
        """The row as files show it: shares in percent, an interval as two columns."""
        values = asdict(self)
        intervals = values.pop("intervals")
        for name in SHARES:
            values[name] = None if math.isnan(values[name]) else round(values[name] * 100, 4)
        values["seconds"] = round(values["seconds"], 4)
        for name, (low, high) in intervals.items():
            values[f"{name}_low"], values[f"{name}_high"] = round(low * 100, 4), round(high * 100, 4)
        return values

    @classmethod
    def read(cls, printed: Mapping[str, Any]) -> Row:
        """The row that ``printable`` made these entries of. Raises TypeError where one is of another kind."""
        values = {f.name: printed[f.name] for f in fields(Row) if f.name in printed}
        for name, value in values.items():
            kind = _KINDS.get(name, (int, float))
            if not (isinstance(value, kind) or (value is None and name in SHARES)) or isinstance(value, bool):
                raise TypeError(f"'{name}' is {value!r:.40}")
        for name in SHARES:
            values[name] = float("nan") if values[name] is None else values[name] / 100
        bounds = [k.removesuffix("_low") for k in printed if k.endswith("_low")]
        return cls(**values, intervals={k: (printed[f"{k}_low"] / 100, printed[f"{k}_high"] / 100) for k in bounds})


@dataclass(frozen=True)
class Published:
    """What a paper prints for a detector on an OOD set (or on average), and where: shares in [0, 1].

    ``id_accuracy``: of the network that the row is about, where that is printed.
    """

    fpr95: float
    auroc: float
    where: str
    id_accuracy: float | None = None

    def printable(self) -> dict[str, float]:
        """The numbers as files show them, in percent."""
        found = {m: getattr(self, m) for m in ("fpr95", "auroc", "id_accuracy")}
        return {m: round(share * 100, 4) for m, share in found.items() if share is not None}

    @classmethod
    def read(cls, printed: Mapping[str, float], where: str) -> Published:
        """What ``printable`` made these entries of."""
        return cls(where=where, **{m: printed[m] / 100 for m in ("fpr95", "auroc", "id_accuracy") if m in printed})


@dataclass(frozen=True)
class Scored:
    """A data set with every detector's ``scores``, and the ``rows`` of its ``source`` that they belong to.

    ``source`` is None where results were read from their files without the images. ``pred`` is the
    network's own prediction by row of the source, -1 where there is none; None where no plain pass was made.
    """

    name: str
    source: Source | None
    rows: dict[str, npt.NDArray[np.int64]]
    scores: dict[str, npt.NDArray[np.float64]]
    pred: npt.NDArray[np.int64] | None = None


class Measured:
    """What a run measured, as far as tables show it."""

    rows: list[Row]
    manifest: dict[str, Any]
    ood_sets: list[Scored]
    published: dict[tuple[str, str], Published]

    @property
    def detectors(self) -> list[str]:
        """The detectors as given, in order."""
        return list(dict.fromkeys(r.detector for r in self.rows))

    @property
    def groups(self) -> dict[str, list[str]]:
        """OOD sets by what their mean is called: the suite's near and far ones, where it has both, and all."""
        groups: dict[str, list[str]] = self.manifest.get("groups", {})
        return groups | {AVERAGE: [s.name for s in self.ood_sets]}

    def average(self, detector: str, metric: str, group: str = AVERAGE) -> float:
        """Mean of a metric over the OOD sets of a group, each counting the same."""
        return float(np.mean([getattr(self.row(detector, ood), metric) for ood in self.groups[group]]))

    def row(self, detector: object, ood: str) -> Row:
        """The row of one detector, by its name or itself, and OOD set.

        Raises:
            InputError: there is none; the nearest name is named.
        """
        detector = str(detector)
        found = next((r for r in self.rows if (r.detector, r.ood) == (detector, ood)), None)
        if found is not None:
            return found
        what, name, known = "detector", detector, self.detectors
        if detector in known:
            what, name, known = "OOD set", ood, [r.ood for r in self.rows]
        raise InputError(f"these results have no {what} '{name}'{nearest(name, known)}")


def judged(
    ids: Scored, oods: Scored, detector: str, *, equal: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows and scores of the ID images that an OOD set is judged against: all, or as many as it has."""
    scores = ids.scores[detector]
    at = numerics.drawn(len(scores), len(oods.scores[detector]) if equal else len(scores))
    return ids.rows[detector][at], scores[at]
