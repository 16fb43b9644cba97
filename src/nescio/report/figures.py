"""Figures as inline SVG that takes its text colour from the page."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nescio import metrics
from nescio.results import Results

ID_COLOUR, OOD_COLOUR = "#2a7fb8", "#d9722b"
_LINES = (
    "#2a7fb8",
    "#d9722b",
    "#3a9b57",
    "#a45ac8",
    "#c8434a",
    "#8c6d4f",
    "#d071b0",
    "#7f7f7f",
    "#9aa827",
    "#31a9b8",
)
_TEXT = "#010203"  # stands for the page's own text colour until the SVG is written
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nescio",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def histograms(results: Results, detector: str) -> str:
    """Score histograms of ID against each OOD set, with the threshold that accepts 95 % of ID."""
    ids = results.id_set.scores[detector]
    threshold = metrics.threshold_at_tpr(ids)
    with mpl.rc_context(_STYLE):
        figure, axes = _panels(len(results.ood_sets), 2.3)
        for ax, ood in zip(axes, results.ood_sets, strict=True):
            oods = ood.scores[detector]
            both = np.concatenate([ids, oods])
            low, high = np.quantile(both[np.isfinite(both)], [0.002, 0.998])
            bins = np.linspace(low, max(high, low + 1e-9), 50)
            for scores, colour, label in ((ids, ID_COLOUR, "ID"), (oods, OOD_COLOUR, ood.name)):
                weights = np.full(len(scores), 100 / len(scores))
                ax.hist(scores.clip(low, high), bins, weights=weights, color=colour, alpha=0.6, label=label)
            ax.axvline(threshold, color=_TEXT, linewidth=1, linestyle="--")
            accepted = results.row(detector, ood.name).fpr95
            ax.set_title(f"{ood.name}: {accepted:.1%} accepted", fontsize=9)
            ax.set_xlabel("score")
            ax.legend(loc="best", fontsize=8)
        axes[0].set_ylabel("% of images")
        return _svg(figure, f"Score histograms of {detector}")


def roc_curves(results: Results) -> str:
    """One ROC panel per OOD set, all detectors in each."""
    with mpl.rc_context(_STYLE):
        figure, axes = _panels(len(results.ood_sets), 3.3)
        for ax, ood in zip(axes, results.ood_sets, strict=True):
            for i, detector in enumerate(results.detectors):
                fpr, tpr = metrics.roc(results.id_set.scores[detector], ood.scores[detector])
                at = np.linspace(0, 1, 201)  # a few hundred points draw the same curve as ten thousand
                ax.plot(at, np.interp(at, fpr, tpr), color=_LINES[i % len(_LINES)], linewidth=1.3, label=detector)
            ax.axhline(0.95, color=_TEXT, linewidth=0.7, linestyle=":")
            ax.set(title=ood.name, xlabel="OOD accepted", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
        axes[0].set_ylabel("ID accepted")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        return _svg(figure, "ROC curves")


def _panels(n: int, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(3 * n, height), layout="constrained")
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    svg = re.sub(
        r'<svg [^>]*viewBox="([^"]+)"[^>]*>',
        r'<svg viewBox="\1" role="img" aria-label="LABEL">',
        svg,
        count=1,
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # ids must differ between the figures of one page
    prefix = re.sub(r"\W+", "", label)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("LABEL", label)
