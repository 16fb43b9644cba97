"""How FPR95 and AUROC change along a range of settings, as in Figures 6 and 7 of the FM + LS paper."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from nescio.evaluation.results import Results
from nescio.report.figures import LINES, Panel, Plate, line_colour, line_id, line_keys

_APART = 0.045
"""Share of the axis that a line of text takes."""
Range = tuple[str, list[str], list[float]]
"""A spec with a range, the specs that it stands for, and the values along it."""


def along(specs: list[str]) -> tuple[str, list[float]] | None:
    """The option in which specs differ, and its values; None where they differ in more than one number."""
    split = [re.split(r"(?<==)(-?\d+\.?\d*(?:e-?\d+)?)", s) for s in specs]
    if len({tuple(pieces[::2]) for pieces in split}) != 1:
        return None
    numbers = list(zip(*(pieces[1::2] for pieces in split), strict=True))
    varying = [i for i, column in enumerate(numbers) if len(set(column)) > 1]
    if len(varying) != 1:
        return None
    before = "".join(split[0][: 2 * varying[0] + 1])
    stage, option = re.findall(r"([\w-]+):[^+]*?(\w+)=$", before)[-1]
    return f"{option} of {stage}", [float(v) for v in numbers[varying[0]]]


def range_plates(results: Results) -> list[Plate]:
    """A figure per varied option: FPR95 and AUROC along it, the average thick, single OOD sets thin.

    What varies is in the manifest's ``ranges``: the specs that each range stood for. No figure where a range varies
    anything but a single number.
    """
    groups: dict[str, list[Range]] = {}
    for spec, specs in results.manifest.get("ranges", {}).items():
        varied = along(specs)
        if varied is not None:
            groups.setdefault(varied[0].split(" ")[0], []).append((spec, specs, varied[1]))
    return [_plate(results, option, lines[: len(LINES)]) for option, lines in groups.items()]


def _plate(results: Results, option: str, lines: list[Range]) -> Plate:
    def panel(metric: str, title: str) -> Panel:
        return Panel(title, lambda ax: _draw(ax, results, metric, option, lines), "average thick, circled where best")

    keys = line_keys([spec for spec, _, _ in lines])
    panels = [panel("fpr95", "FPR95 in % (lower is better)"), panel("auroc", "AUROC in % (higher is better)")]
    return Plate(f"curve-{option}", panels, keys, (4.6, 3.0))


def _draw(ax: Any, results: Results, metric: str, option: str, lines: list[Range]) -> None:
    for number, (_, specs, values) in enumerate(lines):
        ends: list[tuple[float, str]] = []
        look: dict[str, Any] = {"color": line_colour(number), "gid": line_id(number)}
        for ood in results.ood_sets:
            single = [100 * getattr(results.row(s, ood.name), metric) for s in specs]
            ax.plot(values, single, linewidth=0.7, alpha=0.45, **look)
            ends.append((single[-1], ood.name))
        mean = [100 * results.average(s, metric) for s in specs]
        ax.plot(values, mean, linewidth=2.2, marker="o", markersize=3.5, **look)
        best = int(np.argmin(mean) if metric == "fpr95" else np.argmax(mean))
        ax.plot(values[best], mean[best], "o", markersize=8, fillstyle="none", **look)
        if number == 0:
            _label(ax, values[-1], ends)
    ax.set(xlabel=option)


def _label(ax: Any, x: float, ends: list[tuple[float, str]]) -> None:
    """Name the thin lines where they end, those that end together in one line of text."""
    low, high = ax.get_ylim()
    together: list[tuple[float, list[str]]] = []
    for y, name in sorted(ends):
        if together and y - together[-1][0] < _APART * (high - low):
            together[-1][1].append(name)
        else:
            together.append((y, [name]))
    for y, names in together:
        ax.annotate(", ".join(names), (x, y), (7, 0), textcoords="offset points", fontsize=7, va="center")
