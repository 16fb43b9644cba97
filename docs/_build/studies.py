"""Tables for the pages that come from a study's own file, or from the catalogue: no number is typed twice."""

from __future__ import annotations

import csv
from pathlib import Path

from nescio.core.needs import Needs
from nescio.core.stage import PLACES, REGISTRY
from nescio.methods.catalogue import Entry, entries

ROOT = Path(__file__).parents[2]


def table(study: str, number: int = 0, only: tuple[str, ...] = ()) -> str:
    """One Markdown table of ``studies/STUDY/tables.md``.

    Args:
        study: the folder.
        number: which table of the file, from 0 on.
        only: lines whose first cell starts with one of these; all where empty.
    """
    text = (ROOT / "studies" / study / "tables.md").read_text(encoding="utf-8")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    head, rule, *lines = tables[number].splitlines()
    kept = [line for line in lines if not only or line.lstrip("| ").startswith(only)]
    return "\n".join([head, rule, *kept])


def reference() -> str:
    """The reference rows on CIFAR-10: FPR95 / AUROC in percent."""
    with (ROOT / "studies/cifar10_reference.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sets = [name.removesuffix("_fpr95") for name in rows[0] if name.endswith("_fpr95")]
    lines = [f"| detector | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for row in rows:
        cells = " | ".join(f"{row[f'{name}_fpr95']} / {row[f'{name}_auroc']}" for name in sets)
        lines.append(f"| `{row['detector']}` | {cells} |")
    return "\n".join(lines)


def by_needs() -> str:
    """Stages, by what there must be for them to run; a stage that is no score needs what its score needs, too."""
    groups: dict[str, list[str]] = {}
    for entry in entries():
        if entry.place in PLACES:
            groups.setdefault(_needed(entry), []).append(f"`{entry.name}`")
    lines = ["| you need | stages that then run |", "|---|---|"]
    order = sorted(groups, key=lambda words: (_LAST.index(words) if words in _LAST else -1, len(words)))
    return "\n".join([*lines, *(f"| {words} | {', '.join(groups[words])} |" for words in order)])


_LAST = (
    "network and images: it runs the network in another way",
    "network and images: it reads feature maps",
    "a network that was trained for it",
    "what its members need",
)
"""The groups of stages that arrays do not suffice for, and ensembles."""


def _needed(entry: Entry) -> str:
    stage = REGISTRY[entry.name]
    if stage.takes_members:
        return _LAST[3]
    needs: Needs = stage().needs
    if needs.heads:
        return _LAST[2]
    if needs.rerun or needs.images:
        return _LAST[0]
    if needs.probes:
        return _LAST[1]
    parts = [
        "features" if needs.features else "",
        "the last layer" if needs.head else "logits" if needs.logits else "",
        "training rows with labels" if needs.labels else "training rows" if needs.fitting else "",
    ]
    return " + ".join(filter(None, parts))


def costs(*names: str) -> str:
    """What stages and presets cost, as ``nescio methods`` prints it; empty cells were not measured."""
    known = {entry.name: entry for entry in entries()}
    lines = ["| detector | fit, s | score, µs an image | network passes | ONNX |", "|---|---:|---:|---:|---|"]
    for name in names:
        e = known[name]
        lines.append(f"| `{name}` | {e.fit} | {e.score} | {e.network or 1} | {e.onnx} |")
    return "\n".join(lines)
