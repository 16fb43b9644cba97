"""Class numbers of images in the order of a model's classes, matched by name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from nescio.core.errors import InputError, some
from nescio.data.source import Derived, Labels, Source

_BETWEEN_WORDS = re.compile(r"[\s_-]+")
_INTEGER = re.compile(r"\d{1,9}")
_MOST_CLASSES = 1 << 24


class Relabelled(Derived):
    """Another source with other class numbers.

    Args:
        base: the source.
        numbers: the new number of each of its classes.
        classes: what the new numbers mean.
    """

    def __init__(self, base: Source, numbers: Sequence[int], classes: list[str] | None) -> None:
        super().__init__(base, np.asarray(numbers, dtype=np.int64).tobytes())  # banks hold labels, too
        new = np.array([*numbers, -1], dtype=np.int64)  # the last entry: an unknown label stays unknown
        self.numbers, self.labels, self.classes = numbers, new[base.labels], classes


def numbered(values: Sequence[Any], where: str) -> tuple[Labels, list[str] | None]:
    """Class numbers of labels as people write them, and class names: numbers stay, names count in sorted order.

    None, NaN, -1 and the empty string are unknown.

    Raises:
        InputError: one is neither; it is said that it stands in ``where``.
    """
    # one number in a tensor or array is that number
    plain_values = [v.item() if hasattr(v, "item") and getattr(v, "ndim", 0) == 0 else v for v in values]
    labels = [None if _is_unknown(v) else v for v in plain_values]
    known = [v for v in labels if v is not None]
    if known and all(isinstance(v, str) for v in known) and not all(_INTEGER.fullmatch(v) for v in known):
        names = sorted(set(known))
        number = {name: i for i, name in enumerate(names)}
        return np.array([-1 if v is None else number[v] for v in labels], dtype=np.int64), names
    numbers = [-1 if v is None else _class_number(v, where) for v in labels]
    return np.array(numbers, dtype=np.int64), None


def _is_unknown(value: Any) -> bool:
    if isinstance(value, str | int | float):
        return value in ("", -1, "-1") or value != value  # noqa: PLR0124 - NaN
    return value is None


def _class_number(value: Any, where: str) -> int:
    number = int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value
    if not isinstance(number, int | float) or not 0 <= number < _MOST_CLASSES or number != int(number):
        raise InputError(
            f"{where} has the entry {some([value])}: expected one class number or name per image, -1 where unknown"
        )
    return int(number)


def renumbering(theirs: Sequence[str], own: Sequence[str]) -> list[int] | None:
    """The model's number of each class of a source, by name; None where their numbers are the model's already.

    Case, and whether spaces, underscores or hyphens stand between words, makes no difference where one class alone is
    called so (ImageNet has a cardigan and a Cardigan). Names that have nothing in common cannot be compared (WordNet
    numbers and words, say): the numbers stay as they are.

    Args:
        theirs: class names of the source, in label order.
        own: those of the model.

    Raises:
        InputError: some classes are the model's and some are not, or a name of several of its classes says too little.
    """
    at = defaultdict(list)
    for i, name in enumerate(own):
        at[plain(name)].append(i)
    found = [[i for i in at[plain(name)] if own[i] == name] or at[plain(name)] for name in theirs]
    in_order = all(i in numbers for i, numbers in enumerate(found) if numbers)
    missing = [name for name, numbers in zip(theirs, found, strict=True) if not numbers]
    if len(missing) == len(theirs) or (in_order and (not missing or len(theirs) == len(own))):
        return None  # equal names; or no common ones; or the same order, and a few are spelt in another way
    if missing:
        raise InputError(f"not among {some(own)}: {some(missing)}")
    wanted = Counter(number for numbers in found for number in numbers)
    vague = [n for n, numbers in zip(theirs, found, strict=True) if len(numbers) > 1 or wanted[numbers[0]] > 1]
    if vague:
        raise InputError(f"more than one class is called {some(vague)}")
    return [numbers[0] for numbers in found]


def aligned(source: Source, own: Sequence[str] | None) -> Source:
    """The source with the class numbers of a model that has these class names; itself where they are the same.

    Raises:
        InputError: as ``renumbering``.
    """
    if own is None or not source.classes:
        return source
    numbers = renumbering(source.classes, own)
    return source if numbers is None else Relabelled(source, numbers, list(own))


def plain(name: object) -> str:
    """A class name as it is compared."""
    return _BETWEEN_WORDS.sub(" ", str(name).casefold()).strip()
