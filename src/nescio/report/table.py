"""The table as the page shows it: a row for each detector, in each cell its number and what stands beside it."""

from __future__ import annotations

from typing import Any

from nescio.core.spec import names_preset
from nescio.evaluation import tables
from nescio.evaluation.results import Results
from nescio.evaluation.suites.suite import AVERAGE

_BESIDE = {tables.INTERVAL: "interval", tables.DIFFERENCE: "difference"}


def columns(results: Results) -> list[str]:
    """The average, those of groups where there are any, then the OOD sets."""
    return [AVERAGE, *(g for g in results.groups if g != AVERAGE), *(s.name for s in results.ood_sets)]


def rows(results: Results) -> list[dict[str, Any]]:
    """The rows in the order of the detectors.

    ``numbers`` are FPR95 and AUROC by column: ``text`` in percent, whether it is the ``best``, and what stands below
    it: ``interval``, ``published``, ``difference``. ``spec`` is what the name of a preset stands for, ``size`` the
    bytes of what was learned, ``seconds`` those of fitting and scoring without ``own_pass``, the stage that makes a
    pass of its own; ``beside`` says where the published values come from.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in tables.lines(results):
        if line.kind == tables.OURS:
            found[line.detector] = _row(results, line)
            continue
        row, what = found[line.detector], _BESIDE.get(line.kind, "published")
        if what == "published":
            row["beside"] = line.kind
        for ood, cell in line.cells.items():
            for number, text in zip(row["numbers"][ood], (cell.fpr95, cell.auroc), strict=True):
                number[what] = text
    return list(found.values())


def _row(results: Results, line: tables.Line) -> dict[str, Any]:
    about = results.manifest.get("detectors", {}).get(line.detector, {})
    numbers = {
        ood: [{"text": t, "best": b} for t, b in zip((cell.fpr95, cell.auroc), cell.best, strict=True)]
        for ood, cell in line.cells.items()
    }
    return {
        "detector": line.detector,
        "spec": about.get("spec", "") if names_preset(line.detector) else "",
        "size": about.get("bytes"),
        "seconds": results.average(line.detector, "seconds"),
        "own_pass": results.row(line.detector, results.ood_sets[0].name).own_pass,
        "numbers": numbers,
    }
