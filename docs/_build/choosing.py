"""What stages need and cost, from the catalogue, for the guide that helps to choose one."""

from __future__ import annotations

from nescio.core.needs import Needs
from nescio.core.stage import PLACES, REGISTRY
from nescio.methods.catalogue import Entry, entries


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
