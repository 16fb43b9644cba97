"""All about one method: what its class declares, its costs, its papers, and when it works."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from nescio.core.detector import Detector
from nescio.core.needs import Needs
from nescio.core.options import Option, Optioned, written
from nescio.core.spec import ENDS, presets
from nescio.core.stage import REGISTRY
from nescio.methods import catalogue
from nescio.methods.objective import OBJECTIVES
from nescio.methods.papers import Paper, papers
from nescio.models.heads import known_heads

_OPTION = re.compile(r"^(\w+): ", re.MULTILINE)
_CITED = re.compile(r'"[^"]*",?\s*[^.;:,(]*?\d{4}[.,;:]?\s*')


@dataclass(frozen=True)
class Card:
    """What there is to say of a stage, a preset or an objective.

    Attributes:
        name: its name.
        place: ``input``, ``shape``, ``modulate``, ``score``, ``preset`` or ``objective``.
        kind: its class; None for a preset.
        gist: one sentence.
        about: paragraphs of its docstring between that and its options, Markdown.
        described: what the docstring says of each option.
        differs: where in the paper it stands, and how it differs from the paper and the authors' code.
        needs: what it reads, in words.
        spec: a detector with it that stands alone; of an objective, the detector that belongs to it.
        costs: what it costs, in words; empty where it was not measured.
        formula: LaTeX.
        works: when it works.
        fails: when it fails.
        papers: where it is from.
    """

    name: str
    place: str
    kind: type[Optioned] | None
    gist: str
    about: str
    described: Mapping[str, str]
    differs: str
    needs: list[str]
    spec: str
    costs: list[str]
    formula: str
    works: str
    fails: str
    papers: list[Paper]

    @property
    def options(self) -> list[Option]:
        """Its options, in order."""
        return list(self.kind.options().values()) if self.kind and not _takes_members(self.kind) else []


@functools.cache
def _written() -> Mapping[str, Any]:
    """What is written by hand: formulas, papers, when a method works and when it fails."""
    return tomllib.loads(resources.files("nescio.methods").joinpath("cards.toml").read_text(encoding="utf-8"))


def cards() -> tuple[Card, ...]:
    """A card for every stage, preset and objective, in the order of the catalogue."""
    return tuple(map(_card, catalogue.entries()))


def _card(entry: catalogue.Entry) -> Card:
    registry = {"preset": {}, "objective": OBJECTIVES}.get(entry.place, REGISTRY)
    kind: Any = registry.get(entry.name)
    group = {"preset": "presets", "objective": "objectives"}.get(entry.place, "stages")
    written = _written()[group].get(entry.name, {})
    about, described, differs = _read(inspect.getdoc(kind) or "") if kind else ("", {}, _preset_source(entry.name))
    spec, needs = _needed(entry, kind)
    return Card(
        name=entry.name,
        place=entry.place,
        kind=kind,
        gist=entry.gist,
        about=about,
        described=described,
        differs=differs,
        needs=needs,
        spec=spec,
        costs=list(_costs(entry)),
        formula=written.get("formula", ""),
        works=written.get("works", ""),
        fails=written.get("fails", ""),
        papers=[papers()[key] for key in written.get("papers", ())],
    )


def _needed(entry: catalogue.Entry, kind: Any) -> tuple[str, list[str]]:
    """A detector to try it with, and what must be there for it."""
    if kind is None:
        return str(presets()[entry.name]["spec"]), _in_words(Detector(entry.name).needs)
    if entry.place == "objective":
        return kind.detector, _for_training(kind().needs)
    if kind.takes_members:
        members = "held-out ID features (else a share of the training features)"
        return f"{entry.name}(fmls,knn)", ["what its members need", members]
    spec = "+".join(filter(None, (entry.name, ENDS[entry.place])))
    return spec, [*_in_words(kind().needs), *_otherwise(kind, kind().needs)]


def _takes_members(kind: type[Optioned]) -> bool:
    return bool(getattr(kind, "takes_members", False))


def _preset_source(name: str) -> str:
    return str(presets()[name]["source"])


def _read(docstring: str) -> tuple[str, dict[str, str], str]:
    """A docstring's paragraphs, what it says of each option, and what follows its first reference."""
    paragraphs, described, source = [], {}, ""
    for block in docstring.split("\n\n"):
        if block.startswith("Args:"):
            text = textwrap.dedent(block.partition("\n")[2])
            _, *parts = _OPTION.split(text)
            described = {name: " ".join(words.split()) for name, words in zip(parts[::2], parts[1::2], strict=True)}
        elif block.startswith("Source: "):
            source = " ".join(block.removeprefix("Source: ").split())
        else:
            paragraphs.append(block)
    cited = _CITED.search(source)
    rest = source[cited.end() :].strip() if cited else ""
    return "\n\n".join(paragraphs), described, rest[:1].upper() + rest[1:]


def _in_words(needs: Needs) -> list[str]:
    """What must be there for a detector, a few words each."""
    labels = " with their classes" if needs.labels else ""
    chosen = [
        (needs.features, "penultimate features"),
        (needs.head, "the classification head (weight and bias)"),
        (needs.logits and not needs.head, "logits"),
        (needs.train, f"training features{labels}"),
        (needs.held_out, f"held-out ID features{labels} (else a share of the training features)"),
        (needs.images, "ID images at fit"),
        (needs.rerun == "options", "a pass of its own over all images, training images too"),
        (needs.rerun not in ("", "options"), "a pass of its own over the images that are scored"),
        (needs.gradients, "the gradient of the network"),
        (set(needs.probes) - needs.heads, "columns that are taken from feature maps within the pass"),
    ]
    heads = [f"a network with the head '{head}' ({known_heads()[head].hint()})" for head in sorted(needs.heads)]
    return [words for needed, words in chosen if needed] + heads


def _for_training(needs: Needs) -> list[str]:
    """What must be there to train, a few words each."""
    chosen = [
        (True, "training images with their classes"),
        (needs.maps, "a network that pools its last feature map by the mean"),
        (needs.views > 1, f"{needs.views} views of each image, each augmented separately"),
        (needs.outliers, f"outliers= (--outliers), {needs.outliers} for each training image"),
    ]
    return [words for needed, words in chosen if needed]


def _otherwise(kind: Any, needs: Needs) -> Iterator[str]:
    """What other options need, where that differs."""
    if not isinstance(inspect.getattr_static(kind, "needs"), property):
        return
    for option in kind.options().values():
        for value in option.examples:
            other = kind(**{option.name: value}).needs
            if _in_words(other) != _in_words(needs):
                shown = f"{option.name}={value}" if option.choices else f"{option.name} given"
                yield f"with {shown}: {', '.join(_in_words(other))}"
                break


def _costs(entry: catalogue.Entry) -> Iterator[str]:
    if entry.fit:
        yield f"fit: {entry.fit} s on 50,000 training features of 342 numbers"
    if entry.score:
        yield f"score: {entry.score} µs per image, beside the network"
    if entry.network:
        yield f"network: {entry.network} times the plain pass"
    if entry.onnx:
        words = {"yes": "yes", "no": "no", "as members": "as its members"}
        yield f"ONNX export: {words[entry.onnx]}"


def values_of(option: Option) -> str:
    """What an option may be, in words: ``number above 0``."""
    if option.choices:
        return " or ".join(f"`{choice}`" for choice in option.choices)
    kind = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}.get(option.kind, "value")
    return ", ".join([kind, *map(str, option.bounds)])


def default_of(option: Option) -> str:
    """An option's default as a spec writes it."""
    if option.required:
        return "must be given"
    return "none" if option.default is None else written(option.default)


def settings_of(preset: str) -> dict[str, dict[str, Any]]:
    """A preset with each benchmark's published settings."""
    return {name: of for name, of in presets().items() if name.startswith(f"{preset}@")}
