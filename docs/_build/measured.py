"""Numbers of a method for its card: from the tables that studies have stored, and from the papers' tables."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import stored

from nescio.core.detector import Detector
from nescio.evaluation.suites.published import PAPERS
from nescio.evaluation.suites.suite import AVERAGE, PublishedRow, Suite, suites
from nescio.methods.cards import Card
from nescio.models.heads import known_heads

NETWORK = ("densenet-bc-100-12", 10)
"""Of the study on CIFAR-10: its name and number of classes, which presets depend on."""

UNBROKEN, UNBROKEN_PM = "\u00a0/\u00a0", "\u00a0±\u00a0"


@functools.cache
def detector(spec: str, model: str | None = NETWORK[0], classes: int | None = NETWORK[1]) -> Detector:
    """What a spec stands for with a network."""
    return Detector(spec, model, classes)


def of(card: Card, found: Detector) -> bool:
    """Whether a detector says something of a method: it is the preset or the score alone, or has the stage in it."""
    if card.place == "preset":
        return repr(found) == repr(detector(card.name))
    names = [step.name for step in found.steps]
    return names == [card.name] if card.place == "score" else card.name in names


def ours(card: Card) -> Iterator[str]:
    """Tables of our own numbers, as Markdown."""
    for path in ("cifar10/tables.md", "cifar10/passes.md"):
        table = stored.table(path)
        rows = [row for row in table.rows if card.place != "objective" and of(card, detector(row[0].strip("`")))]
        if rows:
            text = f"A DenseNet on CIFAR-10, see [accuracy](../benchmarks/accuracy.md). {table.caption}"
            yield "\n".join([text, "", *_compared(card, table, rows)])
            return
    yield from _trained(card)


def _compared(card: Card, table: stored.Table, rows: list[list[str]]) -> Iterator[str]:
    """Some rows, below them what they are compared with, and the first one's rank."""
    yield _line(table.head)
    yield "|---|" + "---:|" * (len(table.head) - 1)
    yield from map(_line, rows)
    baselines = _baselines(card, rows[0][0].strip("`"))
    others = [r for r in table.rows if r not in rows and r[0].strip("`") in baselines]
    yield from (_line([f"*to compare:* {r[0]}", *r[1:]]) for r in others)
    ranks = ["" if "published" in name else _rank(table, rows[0], i) for i, name in enumerate(table.head) if i]
    yield _line([f"*rank of* {rows[0][0]} *by AUROC, of {len(table.rows)} detectors*", *ranks])


def _baselines(card: Card, spec: str) -> list[str]:
    """A score beside the simplest two; a preset beside its score alone; any other stage beside the same without it."""
    if card.place == "score":
        return ["msp", "energy"]
    steps = detector(spec).steps
    return [steps[-1].name] if card.place == "preset" else ["+".join(repr(s) for s in steps if s.name != card.name)]


def _rank(table: stored.Table, row: list[str], column: int) -> str:
    def auroc(r: list[str]) -> float:
        return float(r[column].split("/")[1])

    return str(1 + sum(auroc(r) > auroc(row) for r in table.rows))


def _trained(card: Card) -> Iterator[str]:
    """Rows of the study of trainings: an objective's, or those of the training that a score belongs to."""
    table = stored.table("objectives/tables.md", "cifar10")
    same = [row for row in table.rows if row[0].strip("`").partition(":")[0] == card.name]
    if same:
        others = [row for row in table.rows if row[0] == "`ce`" and row not in same]
        text = "Trainings of a small network on CIFAR-10, see [training](../benchmarks/training.md)."
        lines = [_line(table.head), "|---" * len(table.head) + "|", *map(_line, [*same, *others])]
        yield "\n".join([f"{text} {table.caption} `python studies/objectives.py cifar10`.", "", *lines])


def published(card: Card) -> str:
    """The papers' rows for a method, as a Markdown table; nothing where there are none. A number stands there once."""
    lines: dict[tuple[str, ...], str] = {}
    for suite in suites().values():
        for row in suite.published:
            if row.detector and row.paper in ("fmls", "ssod") and _is_of(card, suite, row):
                cells = _cells(suite, row)
                lines.setdefault((*cells[1:3], *cells[4:]), _line(cells))
    head = [_line(["table", "benchmark", "network", "name there", "detector here", "FPR95 / AUROC"]), "|---" * 6 + "|"]
    return "\n".join([*head, *lines.values()]) if lines else ""


def _is_of(card: Card, suite: Suite, row: PublishedRow) -> bool:
    found = detector(row.detector, row.model, suite.classes)
    if card.place == "preset":
        return row.detector.partition("@")[0] == card.name
    if card.place != "objective":
        return of(card, found)
    trained = row.training or next((known_heads()[head].objective for head in found.needs.heads), "")
    return trained.partition(":")[0] == card.name


def _cells(suite: Suite, row: PublishedRow) -> list[str]:
    values = {AVERAGE: row.values[AVERAGE]} if AVERAGE in row.values else row.values
    shown = ", ".join(f"{name} {100 * fpr95:.2f} / {100 * auroc:.2f}" for name, (fpr95, auroc) in values.items())
    there = f"{PAPERS[row.paper]}, Table {row.table}"
    return [there, f"`{suite.name}`", f"`{row.model}`", row.method, f"`{row.detector}`", shown]


def _line(cells: list[str]) -> str:
    """A row; FPR95 and AUROC stay on one line, as do a mean and its deviation."""
    return f"| {' | '.join(cells).replace(' / ', UNBROKEN).replace(' ± ', UNBROKEN_PM)} |"
