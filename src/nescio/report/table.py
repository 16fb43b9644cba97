"""The table as the page shows it: a row for each detector, in each cell its number and what stands beside it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nescio.core.spec import names_preset
from nescio.evaluation import tables
from nescio.evaluation.results import Results
from nescio.evaluation.suites.suite import AVERAGE

METRICS = ("fpr95", "auroc")


@dataclass(frozen=True)
class Number:
    """A number in percent as text, whether it is the best of its column, and what stands below it."""

    text: str
    best: bool
    interval: str = ""
    published: str = ""
    difference: str = ""


@dataclass
class TableRow:
    """A detector's line.

    Attributes:
        detector: as it was given.
        spec: what the name of a preset stands for.
        numbers: by OOD set or average, FPR95 and AUROC.
        seconds: of fitting and scoring, on average over the OOD sets.
        own_pass: the stage that makes a pass of its own, which these leave out.
        size: bytes of what it learned; None where the manifest does not say.
        beside: where the published values come from.
    """

    detector: str
    spec: str
    seconds: float
    size: int | None
    numbers: dict[str, tuple[Number, Number]] = field(default_factory=dict)
    beside: str = ""
    own_pass: str = ""


def columns(results: Results) -> list[str]:
    """The average, those of groups where there are any, then the OOD sets."""
    return [AVERAGE, *(g for g in results.groups if g != AVERAGE), *(s.name for s in results.ood_sets)]


def rows(results: Results) -> list[TableRow]:
    """The rows in the order of the detectors."""
    found: dict[str, TableRow] = {}
    for line in tables.lines(results):
        if line.kind == tables.OURS:
            found[line.detector] = _row(results, line)
            continue
        row = found[line.detector]
        if line.kind not in (tables.INTERVAL, tables.DIFFERENCE):
            row.beside = line.kind
        for ood, cell in line.cells.items():
            fpr95, auroc = row.numbers[ood]
            row.numbers[ood] = (_with(fpr95, line.kind, cell.fpr95), _with(auroc, line.kind, cell.auroc))
    return list(found.values())


def _with(number: Number, kind: str, text: str) -> Number:
    if kind == tables.INTERVAL:
        return replace(number, interval=text)
    return replace(number, difference=text) if kind == tables.DIFFERENCE else replace(number, published=text)


def _row(results: Results, line: tables.Line) -> TableRow:
    about = results.manifest.get("detectors", {}).get(line.detector, {})
    spec = about.get("spec", "") if names_preset(line.detector) else ""
    numbers = {
        ood: (Number(cell.fpr95, cell.best[0]), Number(cell.auroc, cell.best[1])) for ood, cell in line.cells.items()
    }
    seconds = results.average(line.detector, "seconds")
    own_pass = results.row(line.detector, results.ood_sets[0].name).own_pass
    return TableRow(line.detector, spec, seconds, about.get("bytes"), numbers, own_pass=own_pass)
