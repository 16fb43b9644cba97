"""What a bench run found: rows, a table to read, files to keep."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from nescio.data.sources import Source
from nescio.files import write_whole

SHARES = ("fpr95", "auroc", "aupr_in", "aupr_out", "aurc", "id_accuracy")
"""The columns that are shares in [0, 1] here and percent in every file and table."""
_NAME_WIDTH, _CELL_WIDTH = 16, 16
"""Characters that a detector's name (folded where it is longer) and a cell take in a terminal."""


@dataclass(frozen=True)
class Row:
    """One detector on one OOD set. Shares in [0, 1].

    ``seconds``: fitting the detector plus scoring the ID and the OOD set from the bank, without the network.
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


@dataclass(frozen=True)
class Scored:
    """A data set with every detector's ``scores``, and the ``rows`` of its ``source`` that they belong to."""

    name: str
    source: Source
    rows: dict[str, npt.NDArray[np.int64]]
    scores: dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Results:
    """Rows in the order of detectors, then OOD sets; the manifest that lets anyone run it again; all scores."""

    rows: list[Row]
    manifest: dict[str, Any]
    id_set: Scored
    ood_sets: list[Scored]
    skipped: list[tuple[str, int, str, str]] = field(default_factory=list)
    """``(set, row, image, reason)`` of each image that could not be used."""

    @property
    def detectors(self) -> list[str]:
        """The detectors as given, in order."""
        return list(dict.fromkeys(r.detector for r in self.rows))

    def average(self, detector: str, metric: str) -> float:
        """Mean of a metric over the OOD sets, each counting the same."""
        return float(np.mean([getattr(r, metric) for r in self.rows if r.detector == detector]))

    def row(self, detector: str, ood: str) -> Row:
        """The row of one detector and OOD set."""
        return next(r for r in self.rows if (r.detector, r.ood) == (detector, ood))

    def tables(self, width: int) -> Iterator[Table]:
        """FPR95 / AUROC in percent per OOD set and on average, for a terminal of ``width`` columns.

        One table where it fits, else several below each other. The best of each column is bold.
        """
        columns = {s.name: [(r.fpr95, r.auroc) for r in self.rows if r.ood == s.name] for s in self.ood_sets}
        columns["average"] = [(self.average(d, "fpr95"), self.average(d, "auroc")) for d in self.detectors]
        at_once = max(1, (width - _NAME_WIDTH) // _CELL_WIDTH)
        for start in range(0, len(columns), at_once):
            names = list(columns)[start : start + at_once]
            table = Table(title="FPR95 ↓ / AUROC ↑ in %", title_justify="left")
            table.add_column("detector", overflow="fold")
            cells = []
            for name in names:
                table.add_column(name, justify="right", no_wrap=True)
                lowest, highest = min(f for f, _ in columns[name]), max(a for _, a in columns[name])
                cells.append([f"{_bold(f, f == lowest)} / {_bold(a, a == highest)}" for f, a in columns[name]])
            for detector, *shown in zip(self.detectors, *cells, strict=True):
                table.add_row(detector, *shown)
            yield table

    def to_csv(self) -> str:
        """One line per row; metrics in percent."""
        lines = [r.printable() for r in self.rows]
        names = list(
            dict.fromkeys([f.name for f in fields(Row) if f.name != "intervals"] + [k for r in lines for k in r])
        )
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return out.getvalue()

    def to_json(self) -> str:
        """Manifest, rows and averages; metrics in percent."""
        averages = [
            {"detector": d} | {m: round(self.average(d, m) * 100, 4) for m in ("fpr95", "auroc", "aupr_in", "aupr_out")}
            for d in self.detectors
        ]
        content = {"manifest": self.manifest, "rows": [r.printable() for r in self.rows], "average": averages}
        return json.dumps(content, indent=1, ensure_ascii=False)

    def save(self, folder: str | Path) -> None:
        """Write ``results.csv``, ``results.json`` and, where images were skipped, ``skipped.csv``; each whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").unlink(missing_ok=True)  # it would show other results
        write_whole(folder / "results.csv", self.to_csv())
        write_whole(folder / "results.json", self.to_json())
        if self.skipped:
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows([("set", "row", "image", "reason"), *self.skipped])
            write_whole(folder / "skipped.csv", out.getvalue())
        else:
            (folder / "skipped.csv").unlink(missing_ok=True)


def _bold(share: float, best: bool) -> str:
    text = f"{share * 100:5.2f}"
    return f"[bold]{text}[/bold]" if best else text
