"""Plates: figures in panels, as inline SVG for the page (a panel each) and as PNG, SVG and PDF files (all panels)."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nescio.core.files import make_folder, whole

ID_COLOUR, OOD_COLOUR = "#2a7fb8", "#d9722b"
Dash = Literal["-", "--"]
INK = "#010203"  # stands for the page's own text colour until an inline SVG is written
LINES = (ID_COLOUR, OOD_COLOUR, "#1c9e77", "#c2579a", "#b08d00", "#7b61c9", "#35aebf", INK)
"""Colours of the curves that share a panel. They differ in lightness, too, so that the colour-blind can use them."""
OTHERS = "#969ca5"
"""Colour of the curves after the first eight: more colours would not be distinguishable."""
_LINE = "curve-number-"
COLUMNS = 3
"""Panels side by side in a file."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nescio",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Nothing that changes from day to day, and no address."""


@dataclass(frozen=True)
class Key:
    """What a colour (and dash, ``-`` or ``--``) stands for. ``line`` is the number of the curve, if it is one."""

    label: str
    colour: str
    dash: Dash = "-"
    line: int | None = None


def line_keys(names: Sequence[str]) -> list[Key]:
    """Keys of curves: the first eight have colours of their own."""
    return [Key(name, line_colour(i), line=i) for i, name in enumerate(names)]


def line_colour(i: int) -> str:
    """The colour of the curve with this number."""
    return LINES[i] if i < len(LINES) else OTHERS


def line_id(i: int) -> str:
    """The ``gid`` of a curve's artists: the page's script finds the curve by its number."""
    return f"{_LINE}{i}"


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its title, and what draws into it. ``about`` says it in words."""

    title: str
    draw: Callable[[Any], None]
    about: str = ""


@dataclass(frozen=True)
class Plate:
    """A figure.

    Attributes:
        name: of the files, and of the ids within them.
        panels: drawn side by side.
        keys: its legend.
        size: width and height of a panel, in inches.
    """

    name: str
    panels: Sequence[Panel]
    keys: Sequence[Key] = field(default_factory=tuple)
    size: tuple[float, float] = (3.4, 2.3)

    def inline(self) -> list[str]:
        """An SVG for each panel, in the page's text colour, without its title and legend: the page sets these."""
        return [self._panel(i, panel) for i, panel in enumerate(self.panels)]

    def _panel(self, i: int, panel: Panel) -> str:
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=self.size, layout="constrained")
            panel.draw(figure.subplots())
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata=_METADATA["svg"])
        return _embedded(buffer.getvalue(), f"{self.name}-{i}", f"{panel.title}: {panel.about}".strip(": "))

    def save(self, folder: Path) -> list[str]:
        """Write the plate's files, each whole, and say what they are called."""
        make_folder(folder)
        columns = min(COLUMNS, len(self.panels))
        rows = -(-len(self.panels) // columns)
        keys = _legend(self.keys)
        legend_rows = -(-len(keys) // columns)
        with mpl.rc_context(_STYLE):
            width, height = self.size
            figure = Figure(figsize=(width * columns, height * rows + 0.22 * legend_rows + 0.1), layout="constrained")
            axes = figure.subplots(rows, columns, squeeze=False).ravel()
            for ax, panel in zip(axes, self.panels, strict=False):
                panel.draw(ax)
                for line in ax.lines:
                    line.set_gid(None)  # an id may be there once in a file
                ax.set_title(panel.title, parse_math=False)
            for ax in axes[len(self.panels) :]:
                ax.remove()
            if keys:
                handles = [Line2D([], [], color=k.colour, linestyle=k.dash, linewidth=2) for k in keys]
                labels = [_spelled(k.label) for k in keys]
                legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
                for text in legend.get_texts():
                    text.set_parse_math(False)
            figure.draw_without_rendering()
            figure.set_layout_engine(None)  # laid out once, for all three files
            for kind, metadata in _METADATA.items():
                with whole(folder / f"{self.name}.{kind}") as partial:
                    figure.savefig(partial, format=kind, dpi=160, metadata=metadata)
        return [f"{self.name}.{kind}" for kind in _METADATA]


def page_colour(colour: str) -> str:
    """A colour as the page says it: ID, OOD and ink follow light and dark."""
    return {INK: "currentColor", ID_COLOUR: "var(--id)", OOD_COLOUR: "var(--ood)"}.get(colour, colour)


def _legend(keys: Sequence[Key]) -> list[Key]:
    """The keys for a file: all grey curves share one."""
    coloured = [k for k in keys if k.colour != OTHERS]
    more = len(keys) - len(coloured)
    return [*coloured, Key(f"{more} more", OTHERS)] if more else coloured


def _spelled(label: str) -> str:
    """A label as matplotlib shows it: one that begins with an underscore would be left out."""
    return "\N{ZERO WIDTH SPACE}" + label if label.startswith("_") else label


def _embedded(svg: str, name: str, about: str) -> str:
    """An SVG for the inside of a page: its text colour and font, ids of its own, no style sheet and no name spaces."""
    svg = re.sub(
        "|".join((INK, ID_COLOUR, OOD_COLOUR)), lambda colour: page_colour(colour[0]), svg[svg.index("<svg") :]
    )
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>| font-family:[^;\"]*;?", "", svg, flags=re.DOTALL)
    svg = re.sub(rf'id="{_LINE}(\d+)"', r'data-line="\1"', svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    svg = re.sub(r'(?<= )(d|x|y|points)="[^"]*"', _rounded, re.sub(r">\s+<", "><", svg))
    return re.sub(
        r'<svg [^>]*viewBox="([^"]+)"[^>]*>',
        lambda match: f'<svg viewBox="{match[1]}" role="img" aria-label="{html.escape(about)}">',
        svg,
        count=1,
    )


def _rounded(coordinates: re.Match[str]) -> str:
    """Coordinates to a tenth of a pixel on the densest screen, which halves a figure."""
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", coordinates[0])
    return re.sub(r"\s*\n", " ", text)
