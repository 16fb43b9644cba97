"""The spec strings that name detectors: ``fm:p=0.6+react:clip=1.6+ls+energy``, ``mean(fmls,knn:k=50)``; and presets."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

from nescio.core.errors import InputError, nearest
from nescio.core.plugins import load_methods
from nescio.core.stage import PLACES, REGISTRY, Chain, InputStage, Stage

_STAGE = re.compile(r"(?P<name>[a-z][a-z0-9_-]*)(:(?P<options>.+))?", re.DOTALL)
_ENSEMBLE = re.compile(r"(?P<name>[a-z][a-z0-9_-]*)\((?P<members>.*)\)", re.DOTALL)
_RANGE = re.compile(r"(?P<low>-?[\d.]*\d(e-?\d+)?)\.\.(?P<high>-?[\d.]*\d(e-?\d+)?)(/(?P<steps>\d+))?")
_STEPS = 9
"""Values that a range stands for: 0.1..0.9 for the nine that the FM + LS paper tries."""
_VALUE = re.compile(r"(?<==)[^,+()]*(?:\.\.|\|)[^,+()]*")
DEFAULT = "default"
"""The settings of a network that none is published for."""
LONGEST, MOST_STAGES, DEEPEST = 4000, 100, 10
"""Of one spec: letters, stages, ensembles within each other. Nobody writes more, and a file may hold anything."""
ENDS = {"score": "", "shape": "energy", "modulate": "energy", "input": "msp"}
"""What a stage of each place stands before, to be tried by itself."""
MOST = 10_000
"""Detectors that one spec with ranges may stand for."""
_OPTION = re.compile(r"\s*[A-Za-z_]\w*=")


@functools.cache
def _named() -> dict[str, dict[str, Any]]:
    """The data file: presets, and the published settings that they draw on."""
    return tomllib.loads(resources.files("nescio.methods").joinpath("presets.toml").read_text(encoding="utf-8"))


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """The named detectors: ``NAME``, and ``NAME@SETTINGS`` with the settings published for one benchmark."""
    settings, named = _named()["settings"], {}
    for name, preset in _named()["presets"].items():
        named[name] = preset | {"spec": preset["spec"].format(**settings[DEFAULT])}
        for which in (w for w in settings if w != DEFAULT):
            of = settings[which]
            network = f"{of.get('model', 'any other network')}, {of['classes']:,} classes"
            about, spec = f"{name} as published for {which}", preset["spec"].format(**of)
            named[f"{name}@{which}"] = preset | {"about": about, "spec": spec, "network": network}
    return named


def settings_for(model: str | None, classes: int | None = None) -> str:
    """Which published settings a network takes.

    Args:
        model: the architecture's full name, e.g. ``torchvision:resnet50``.
        classes: how many it tells apart; None for as many as the published network, or the library's weights, do.
    """
    for name, of in _named()["settings"].items():
        fits = classes in (None, of.get("classes"))
        if "model" in of and model == of["model"] and fits:
            return name
        if "libraries" in of and fits and (classes or (model or "").partition(":")[0] in of["libraries"]):
            return name
    return DEFAULT


def expand(spec: str, model: str | None = None, classes: int | None = None) -> str:
    """The spec string with a preset's name replaced by what it stands for, for this network if values are published.

    A preset is a whole detector, so its name can only end a spec: ``fmls``, ``odin:T=1+fmls``. The network is named as
    for ``settings_for``.
    """
    spec = spec.strip()
    for name in sorted(presets(), key=len, reverse=True):  # dice+react before a shorter name that it ends with
        before = spec.removesuffix(name)
        if before != spec and (not before or before.rstrip().endswith("+")):
            fitting = f"{name}@{settings_for(model, classes)}"
            return before + str(presets().get(fitting, presets()[name])["spec"])
    return spec


def names_preset(spec: str) -> bool:
    """Whether a spec, or a member of an ensemble in it, is or ends in a preset's name."""
    _check_size(spec)
    return any(expand(part) != part.strip() for part in re.split(r"[(),]", spec))


def parse_stages(
    spec: str, model: str | None = None, classes: int | None = None, *, partial: bool = False
) -> list[Stage]:
    """The stages that a spec string names, checked for order; presets are for the network that is named.

    ``partial``: the score may be missing.

    Raises:
        InputError: a stage or option is unknown (the nearest is named), a value does not fit, the stages stand in the
            wrong order (the right one is named), a bracket is missing, there is not exactly one score at the end, or
            the spec is longer than anybody's.
    """
    _check_size(spec)
    _check_brackets(spec)
    whole = expand(spec, model, classes)
    stages = [_parse_stage(text.strip(), spec, model, classes) for text in _split(whole, "+")]
    check_order(stages, spec, partial=partial)
    return stages


def _check_brackets(spec: str) -> None:
    depth = 0
    for i, letter in enumerate(spec):
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            raise InputError(f"detector '{spec}' has a closing bracket without an opening one, at '{spec[i:]}'")
    if depth:
        raise InputError(f"a closing bracket is missing in detector '{spec}'; write '{spec}{')' * depth}'")


def _check_size(spec: str) -> None:
    """Refuse what would take for ever to read."""
    depth = max(itertools.accumulate((c == "(") - (c == ")") for c in spec[:LONGEST]), default=0)
    if len(spec) > LONGEST or spec.count("+") >= MOST_STAGES or depth > DEEPEST:
        raise InputError(
            f"detector '{spec[:60]}…' is too long: a spec has at most {LONGEST:,} characters, {MOST_STAGES} stages and "
            f"{DEEPEST} nested ensembles"
        )


def _check_members(stages: Sequence[Stage], spec: str) -> None:
    """Each member, behind what stands before its ensemble, must be a detector by itself."""
    *before, last = stages
    standing = "+".join(map(repr, before))
    for chain in last.chains:
        together = [*before, *chain.steps]
        whole = "+".join(map(repr, together))
        try:
            check_order(together, whole)
        except InputError as e:
            raise InputError(f"in '{spec}', the member '{chain!r}' follows '{standing}': {e}") from None


def _split(text: str, separator: str) -> list[str]:
    """Parts between the separators that stand outside of parentheses; the plus of ``1e+3`` does not separate."""
    items, depth = [""], 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == separator and depth == 0 and not re.search(r"=[\d.]+[eE]$", text[:i]):
            items.append("")
        else:
            items[-1] += letter
    return items


def _members(text: str) -> Iterator[str]:
    """The members of an ensemble: ``knn:k=5,alpha=0.1`` is one, since no stage is called ``alpha=0.1``."""
    waiting: list[str] = []
    for part in _split(text, ","):
        if waiting and not _OPTION.match(part):
            yield ",".join(waiting)
            waiting = []
        waiting.append(part)
    yield ",".join(waiting)


def check_order(stages: Sequence[Stage], spec: str, *, partial: bool = False) -> None:
    """Refuse stages that are no detector, or with ``partial`` cannot become one.

    Raises:
        InputError: as ``parse_stages``.
    """
    ordered = sorted(stages, key=lambda s: PLACES.index(s.place))
    scores = [s.name for s in stages if s.place == "score"]
    if not scores and not partial:
        raise InputError(f"detector '{spec}' has no score stage at the end; add one, e.g. '{spec}+energy'")
    if len(scores) > 1:
        raise InputError(
            f"detector '{spec}' has {len(scores)} score stages ({', '.join(scores)}); keep one, at the end"
        )
    repeated = [s.name for i, s in enumerate(stages) if s.name in [t.name for t in stages[:i]]]
    if repeated:
        raise InputError(f"detector '{spec}' has the stage '{repeated[0]}' twice; keep one")
    if sum(s.place == "input" for s in stages) > 1:
        raise InputError(f"detector '{spec}' has more than one input stage; keep one, since each needs its own pass")
    first = stages[0]
    if isinstance(first, InputStage) and first.replaces_logits and any(s.place == "shape" for s in stages):
        raise InputError(
            f"in detector '{spec}', '{first.name}' gives its own logits, which a change of features would discard; "
            "leave one of them out"
        )
    if [id(s) for s in stages] != [id(s) for s in ordered]:
        right = "+".join(map(repr, ordered))
        raise InputError(f"stages of '{spec}' are out of order ({' → '.join(PLACES)}); write '{right}'")
    if scores:
        _check_members(stages, spec)


def _parse_stage(text: str, spec: str, model: str | None, classes: int | None) -> Stage:
    ensemble, match = _ENSEMBLE.fullmatch(text), _STAGE.fullmatch(text)
    if ensemble:
        load_methods()  # a user's ensembles, too
        kinds: dict[str, Callable[..., Stage]] = {n: cls for n, cls in REGISTRY.items() if cls.takes_members}
        if ensemble["name"] not in kinds:
            raise InputError(
                f"unknown ensemble '{ensemble['name']}' in detector '{spec}'{nearest(ensemble['name'], kinds)}"
            )
        return kinds[ensemble["name"]](*(Chain(parse_stages(m, model, classes)) for m in _members(ensemble["members"])))
    if "@" in text and not match:
        raise InputError(f"unknown preset '{text}' in detector '{spec}'{nearest(text, presets())}")
    if not match or "(" in text:
        raise InputError(f"cannot read '{text}' in detector '{spec}'; write name or name:option=value,option=value")
    name, options = match["name"], match["options"]
    load_methods()
    if name not in REGISTRY:
        known = [*REGISTRY, *presets()]
        own = "to use a stage of your own, import its file first (nescio --plugin FILE.py)"
        raise InputError(f"unknown stage '{name}' in detector '{spec}'{nearest(name, known)}; {own}")
    cls = REGISTRY[name]
    if cls.takes_members:
        raise InputError(f"'{name}' in detector '{spec}' needs members; write e.g. {name}(energy,knn)")
    return cls(**cls.parse_options(options))


def all_specs() -> list[str]:
    """One detector for every stage, with its defaults, and every preset: what ``--detector all`` stands for.

    A score stands alone; a shape or modulate stage stands before energy, an input stage before MSP. A stage that needs
    an option or members is left out, and so are the presets of one suite.
    """
    load_methods()
    stages = sorted(REGISTRY.values(), key=lambda s: (-PLACES.index(s.place), s.name))
    complete = [s for s in stages if all(p.default is not p.empty for p in inspect.signature(s).parameters.values())]
    return ["+".join(filter(None, (s.name, ENDS[s.place]))) for s in complete] + [
        name for name in presets() if "@" not in name
    ]


def search_space(spec: str) -> list[str]:
    """Every spec that one with ranges stands for.

    ``p=0.1..0.9`` is nine values from the one to the other, ``q=0.8..0.99/20`` twenty, ``k=10|50|200`` those three.
    Between whole numbers the values are whole.

    >>> search_space("fm:p=0.1..0.3/3+energy")
    ['fm:p=0.1+energy', 'fm:p=0.2+energy', 'fm:p=0.3+energy']

    Raises:
        InputError: a range cannot be read, or there are more than 10,000 combinations.
    """
    _check_size(spec)
    pieces, at, count = [], 0, 1
    for match in _VALUE.finditer(spec):
        pieces.append([spec[at : match.start()]])
        pieces.append(_values(match[0], spec))
        count *= len(pieces[-1])
        at = match.end()
    if count > MOST:
        raise InputError(
            f"'{spec}' gives {count:,} detectors, and at most {MOST:,} are allowed; make its ranges coarser "
            "(LOW..HIGH/STEPS)"
        )
    return ["".join(values) for values in itertools.product(*pieces, [spec[at:]])]


def _values(text: str, spec: str) -> list[str]:
    values: list[str] = []
    for part in text.split("|"):
        match = _RANGE.fullmatch(part)
        if match is None and ".." in part:
            raise InputError(f"cannot read the range '{part}' in '{spec}'; write LOW..HIGH or LOW..HIGH/STEPS")
        if match is None:
            values.append(part)
            continue
        low, high, steps = float(match["low"]), float(match["high"]), int(match["steps"] or _STEPS)
        if steps > MOST:
            raise InputError(f"the range '{part}' in '{spec}' has too many steps; at most {MOST:,} are allowed")
        whole = all(re.fullmatch(r"-?\d+", match[end]) for end in ("low", "high"))
        between = [low + (high - low) * i / max(1, steps - 1) for i in range(max(1, steps))]
        values += [f"{round(v)}" if whole else f"{v:.6g}" for v in between]
    return list(dict.fromkeys(values))


@functools.cache
def sweeps() -> dict[str, dict[str, Any]]:
    """The papers' sensitivity studies by name, from the data file."""
    return tomllib.loads(resources.files("nescio.methods").joinpath("sweeps.toml").read_text(encoding="utf-8"))


def sweep(name: str, model: str | None = None, classes: int | None = None) -> list[str]:
    """The specs of a sensitivity study, with the settings that presets have for the network.

    Raises:
        InputError: there is none of this name.
    """
    if name not in sweeps():
        raise InputError(f"unknown sweep '{name}'{nearest(name, sweeps())}")
    settings = _named()["settings"][settings_for(model, classes)]
    return [spec.format(**settings) for spec in sweeps()[name]["detectors"]]
