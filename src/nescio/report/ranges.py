"""How FPR95 and AUROC change along a range of settings, as in Figures 6 and 7 of the FM + LS paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nescio.files import whole
from nescio.results import Results

KINDS = ("png", "svg", "pdf")
_APART = 0.045
"""Share of the axis that a line of text takes."""
_COLOURS = ("#2a7fb8", "#d9722b", "#3a9b57", "#a45ac8", "#c8434a", "#8c6d4f")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "nescio",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def along(specs: list[str]) -> tuple[str, list[float]] | None:
    """The option in which specs differ, and its values; None where they differ in more than one number."""
    split = [re.split(r"(?<==)(-?\d+\.?\d*(?:e-?\d+)?)", s) for s in specs]
    if len({tuple(parts[::2]) for parts in split}) != 1:
        return None
    numbers = list(zip(*(parts[1::2] for parts in split), strict=True))
    varying = [i for i, column in enumerate(numbers) if len(set(column)) > 1]
    if len(varying) != 1:
        return None
    before = "".join(split[0][: 2 * varying[0] + 1])
    stage, option = re.findall(r"([\w-]+):[^+]*?(\w+)=$", before)[-1]
    return f"{option} of {stage}", [float(v) for v in numbers[varying[0]]]


def draw_curves(results: Results, folder: Path) -> list[Path]:
    """Draw a figure per varied option as PNG, SVG and PDF into ``folder``: the average thick, single OOD sets thin.

    What varies is in the manifest's ``ranges``: the specs that each range stood for.

    Returns:
        the files; none where no range varies a single number.
    """
    groups: dict[str, list[tuple[str, list[str], list[float]]]] = {}
    for given, specs in results.manifest.get("ranges", {}).items():
        varied = along(specs)
        if varied is not None:
            groups.setdefault(varied[0].split(" ")[0], []).append((given, specs, varied[1]))
    written = []
    for option, lines in groups.items():
        with mpl.rc_context(_STYLE):
            figure = _figure(results, option, lines)
            for kind in KINDS:
                path = folder / f"curve-{option}.{kind}"
                with whole(path) as partial:
                    figure.savefig(partial, format=kind, dpi=160, metadata={} if kind == "png" else _undated(kind))
                written.append(path)
    return written


def _undated(kind: str) -> dict[str, None]:
    return {"Date": None} if kind == "svg" else {"CreationDate": None}


def _figure(results: Results, option: str, lines: list[tuple[str, list[str], list[float]]]) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for ax, metric, name in zip(figure.subplots(1, 2), ("fpr95", "auroc"), ("FPR95 ↓", "AUROC ↑"), strict=True):
        ends: list[tuple[float, str]] = []
        for colour, (given, specs, values) in zip(_COLOURS, lines, strict=False):
            for ood in results.ood_sets:
                single = [100 * getattr(results.row(s, ood.name), metric) for s in specs]
                ax.plot(values, single, color=colour, linewidth=0.7, alpha=0.45)
                ends.append((single[-1], ood.name))
            mean = [100 * results.average(s, metric) for s in specs]
            ax.plot(values, mean, color=colour, linewidth=2.2, marker="o", markersize=3.5, label=given)
            best = int(np.argmin(mean) if metric == "fpr95" else np.argmax(mean))
            ax.plot(values[best], mean[best], "o", color=colour, markersize=8, fillstyle="none")
        ax.set(xlabel=option, ylabel=f"{name} in %")
        _label(ax, lines[0][2][-1], ends[: len(results.ood_sets)])
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, title="average, thick; circled: best")
    return figure


def _label(ax: Any, x: float, ends: list[tuple[float, str]]) -> None:
    """Name the thin lines of the first range where they end, those that end together in one line of text."""
    low, high = ax.get_ylim()
    together: list[tuple[float, list[str]]] = []
    for y, name in sorted(ends):
        if together and y - together[-1][0] < _APART * (high - low):
            together[-1][1].append(name)
        else:
            together.append((y, [name]))
    for y, names in together:
        ax.annotate(", ".join(names), (x, y), (4, 0), textcoords="offset points", fontsize=6.5, va="center")
