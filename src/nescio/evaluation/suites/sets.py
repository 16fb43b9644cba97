"""The data sets of the published benchmarks: what they are, how to get them, and where they lie on this disk."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from nescio.core.errors import InputError, nearest

_DATA = resources.files("nescio.evaluation.suites").joinpath("sets.toml")
SUFFIXES = ("", ".parquet", ".zip", ".tar", ".tar.gz", ".tgz")
_SPELLINGS = {"test": ("test", "val", "validation"), "train": ("train",)}


@dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        images: how many there should be, where all releases agree.
        size: of the download, roughly.
        fetch: how a program gets it: ``torchvision:NAME/SPLIT``, ``hf:OWNER/NAME:GLOB`` or the address of an archive.
        sha256: of that archive, where it is published.
        open: what ``open_source`` takes, for images that are made and not fetched.
    """

    images: int | None = None
    size: str = ""
    fetch: str = ""
    sha256: str = ""
    open: str = ""


@dataclass(frozen=True)
class DataSet:
    """A named data set. ``aliases`` are further names that its folder or file may have below a data root.

    ``classes``: how many a network for it tells apart, where a suite has it as ID.
    """

    name: str
    title: str
    about: str = ""
    licence: str = ""
    address: str = ""
    aliases: tuple[str, ...] = ()
    classes: int | None = None
    splits: dict[str, Split] = field(default_factory=dict)

    def find(self, split: str, root: Path) -> str | None:
        """Where a split lies below a data root, as ``open_source`` takes it; None where it does not."""
        if made := self.splits[split].open:
            return made
        return next((str(place) for place in self.candidates(split, root) if place.exists()), None)

    def candidates(self, split: str, root: Path) -> Iterator[Path]:
        """Where it is looked for: ``NAME/SPLIT``, ``NAME-SPLIT``, and ``NAME`` where that holds no parts of its own."""
        for name in (self.name, *self.aliases):
            for part in _SPELLINGS[split]:
                for suffix in SUFFIXES:
                    yield root / name / f"{part}{suffix}"
                    yield root / f"{name}-{part}{suffix}"
        if split == "test":
            for name in (self.name, *self.aliases):
                for suffix in SUFFIXES:
                    place = root / f"{name}{suffix}"
                    if not _has_splits(place):
                        yield place


def _has_splits(place: Path) -> bool:
    """Whether a folder holds named splits: one of them is not the whole."""
    names = [part for spellings in _SPELLINGS.values() for part in spellings]
    return place.is_dir() and any((place / f"{part}{suffix}").exists() for part in names for suffix in SUFFIXES)


@functools.cache
def known_sets() -> dict[str, DataSet]:
    """Every data set that a suite names, from the data file."""
    entries = tomllib.loads(_DATA.read_text(encoding="utf-8"))
    found = {}
    for name, entry in entries.items():
        splits = {key: Split(**entry.pop(key)) for key in _SPELLINGS if key in entry}
        found[name] = DataSet(name, **entry | {"aliases": tuple(entry.get("aliases", ()))}, splits=splits)
    return found


def known_set(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        InputError: there is none.
    """
    if name not in known_sets():
        raise InputError(f"unknown data set '{name}'{nearest(name, known_sets())}")
    return known_sets()[name]
