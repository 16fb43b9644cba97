"""Pages about all methods together: the table, and the reference of their classes and functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from nescio.core.arrays import FUNCTIONS
from nescio.core.stage import PLACES
from nescio.methods import catalogue
from nescio.methods.cards import Card

HERE = Path(__file__).parent
KINDS = {
    "input": ("Input stages", "change how the network is run, and make a pass of their own"),
    "shape": ("Shape stages", "change the penultimate features or the head"),
    "modulate": ("Modulate stages", "change the logits"),
    "score": ("Scores", "end a detector"),
    "preset": ("Presets", "are whole detectors with published settings"),
    "objective": ("Objectives", "train a network"),
}
INDEX = """---
hide: [toc]
---

# Methods

There are {stages} stages, {presets} presets and {objectives} objectives. Each has a card: the formula, what it needs
and costs,
its options, when it works and when it fails, our numbers and the published ones, and its paper. `nescio methods`
prints this table,
and `nescio methods NAME` a card. Which one to take: see [the guide](../guides/which-detector.md).

A detector is an ordered list of stages, joined with `+`, as in `fm+react+ls+energy`.

{kinds}

## Table of all methods

<style>
{css}
</style>
<p><input id="methods-filter" type="search" placeholder="Filter by name, kind, need or paper: knn, logits, CVPR 2023"
aria-label="Filter the table of methods"></p>

{table}

<script>
{js}
</script>

`fit s` are the seconds to fit on 50,000 training features of 342 numbers, `µs` the microseconds to score an image;
both leave the network
out and were measured on 2 cores (`benchmarks/costs.py`). `passes` is what the network costs an image, in plain
passes; where it is empty,
one plain pass serves all such detectors together. `ONNX`: whether `nescio export` takes it.

## Letters

$h$ are the penultimate features ($L$ of them), $W$ and $b$ the classification head, $f = W h + b$ the logits ($C$ of
them),
$p = \\mathrm{{softmax}}(f)$, $c$ the predicted class, $\\mu$ the mean training feature and $s$ the score. A higher
score always means more
in-distribution. $T_p(h)$ are the $L - \\mathrm{{round}}(L p)$ largest entries of $h$, $q_p$ is the $p$ quantile, and
$[x]_+ = \\max(0, x)$.
"""
REFERENCE = """# Methods in Python

Every stage and objective by its class, and the plain functions behind the scores. `from nescio.methods import FM,
KNN, knn` imports any of
them; the functions are there as `nescio.knn`, too. The [cards](../methods/index.md) say more about each.
"""
INNER = ("processes",)
"""Files in ``nescio.integrations`` that the others read, and nobody else."""
INTEGRATIONS = """# Integrations in Python

Classes for the training loops and metrics of other libraries, by the file in `nescio.integrations` that holds them.
Each needs its extra, which
the error names where it is missing.
"""


def slug(name: str) -> str:
    """The name of a method's page."""
    return name.replace("+", "-")


def index(cards: Sequence[Card]) -> str:
    """The table of all methods."""
    entries = {(entry.place, entry.name): entry for entry in catalogue.entries()}
    rows = []
    for card in cards:
        entry, paper = entries[card.place, card.name], card.papers[0]
        cited = f"{paper.fields['author'].partition(',')[0]}, {paper.venue}"
        costs = (entry.fit, entry.score, entry.network, entry.onnx)
        rows.append((f"[`{card.name}`]({slug(card.name)}.md)", card.place, card.gist, entry.needs, *costs, cited))
    places = [card.place for card in cards]
    return INDEX.format(
        stages=sum(place in PLACES for place in places),
        presets=places.count("preset"),
        objectives=places.count("objective"),
        kinds="\n".join(f"- **{title}** {does}." for title, does in KINDS.values()),
        css=(HERE / "methods.css").read_text(encoding="utf-8"),
        js=(HERE / "methods.js").read_text(encoding="utf-8"),
        table=table(["name", "kind", "what it does", "needs", "fit s", "µs", "passes", "ONNX", "paper"], rows),
    )


def reference(cards: Sequence[Card]) -> str:
    """Classes and functions, for mkdocstrings."""
    blocks = [REFERENCE]
    classes = [(card.place, card.kind) for card in cards if card.kind is not None]
    for place, group in groupby(classes, key=lambda pair: pair[0]):
        blocks.append(f"## {KINDS[place][0]}")
        blocks += [_block(f"{kind.__module__}.{kind.__name__}", "members: false") for _, kind in group]
    blocks.append("## Functions")
    blocks += [_block(f"{function.__module__}.{name}") for name, function in sorted(FUNCTIONS.items())]
    return "\n\n".join(blocks) + "\n"


def integrations() -> str:
    """The public classes of every file in ``nescio.integrations``, for mkdocstrings."""
    folder = HERE.parents[1] / "src/nescio/integrations"
    blocks = [INTEGRATIONS]
    for file in sorted(file for file in folder.glob("[!_]*.py") if file.stem not in INNER):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        names = [name for name in classes if not name.startswith("_")]
        if names:
            blocks.append(f"## {file.stem}")
            blocks += [_block(f"nescio.integrations.{file.stem}.{name}") for name in names]
    return "\n\n".join(blocks) + "\n"


def _block(name: str, *options: str) -> str:
    return "\n".join([f"::: {name}", "    options:", "      heading_level: 3", *(f"      {o}" for o in options)])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""

    def cell(text: str) -> str:
        return re.sub(r"\s*\n\s*", " ", text).replace("|", "\\|")

    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in [head, ["---"] * len(head), *rows])
