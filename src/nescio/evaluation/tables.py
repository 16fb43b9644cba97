"""Results as tables: for a terminal, Markdown and LaTeX. FPR95 / AUROC in percent, the best of each column marked."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nescio.evaluation.rows import Measured, Published

_NAME_WIDTH, _CELL_WIDTH = 16, 16
"""Characters that a detector's name (folded where it is longer) and a cell take in a terminal."""
OURS, INTERVAL, DIFFERENCE = "", "95 % interval", "difference"
_LATEX = str.maketrans({c: rf"\{c}" for c in "_%&#$"})


@dataclass(frozen=True)
class Cell:
    """Two numbers as text, and whether each is the best of its column."""

    fpr95: str
    auroc: str
    best: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Line:
    """A line of the table: a detector's own numbers, or what stands below them (``kind``)."""

    detector: str
    kind: str
    cells: dict[str, Cell]


def lines(results: Measured) -> list[Line]:
    """Every detector's numbers by OOD set and on average; below them what was published, the difference, intervals."""
    columns = columns_of(results)
    ours = {(d, o): _measured(results, d, o) for d in results.detectors for o in columns}
    lowest = {o: min(ours[d, o][0] for d in results.detectors) for o in columns}
    highest = {o: max(ours[d, o][1] for d in results.detectors) for o in columns}
    found = []
    for d in results.detectors:
        own = {o: ours[d, o] for o in columns}
        cells = {o: Cell(_percent(f), _percent(a), (f == lowest[o], a == highest[o])) for o, (f, a) in own.items()}
        found.append(Line(d, OURS, cells))
        spans = {o: cell for o in columns if (cell := _interval(results, d, o))}
        if spans:
            found.append(Line(d, INTERVAL, spans))
        beside = {o: p for o in columns if (p := results.published.get((d, o)))}
        if beside:
            where = next(iter(beside.values())).where.partition(", Table")[0]
            found.append(Line(d, where, {o: Cell(_percent(p.fpr95), _percent(p.auroc)) for o, p in beside.items()}))
            found.append(Line(d, DIFFERENCE, {o: _difference(own[o], p) for o, p in beside.items()}))
    return found


def columns_of(results: Measured) -> list[str]:
    """The OOD sets, then the groups that are averaged over."""
    return [*(s.name for s in results.ood_sets), *results.groups]


def _measured(results: Measured, detector: str, ood: str) -> tuple[float, float]:
    if ood in results.groups:
        return results.average(detector, "fpr95", ood), results.average(detector, "auroc", ood)
    row = results.row(detector, ood)
    return row.fpr95, row.auroc


def _interval(results: Measured, detector: str, ood: str) -> Cell | None:
    spans = {} if ood in results.groups else results.row(detector, ood).intervals
    if not spans:
        return None
    fpr95, auroc = (f"{low * 100:.1f}–{high * 100:.1f}" for low, high in (spans["fpr95"], spans["auroc"]))
    return Cell(fpr95, auroc)


def _difference(ours: tuple[float, float], published: Published) -> Cell:
    gaps = (ours[0] - published.fpr95, ours[1] - published.auroc)
    fpr95, auroc = (f"{round(gap * 100, 2) + 0.0:+.2f}" for gap in gaps)  # adding zero turns -0 into 0
    return Cell(fpr95, auroc)


def _percent(share: float) -> str:
    return f"{share * 100:.2f}"


def table_of(texts: Sequence[str], numbers: Sequence[str] = (), **options: Any) -> Table:
    """A table for a terminal: columns of text, which are folded, and then of numbers, which are not broken."""
    table = Table(title_justify="left", **options)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def terminal(results: Measured, width: int) -> Iterator[Table]:
    """For a terminal of ``width`` columns: one table where it fits, else several below each other."""
    columns = columns_of(results)
    at_once = max(1, (width - _NAME_WIDTH) // _CELL_WIDTH)
    for start in range(0, len(columns), at_once):
        names = columns[start : start + at_once]
        table = table_of(["detector"], names, title="FPR95 ↓ / AUROC ↑ in %")
        for line in lines(results):
            shown = [Text.from_markup(_joined(line.cells.get(n), "[bold]{}[/bold]", width=5)) for n in names]
            if line.kind == OURS:
                table.add_row(line.detector, *shown)
            elif any(shown):
                table.add_row(f"  {line.kind}", *shown, style="dim")
        yield table


def _formatted(
    results: Measured, ours: str, other: str, bold: str, spelled: Callable[[str], str]
) -> Iterator[list[str]]:
    """The heads and lines as text: what ``ours`` and ``other`` make of their names, ``bold`` of the best."""
    columns = columns_of(results)
    yield [spelled(name) for name in ("detector", *columns)]
    for line in lines(results):
        name = ours.format(spelled(line.detector)) if line.kind == OURS else other.format(spelled(line.kind))
        yield [name, *(_joined(line.cells.get(c), bold) for c in columns)]


def text(results: Measured, width: int = 100) -> str:
    """As a terminal of ``width`` columns shows it, without colours; then the accuracy."""
    with io.StringIO() as file:
        screen = Console(file=file, width=width, color_system=None)
        screen.print(*terminal(results, width), sep="\n")
        return f"{file.getvalue()}{accuracy(results)}".rstrip()


def html(results: Measured) -> str:
    """For a notebook."""
    (_, *heads), *rows = _formatted(results, "<code>{}</code>", "<i>{}</i>", "<b>{}</b>", escape)
    shown = ["".join(f"<th>{name}</th>" for name in ("FPR95 ↓ / AUROC ↑ in %", *heads))]
    shown += [f"<th>{name}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) for name, *cells in rows]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in shown) + "</table>"


def markdown(results: Measured) -> str:
    """For a README or an issue."""
    heads, *rows = _formatted(results, "`{}`", "*{}*", "**{}**", str)
    rule = ["---", *["---:"] * len(columns_of(results))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows)) + "\n"


def latex(results: Measured) -> str:
    """For a paper: a ``tabular`` that needs the package booktabs."""
    form = (r"\texttt{{{}}}", r"\quad {}", r"\textbf{{{}}}", lambda text: text.translate(_LATEX))
    heads, *rows = (" & ".join(row) + r" \\" for row in _formatted(results, *form))
    columns, body = "r" * len(columns_of(results)), "\n".join(rows).replace("–", "--")
    return rf"""% FPR95 / AUROC in percent; needs \usepackage{{booktabs}}
\begin{{tabular}}{{l{columns}}}
\toprule
{heads}
\midrule
{body}
\bottomrule
\end{{tabular}}
"""


def _joined(cell: Cell | None, bold: str, width: int = 0) -> str:
    """Both numbers, each ``width`` characters wide without the marks of the best."""
    if cell is None:
        return ""
    pairs = zip((cell.fpr95, cell.auroc), cell.best, strict=True)
    return " / ".join(" " * (width - len(text)) + (bold.format(text) if best else text) for text, best in pairs)


def accuracy(results: Measured) -> str:
    """The share of the ID images that the classifier names correctly, with published ones; empty without labels."""
    ours, ids = results.rows[0].id_accuracy, results.manifest["data"]["id"]
    if math.isnan(ours):
        return ""
    beside = f"; published: {', '.join(printed)}" if (printed := published_accuracies(results)) else ""
    return f"ID accuracy {ours:.2%} on {ids['images'] - ids['skipped']:,} images{beside}"


def published_accuracies(results: Measured) -> list[str]:
    """What papers print as the ID accuracy of the networks that their numbers beside ours are about, and where."""
    found = [(p.id_accuracy, p.where.partition(":")[0]) for p in results.published.values()]
    return list(dict.fromkeys(f"{share:.2%} ({where})" for share, where in found if share is not None))
