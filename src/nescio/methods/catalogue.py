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
from nescio.core.needs import Needs
from nescio.core.plugins import load_methods
from nescio.core.spec import presets
from nescio.core.stage import PLACES, REGISTRY, Stage
from nescio.methods.objective import OBJECTIVES, parse_objective

_SOURCE = re.compile(r'Source: (?P<authors>[^"]+?), "[^"]*?",? *(?P<venue>[^.;:(]*?\d{4})', re.DOTALL)
COSTS = "costs.csv"
"""Measured by ``benchmarks/costs.py``: seconds to fit on 50,000 × 342 features, microseconds to score an image, and the
network's time per image in plain passes."""

LEFT_OUT = (
    "fit s and µs exclude the network. passes: the cost of the network for this detector, in plain passes per image; "
    "empty where the one plain pass is enough. ONNX: whether nescio export supports it."
)

WIDE = 150
"""Columns of a terminal that all columns of the catalogue need."""
NARROW = f"A terminal of {WIDE} columns also shows papers, costs and ONNX. nescio methods NAME prints all about one."


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
            ", ".join(_needs(Needs(held_out=True) if stage.takes_members else stage().needs)),
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
            yield Entry(
                name, "preset", preset["about"], ", ".join(_needs(detector.needs)), source, "", "", passes, refused
            )
    for name, objective in sorted(OBJECTIVES.items()):
        text = inspect.getdoc(objective) or ""
        needs = "outliers" if parse_objective(name).needs.outliers else ""
        yield Entry(name, "objective", _gist(text), needs, _paper(text), "", "", "")


def tables(width: int) -> Iterator[Table]:
    """The catalogue for a terminal of ``width`` columns, a table per place; a narrow one gets the first columns."""
    found, wide = list(entries()), width >= WIDE
    for place in (*PLACES, "preset", "objective"):
        table = Table(title=place, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, expand=True)
        table.add_column("name", no_wrap=True, min_width=len("multimahalanobis"))
        table.add_column("what it does", no_wrap=wide, overflow="ellipsis", ratio=3)
        table.add_column("needs", no_wrap=wide, ratio=None if wide else 1)
        if wide:
            table.add_column("paper", no_wrap=True)
            for column in ("fit s", "µs", "passes", "ONNX"):
                table.add_column(column, justify="right", no_wrap=True)
        for e in (e for e in found if e.place == place):
            more = (e.paper, e.fit, e.score, e.network, e.onnx) if wide else ()
            table.add_row(e.name, e.gist, e.needs, *more)
        yield table


def _onnx(stage: type[Stage]) -> str:
    if stage.takes_members:
        return "as members"
    return "no" if stage().unexportable() else "yes"


def _needs(needs: Needs) -> Iterator[str]:
    """What there must be beside features of the image; logits follow from a head, labels are those of training."""
    if needs.rerun:
        yield "pass, also for training" if needs.rerun == "options" else "pass"
    if needs.gradients:
        yield "gradient"
    if needs.head or needs.logits:
        yield "head" if needs.head else "logits"
    if needs.fitting:
        yield "training"
    if needs.labels:
        yield "labels"
    if set(needs.probes) - needs.heads:
        yield "probe"
    yield from (f"{head} head" for head in sorted(needs.heads))


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
