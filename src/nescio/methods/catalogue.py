"""What there is: every stage, preset and objective, what it needs, what it costs, and where it comes from."""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nescio.core.detector import Detector
from nescio.core.ensemble import Ensemble
from nescio.core.errors import InputError, nearest
from nescio.core.plugins import load_methods
from nescio.core.spec import presets
from nescio.core.stage import PLACES, REGISTRY, InputStage, Stage
from nescio.methods.trained import OBJECTIVES, parse_objective

_SOURCE = re.compile(r'Source: (?P<authors>[^"]+?), "[^"]*?",? *(?P<venue>[^.;:(]*?\d{4})', re.DOTALL)
COSTS = "costs.csv"
"""Measured by ``benchmarks/costs.py``: seconds to fit on 50,000 × 342 features, microseconds to score an image, and the
network's time per image in plain passes."""

LEFT_OUT = (
    "fit s and µs leave the network out. passes: what it runs for this detector, in plain passes per image; where that "
    "is empty, the one plain pass serves. ONNX: whether nescio export takes it."
)


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue.

    ``fit``: seconds for 50,000 training features of 342; ``score``: microseconds per image; ``network``: passes.
    ``onnx``: whether ``nescio export`` takes it.
    """

    name: str
    place: str
    gist: str
    needs: str
    paper: str
    fit: str
    score: str
    network: str
    onnx: str = ""


def entries() -> Iterator[Entry]:
    """Every stage in the order of its place, then every preset that is not of one suite, then every objective."""
    load_methods()
    lines = resources.files("nescio.methods").joinpath(COSTS).read_text().splitlines()
    costs = {row["stage"]: row for row in csv.DictReader(lines)}
    for stage in sorted(REGISTRY.values(), key=lambda s: (PLACES.index(s.place), s.name)):
        text = inspect.getdoc(stage) or ""
        cost = costs.get(stage.name, {})
        yield Entry(
            stage.name,
            stage.place,
            _gist(text),
            ", ".join(_needs(stage)),
            _paper(text),
            cost.get("fit", ""),
            cost.get("score", ""),
            cost.get("network", ""),
            _onnx(stage),
        )
    for name, preset in presets().items():
        if "@" not in name:
            source = preset["source"].partition(",")[0].partition(";")[0]
            detector = Detector(name)
            passes = costs.get(detector.input_stage.name, {}).get("network", "") if detector.input_stage else ""
            refused = "no" if detector.unexportable() else "yes"
            yield Entry(name, "preset", preset["about"], "", source, "", "", passes, refused)
    for name, objective in sorted(OBJECTIVES.items()):
        text = inspect.getdoc(objective) or ""
        needs = "outliers" if parse_objective(name).outliers else ""
        yield Entry(name, "objective", _gist(text), needs, _paper(text), "", "", "")


def tables() -> Iterator[Table]:
    """The catalogue for a terminal, a table per place."""
    found = list(entries())
    for place in (*PLACES, "preset", "objective"):
        table = Table(title=place, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, expand=True)
        table.add_column("name", no_wrap=True, min_width=len("multimahalanobis"))
        table.add_column("what it does", no_wrap=True, overflow="ellipsis", ratio=1)
        for column in ("needs", "paper"):
            table.add_column(column, no_wrap=True)
        for column in ("fit s", "µs", "passes", "ONNX"):
            table.add_column(column, justify="right", no_wrap=True)
        for e in (e for e in found if e.place == place):
            table.add_row(e.name, e.gist, e.needs, e.paper, e.fit, e.score, e.network, e.onnx)
        yield table


def describe(name: str) -> str:
    """All about one stage or preset, and the objective of that name.

    Raises:
        InputError: there is none of this name.
    """
    if name in presets():
        preset = presets()[name]
        of = {n: p for n, p in presets().items() if n.startswith(f"{name}@")}
        lines = "".join(f"\n  {n} ({p['network']}): {p['spec']}" for n, p in of.items())
        return f"{name}: {preset['about']} ({preset['source']})\n\n{preset['spec']}{lines}"
    load_methods()
    found: list[tuple[str, type[object]]] = [(REGISTRY[name].place, REGISTRY[name])] if name in REGISTRY else []
    found += [("objective", OBJECTIVES[name])] if name in OBJECTIVES else []
    if not found:
        raise InputError(f"no method '{name}'{nearest(name, [*REGISTRY, *presets(), *OBJECTIVES])}")
    return "\n\n\n".join(f"{name} ({place})\n\n{inspect.getdoc(kind)}" for place, kind in found)


def _onnx(stage: type[Stage]) -> str:
    if issubclass(stage, Ensemble):
        return "as members"
    return "no" if stage().unexportable() else "yes"


def _needs(stage: type[Stage]) -> Iterator[str]:
    if issubclass(stage, InputStage):
        needs = stage().needs
        yield "pass, of training too" if needs.rerun == "options" else "pass"
        if needs.gradients:
            yield "gradient"
        if needs.images:
            yield "training"
    elif issubclass(stage, Ensemble):
        yield "training"
    else:
        plain = stage()
        if plain.needs.train or plain.needs.held_out:
            yield "training"
        if plain.needs.probes:
            yield "probe"
        yield from (f"{head} head" for head in sorted(plain.needs.heads))


def _gist(docstring: str) -> str:
    """The first sentence of a docstring, without its formula."""
    first = docstring.partition("\n\n")[0].replace("\n", " ").partition(". ")[0].partition(": ``")[0]
    return first.rstrip(".").replace("``", "")


def _paper(docstring: str) -> str:
    """First author, venue and year of the first paper that a docstring names."""
    match = _SOURCE.search(" ".join(docstring.split()))
    if match is None:
        return ""
    first = re.split(r",| and | et al", match["authors"])[0]
    return f"{first}, {match['venue'].strip()}"
