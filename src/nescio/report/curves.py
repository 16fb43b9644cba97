"""Plates of scores: histograms, ROC curves, risk against coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.evaluation import metrics
from nescio.evaluation.results import Results
from nescio.report.data import bin_edges, counts, is_even
from nescio.report.figures import ID_COLOUR, INK, LINES, OOD_COLOUR, Key, Panel, Plate, line_colour, line_id, line_keys
from nescio.report.words import percent

MOST_CURVES = 40
"""Detectors whose curves are drawn: more would take too much of the page."""
_POINTS = 121
"""A hundred points draw the same curve as ten thousand."""
ID_AND_OOD = (Key("ID", ID_COLOUR), Key("OOD", OOD_COLOUR))


def score_histograms(results: Results, detector: str) -> Plate:
    """A detector's scores of ID against each OOD set, with the threshold that accepts 95 % of ID."""

    def panel(ood: str, oods: npt.NDArray[np.float64]) -> Panel:
        ids = results.id_scores(detector, ood)
        threshold = metrics.threshold_at_tpr(ids)

        def draw(ax: Any) -> None:
            draw_histograms(ax, ids, oods, threshold)
            ax.set(xlabel=f"score{ax.get_xlabel()}", ylabel="% of images")

        accepted = percent(results.row(detector, ood).fpr95, 1)
        return Panel(f"{ood}: {accepted} % accepted", draw, f"scores of {detector}")

    return Plate("scores", [panel(s.name, s.scores[detector]) for s in results.ood_sets], ID_AND_OOD)


def draw_histograms(
    ax: Any, ids: npt.NDArray[np.float64], oods: npt.NDArray[np.float64], threshold: float | None = None
) -> None:
    """Shares of the ID and of the OOD images by bin, one over the other, and a line where the threshold is.

    Where the bins are uneven they are drawn equally wide all the same, and the x label says so.
    """
    edges = bin_edges(ids, oods)
    positions = edges if is_even(edges) else np.arange(len(edges))
    for values, colour in ((ids, ID_COLOUR), (oods, OOD_COLOUR)):
        shares = counts(values, edges) / len(values) * 100
        ax.stairs(shares, positions, fill=True, color=colour, alpha=0.55, linewidth=0)
        ax.stairs(shares, positions, color=colour, linewidth=0.8)
    if threshold is not None:
        ax.axvline(np.interp(threshold, edges, positions), color=INK, linewidth=1, linestyle="--")
    ax.set_xlim(positions[0], positions[-1])
    ax.set_ylim(0)
    if positions is not edges:
        at = np.unique(np.linspace(0, len(edges) - 1, 4).astype(int))
        ax.set_xticks(at, [f"{edges[i]:.3g}" for i in at])
        ax.set_xlabel(", by rank")


def roc_curves(results: Results, detectors: Sequence[str]) -> Plate:
    """A panel for each OOD set, a curve for each detector, the first of them on top."""

    def panel(ood: str, scores: dict[str, npt.NDArray[np.float64]]) -> Panel:
        def draw(ax: Any) -> None:
            at = np.linspace(0, 1, _POINTS) ** 2  # closer together where curves are steep
            for i, detector in reversed(list(enumerate(detectors))):
                fpr, tpr = metrics.roc(results.id_scores(detector, ood), scores[detector])
                _draw_line(ax, i, at, np.interp(at, fpr, tpr))
            ax.axhline(0.95, color=INK, linewidth=0.6, linestyle=":")
            ax.set(xlabel="share of OOD accepted", ylabel="share of ID accepted", xlim=(0, 1), ylim=(0, 1.01))

        return Panel(ood, draw, f"ROC curves of {len(detectors)} detectors")

    return Plate("roc", [panel(s.name, s.scores) for s in results.ood_sets], line_keys(detectors), (3.4, 2.7))


def risk_coverage(results: Results, detectors: Sequence[str]) -> Plate | None:
    """The classifier's errors among the ID images that a detector is surest of; None where no label is known."""
    if results.correct is None:
        return None
    correct = results.correct

    def draw(ax: Any) -> None:
        for i, detector in reversed(list(enumerate(detectors))):
            rows = results.id_set.rows[detector]
            known = correct[rows] >= 0
            coverage, risk = metrics.risk_coverage(results.id_set.scores[detector][known], correct[rows][known] == 1)
            at = np.unique(np.linspace(0, len(risk) - 1, _POINTS).astype(int))
            _draw_line(ax, i, coverage[at], risk[at] * 100)
        ax.set(xlabel="coverage: share of ID images kept", ylabel="errors among them, %", xlim=(0, 1))
        ax.set_ylim(0)

    panel = Panel("ID images", draw, f"risk against coverage of {len(detectors)} detectors")
    return Plate("risk-coverage", [panel], line_keys(detectors), (3.9, 2.6))


def _draw_line(ax: Any, i: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> None:
    """A detector's curve: the better its place, the thicker."""
    width = 1.9 if i == 0 else 1.1 if i < len(LINES) else 0.6
    ax.plot(x, y, color=line_colour(i), linewidth=width, gid=line_id(i))
