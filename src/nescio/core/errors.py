"""What a user can get wrong, said in one line: the thing, and the way out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

Number = TypeVar("Number", int, float)


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it and exits with 2."""


class NotFitted(InputError, RuntimeError):
    """A stage is asked for a score before it has learned what it scores by."""


class Missing(InputError):
    """Something is read that these features do not have: a head, logits, labels, the features themselves."""


class BadImage(ValueError):
    """One image cannot be decoded. It is recorded and skipped; it never stops a run."""


class TooLarge(BadImage):
    """It has more pixels than are taken."""


class UnknownFormat(BadImage):
    """It is no image, or of a format that is not read."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'energy'?"`` when a known name is close to ``name``, else the list of known names."""
    spellings = {k.lower(): k for k in sorted(known)}
    close = difflib.get_close_matches(name.lower(), spellings, n=1, cutoff=0.6)
    return f"; did you mean '{spellings[close[0]]}'?" if close else f"; known: {', '.join(spellings.values())}"


def check_share(name: str, value: float, *, above_zero: bool = False, below_one: bool = False) -> float:
    """A share, quantile or probability: within [0, 1], or without an end, with a hint when percent were meant."""
    if 0 < value < 1 or (value == 0 and not above_zero) or (value == 1 and not below_one):
        return value
    hint = f"; give {name} above 0" if value == 0 else f"; did you mean {name}={value / 100:g}?"
    hint = hint if value == 0 or 2 <= value <= 100 else ""
    raise InputError(f"{name}={value:g} must be in {'(' if above_zero else '['}0, 1{')' if below_one else ']'}{hint}")


def check_positive(name: str, value: float) -> float:
    """A finite number above zero."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name}={value:g} must be a finite number above 0")
    return value


def check_at_least(name: str, value: Number, least: int) -> Number:
    """A finite number of ``least`` or more."""
    if not (value >= least and math.isfinite(value)):
        raise InputError(f"{name}={value:g} must be {least} or more")
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """One of a few words."""
    if value not in choices:
        raise InputError(f"{name}={value} is not one of the choices{nearest(value, choices)}")
    return value


def some(names: Iterable[object], limit: int = 5) -> str:
    """The first few names of a list, for a message: ``a, b, c … (12 in all)``."""
    shown = [str(n) for n in names]
    head = ", ".join(shown[:limit])
    return head if len(shown) <= limit else f"{head} … ({len(shown)} in all)"
