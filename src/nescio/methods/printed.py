"""A method's card for a terminal."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

from nescio.core.errors import InputError, nearest
from nescio.core.spec import presets
from nescio.core.stage import REGISTRY
from nescio.methods.cards import Card, cards, default_of, settings_of, values_of
from nescio.methods.objective import OBJECTIVES

WIDTH = 100
"""Columns of a card."""


def describe(name: str) -> str:
    """All about the stage, preset and objective of a name, for a terminal.

    Raises:
        InputError: there is none of this name.
    """
    if name in presets() and "@" in name:
        preset = presets()[name]
        return f"{name} ({preset['network']}): {preset['about']} ({preset['source']})\n\n{preset['spec']}"
    found = [card for card in cards() if card.name == name]
    if not found:
        raise InputError(f"no method '{name}'{nearest(name, [*REGISTRY, *presets(), *OBJECTIVES])}")
    return "\n\n\n".join("\n\n".join(_lines(card)) for card in found)


def _lines(card: Card) -> Iterator[str]:
    """A card as paragraphs for a terminal."""
    yield f"{card.name} ({card.place})"
    if card.kind:
        yield (inspect.getdoc(card.kind) or "").replace("``", "`")
    else:
        yield f"{card.gist}. {card.differs}"
        yield "\n".join(
            [card.spec, *(f"  {n} ({p['network']}): {p['spec']}" for n, p in settings_of(card.name).items())]
        )
    if card.options:
        rows = [f"  {o.name} = {default_of(o)}: {values_of(o)}" for o in card.options]
        yield "\n".join(["Options (defaults, and what they may be)", *rows])
    yield from (_wrapped(f"{title}: {text}") for title, text in _facts(card) if text)


def _facts(card: Card) -> Iterator[tuple[str, str]]:
    yield "Needs", "; ".join(card.needs)
    yield "Costs", "; ".join(card.costs)
    yield "Works", card.works
    yield "Fails", card.fails
    for paper in card.papers:
        yield "Paper", f"{paper.reference} {paper.url}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
