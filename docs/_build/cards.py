"""A page for each method, made from its class, its costs, the stored tables and the papers' tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import drawings
import measured
from listing import KINDS, index, integrations, reference, slug, table

from nescio.core.arrays import FUNCTIONS
from nescio.core.options import written
from nescio.core.spec import presets
from nescio.methods.cards import Card, cards, default_of, settings_of, values_of

FIGURE = """<figure markdown="span">
![{name}]({file})
<figcaption markdown="span">{text}</figcaption>
</figure>"""
ON_THE_COMMAND_LINE = """```
nescio bench --detector '{spec}' --model … --train … --id … --ood …
```"""
IN_PYTHON = """```python
from nescio.methods import {imported}

detector = {joined}  # the same as nescio.Detector("{spec}")
```"""
TRAINING = """```
nescio train --objective {name} --arch resnet18 --train images/train --val images/val --out runs/{name}
```

The detector that belongs to it is `{spec}`."""
PUBLISHED = """In percent, as the papers print them, and the detector that stands for each here. `nescio data list
BENCHMARK --published`
gives the command for each row."""


def pages() -> dict[str, str | bytes]:
    """Every page and picture, by its path in the site."""
    found = cards()
    made: dict[str, str | bytes] = {
        "methods/index.md": index(found),
        "reference/methods.md": reference(found),
        "reference/integrations.md": integrations(),
    }
    for name in dict.fromkeys(card.name for card in found):
        own = [card for card in found if card.name == name]
        drawn = [drawings.picture(card) for card in own]
        made |= {_drawing(card): svg for card, (svg, _) in zip(own, drawn, strict=True) if svg}
        made[f"methods/{slug(name)}.md"] = _page(own, [text for _, text in drawn])
    return made


def navigation() -> list[Any]:
    """Where the cards stand in the site's navigation: by kind, each page once."""
    groups: dict[str, list[Any]] = {title: [] for title, _ in KINDS.values()}
    for name, place in {card.name: card.place for card in reversed(cards())}.items():
        groups[KINDS[place][0]].insert(0, {name: f"methods/{slug(name)}.md"})
    return ["methods/index.md", *({title: group} for title, group in groups.items())]


def _drawing(card: Card) -> str:
    return f"methods/{slug(card.name)}-{card.place}.svg"


def _page(own: list[Card], drawn: list[str]) -> str:
    """The card of a name; a stage and an objective of one name share it."""
    blocks = [f"# {own[0].name}"]
    for card, text in zip(own, drawn, strict=True):
        if len(own) > 1:
            blocks.append(f"## {'The objective' if card.place == 'objective' else f'The {card.place}'}")
        blocks += _card(card, text, "##" if len(own) == 1 else "###", numbers=card is own[-1])
    return "\n\n".join(blocks) + "\n"


def _card(card: Card, drawn: str, level: str, *, numbers: bool) -> Iterator[str]:
    kind = KINDS[card.place][0].removesuffix("s")
    yield f"*{kind}.* {card.about or f'{card.gist}.'}"
    yield from _use(card)
    yield f"{level} Formula"
    yield f"$${card.formula}$$"
    yield "[What the letters mean](index.md#letters)"
    if drawn:
        yield FIGURE.format(name=card.name, file=_drawing(card).rpartition("/")[2], text=drawn)
    yield f"{level} Needs and costs"
    yield "\n".join(f"- {text[:1].upper()}{text[1:]}." for text in [f"Needs: {'; '.join(card.needs)}", *card.costs])
    if card.options:
        yield f"{level} Options"
        yield _options(card)
    yield f"{level} When it works, when it fails"
    yield f"- **Works:** {card.works}\n- **Fails:** {card.fails}"
    if numbers:
        yield from _numbers(card, level)
    yield from _settings(card, level)
    yield from _paper(card, level)


def _use(card: Card) -> Iterator[str]:
    """How it is written."""
    if card.place == "objective":
        yield TRAINING.format(name=card.name, spec=card.spec)
        return
    yield ON_THE_COMMAND_LINE.format(spec=card.spec if card.kind else card.name)
    if card.kind and not card.spec.endswith(")"):
        names = [type(step).__name__ for step in measured.detector(card.spec).steps]
        joined = " + ".join(f"{name}()" for name in names)
        yield IN_PYTHON.format(imported=", ".join(sorted(names)), joined=joined, spec=card.spec)


def _options(card: Card) -> str:
    rows = [(f"`{o.name}`", values_of(o), f"`{default_of(o)}`", card.described.get(o.name, "")) for o in card.options]
    return table(["option", "values", "default", "meaning"], rows)


def _numbers(card: Card, level: str) -> Iterator[str]:
    own, theirs = list(measured.ours(card)), measured.published(card)
    if own:
        yield f"{level} Our numbers"
        yield from own
    if theirs:
        yield f"{level} Published numbers"
        yield PUBLISHED
        yield theirs
    if not own and not theirs:
        yield f"{level} Numbers"
        yield "None of our tables, and none of the benchmarks that come with nescio, has it yet."


def _settings(card: Card, level: str) -> Iterator[str]:
    """A preset's settings by benchmark, or those of a stage in the presets."""
    head, rows = ["network", "options"], sorted(_in_presets(card.name)) if card.options else []
    if card.place == "preset":
        head = ["name", "network", "stands for"]
        rows = [(f"`{name}`", of["network"], f"`{of['spec']}`") for name, of in settings_of(card.name).items()]
        rows.append((f"`{card.name}`", "any other network", f"`{card.spec}`"))
    if rows:
        yield f"{level} Settings by benchmark"
        yield table(head, rows)


def _in_presets(stage: str) -> set[tuple[str, ...]]:
    """Networks, and a stage's options in the presets' settings for them."""
    found = set()
    for name, of in presets().items():
        for step in measured.detector(of["spec"]).steps if "@" in name else ():
            if step.name == stage:
                given = [f"{k}={written(v)}" for k, v in step.settings().items() if v is not None]
                found.add((of["network"], f"`{', '.join(given)}`"))
    return found


def _paper(card: Card, level: str) -> Iterator[str]:
    yield f"{level} {'Paper' if len(card.papers) == 1 else 'Papers'}"
    for paper in card.papers:
        yield f"{paper.reference} [arXiv]({paper.url})" if paper.url else paper.reference
    if card.differs:
        yield f"Details: {card.differs}"
    entries = "\n\n".join(paper.bibtex for paper in card.papers)
    block = f"```bibtex\n{entries}\n```"
    yield '??? note "BibTeX"\n\n' + "\n".join(f"    {line}".rstrip() for line in block.splitlines())
    if card.kind is not None:
        yield _in_reference(card, card.kind)


def _in_reference(card: Card, kind: type[Any]) -> str:
    function = FUNCTIONS.get(card.name) if card.place == "score" else None
    also = f", and [`nescio.{card.name}`][{function.__module__}.{card.name}] for arrays" if function else ""
    path = kind.__module__.replace(".", "/")
    link = f"[`nescio.methods.{kind.__name__}`][{kind.__module__}.{kind.__name__}]"
    return f"In Python: {link}{also}. Source: `src/{path}.py`."
