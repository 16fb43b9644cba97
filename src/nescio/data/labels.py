"""Class numbers of images in the order of a model's classes, matched by name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nescio.core.errors import InputError, some
from nescio.data.decode import Raw
from nescio.data.hashing import combine
from nescio.data.source import Source

_BETWEEN_WORDS = re.compile(r"[\s_-]+")


@dataclass
class Relabelled:
    """Another source with other class numbers.

    Attributes:
        base: the source.
        numbers: the new number of each of its classes.
        classes: what the new numbers mean.
    """

    base: Source
    numbers: Sequence[int]
    classes: list[str] | None

    def __post_init__(self) -> None:
        new = np.array([*self.numbers, -1], dtype=np.int64)  # the last entry: an unknown label stays unknown
        self.labels = new[self.base.labels]

    def __len__(self) -> int:
        return len(self.base)

    def name(self, i: int) -> str:
        """As the base names it."""
        return self.base.name(i)

    def read(self, i: int) -> Raw:
        """As the base reads it."""
        return self.base.read(i)

    @property
    def identity(self) -> str:
        """Of the base and the new numbers: banks hold labels, too."""
        return combine(self.base.identity, np.asarray(self.numbers, dtype=np.int64).tobytes())

    @property
    def stamp(self) -> str:
        """Of the base and the new numbers."""
        return combine(self.base.stamp, np.asarray(self.numbers, dtype=np.int64).tobytes())


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
    in_place = all(i in places for i, places in enumerate(found) if places)
    missing = [name for name, places in zip(theirs, found, strict=True) if not places]
    if len(missing) == len(theirs) or (in_place and (not missing or len(theirs) == len(own))):
        return None  # equal names; or no common ones; or the same order, and a few are spelt in another way
    if missing:
        raise InputError(f"not among {some(own)}: {some(missing)}")
    wanted = Counter(number for places in found for number in places)
    vague = [n for n, places in zip(theirs, found, strict=True) if len(places) > 1 or wanted[places[0]] > 1]
    if vague:
        raise InputError(f"more than one class is called {some(vague)}")
    return [places[0] for places in found]


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
