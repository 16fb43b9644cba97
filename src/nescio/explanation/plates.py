"""The picture of what a classifier says at every position, as in Figure 2 of Pei, ICLR 2024, for any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from nescio.core.files import whole

_ID, _OOD = (0.10, 0.75, 0.25), (0.90, 0.12, 0.12)
_SIDE = 1.7
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Seen:
    """One image as one model sees it.

    Attributes:
        pixels: ``(S, S, 3)`` uint8.
        confidence: on the class, ``(h, w)`` in [0, 1].
        sampled: ``(h, w)``: 1 ID, -1 OOD, 0 neither.
        ood: the OOD head's probability of ID ``(h, w)``, or None.
        confidence_title, ood_title: what stands above the two.
    """

    pixels: Array
    confidence: Array
    sampled: Array
    ood: Array | None
    confidence_title: str
    ood_title: str


def draw_maps(images: Sequence[tuple[str, Sequence[Seen]]], models: Sequence[str], gamma: float, path: Path) -> None:
    """Draw a row per image; per model its confidence map, the sampled patches and, with an OOD head, that head's map.

    Args:
        images: name of each image, and what each model sees in it.
        models: their names.
        gamma: the sampler's threshold, for the caption.
        path: ends in .png or .svg.
    """
    widths = [3 if images[0][1][m].ood is not None else 2 for m in range(len(models))]
    with mpl.rc_context({"font.size": 7, "font.family": "sans-serif"}):
        figure = Figure(
            figsize=(_SIDE * (1 + sum(widths)) + 0.8, _SIDE * 1.12 * len(images) + 0.6), layout="constrained"
        )
        grid = figure.subplots(len(images), 1 + sum(widths), squeeze=False)
        for row, (name, seen) in zip(grid, images, strict=True):
            _show(row[0], seen[0].pixels, name)
            for m, one in enumerate(seen):
                _draw_one(row[1 + sum(widths[:m]) :], one)
        for m, model in enumerate(models):
            first = grid[0][1 + sum(widths[:m])]
            above = {"xycoords": "axes fraction", "xytext": (0, 17), "textcoords": "offset points"}
            label = first.annotate(model, (0, 1), **above, fontsize=9, fontweight="bold", parse_math=False)
            label.set_in_layout(False)  # a long name must not push the columns apart
        figure.suptitle(" ", fontsize=18)  # room for these names
        bar = figure.colorbar(
            mpl.cm.ScalarMappable(cmap="viridis"),
            ax=grid.ravel().tolist(),
            shrink=min(0.6, 2.5 / len(images)),
            pad=0.01,
            aspect=30,
        )
        bar.set_label("confidence on the class / the OOD head's probability of ID")
        figure.supxlabel(
            f"patches: green sampled as ID (confidence ≥ {gamma:g}), red as OOD (< {1 - gamma:.2g}), others neither",
            fontsize=7,
        )
        with whole(path) as partial:
            figure.savefig(partial, format=path.suffix.lstrip(".").lower(), dpi=150)


def _draw_one(row: Sequence[Any], seen: Seen) -> None:
    _show(row[0], seen.pixels, seen.confidence_title, seen.confidence)
    _show(row[1], seen.pixels, f"{(seen.sampled == 1).sum()} ID, {(seen.sampled == -1).sum()} OOD patches")
    tint = np.zeros((*seen.sampled.shape, 4))
    tint[seen.sampled == 1] = (*_ID, 0.45)
    tint[seen.sampled == -1] = (*_OOD, 0.45)
    row[1].imshow(tint, extent=_extent(seen.pixels), interpolation="nearest")
    if seen.ood is not None:
        _show(row[2], seen.pixels, seen.ood_title, seen.ood)


def _show(ax: Any, pixels: Array, title: str, heat: Array | None = None) -> None:
    ax.set_axis_off()
    ax.set_title(title, fontsize=7, pad=3, parse_math=False)
    grey = pixels if heat is None else np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    ax.imshow(grey, extent=_extent(pixels))
    if heat is not None:
        ax.imshow(heat, extent=_extent(pixels), cmap="viridis", vmin=0, vmax=1, alpha=0.65, interpolation="nearest")


def _extent(pixels: Array) -> tuple[float, float, float, float]:
    return 0, pixels.shape[1], pixels.shape[0], 0
