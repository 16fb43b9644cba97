"""A set of images: what it is, what it is made of, and how the form it comes in is found."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from nescio.core import numerics
from nescio.core.errors import InputError
from nescio.data.decode import Raw
from nescio.data.hashing import combine
from nescio.data.registry import IN_MEMORY, INDEXED, SOURCES, load_formats

Labels = npt.NDArray[np.int64]
log = logging.getLogger(__name__)

_SLICE = re.compile(r"(?P<base>.+)\[(?P<start>\d*):(?P<stop>\d*)\]")
_DRAW = re.compile(r"(?P<base>.+)\[~(?P<count>\d+)\]")
_MOST_CUTS = 8
"""Brackets behind one name."""
_URL = "://"


class Source(Protocol):
    """A finite, ordered collection of images, read by position from any worker process.

    Attributes:
        labels: true class per image, -1 where unknown ``(N,)``.
        classes: class names in label order, or None where nobody named them.
    """

    @property
    def classes(self) -> list[str] | None:
        """Class names."""

    @property
    def labels(self) -> Labels:
        """True classes."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What a person would call image ``i``: its path, or the file and row."""

    def read(self, i: int) -> Raw:
        """Image ``i``, not decoded yet where the source holds encoded bytes. Raises BadImage or OSError."""

    @property
    def identity(self) -> str:
        """A hash of the contents and labels: equal for equal data, wherever they lie."""

    @property
    def stamp(self) -> str:
        """A hash of paths, sizes and times: another one where images came, went or changed. Reads none of them."""


def unlabelled(n: int) -> Labels:
    """Labels of that many images whose classes nobody knows."""
    return np.full(n, -1, dtype=np.int64)


class Derived:
    """Another source with something changed, which ``key`` describes; here, nothing is."""

    def __init__(self, base: Source, *key: str | bytes) -> None:
        self.base, self.key = base, key
        self.labels, self.classes = base.labels, base.classes

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
        """Of the base and what is changed."""
        return combine(self.base.identity, *self.key)

    @property
    def stamp(self) -> str:
        """Of the base and what is changed."""
        return combine(self.base.stamp, *self.key)


class Rows(Derived):
    """Some positions of another source, in order."""

    def __init__(self, base: Source, rows: Sequence[int]) -> None:
        at = np.asarray(rows, dtype=np.int64)
        super().__init__(base, at.tobytes())
        self.rows, self.labels = rows, base.labels[at]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """As the base names it."""
        return self.base.name(self.rows[i])

    def read(self, i: int) -> Raw:
        """As the base reads it."""
        return self.base.read(self.rows[i])


class Concatenated:
    """Several sources one after the other, unlabelled where they don't mean the same classes."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(s) for s in sources])
        self.classes = sources[0].classes if self.agree else None
        self.labels = np.concatenate([s.labels for s in sources]) if self.agree else unlabelled(len(self))

    @cached_property
    def agree(self) -> bool:
        """Whether all sources have the same class names."""
        return all(s.classes == self.sources[0].classes for s in self.sources)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _find(self, i: int) -> tuple[Source, int]:
        at = int(np.searchsorted(self.ends, i, "right"))
        return self.sources[at], i - (int(self.ends[at - 1]) if at else 0)

    def name(self, i: int) -> str:
        """As its source names it."""
        source, at = self._find(i)
        return source.name(at)

    def read(self, i: int) -> Raw:
        """As its source reads it."""
        source, at = self._find(i)
        return source.read(at)

    @property
    def identity(self) -> str:
        """Of the sources in order."""
        return combine(*(s.identity for s in self.sources))

    @property
    def stamp(self) -> str:
        """Of the sources in order."""
        return combine(*(s.stamp for s in self.sources))


AnySource = Any
"""A source, what ``open_source`` takes, or images in memory: see ``as_source``."""


def as_source(images: AnySource) -> Source:
    """The source of whatever holds images.

    Args:
        images: a source itself; a name, as ``open_source`` takes it; a PyTorch data set, or what has a length and
            indexing like one (whose items are an image, ``(image, label, …)`` or a dict of both), or a DataLoader of
            one, in order; a Hugging Face data set; a frame of pandas or Polars, or an Arrow table, with a column
            ``path``, ``file`` or ``image``, and perhaps ``label`` or ``class``; a Series of paths; a list of paths,
            encoded bytes, PIL images, arrays or tensors, or of pairs of one and its label, or of dicts of both; a
            tensor ``(B, C, H, W)`` or array ``(B, H, W, C)``, of grey images also ``(B, H, W)``; one of all these with
            labels as ``(images, labels)``; one PIL image. Arrays and tensors hold uint8, or floats in [0, 1], of 1, 3
            or 4 channels, first or last.

    Raises:
        InputError: it is none of these, or as ``open_source``.
    """
    if isinstance(images, str | Path):
        return open_source(images)
    if callable(getattr(images, "read", None)) and callable(getattr(images, "name", None)):
        return cast("Source", images)
    load_formats()
    opener = next((opener for fits, opener in IN_MEMORY if fits(images)), None)
    if (
        opener is None
        and hasattr(images, "__len__")
        and hasattr(images, "__getitem__")
        and not isinstance(images, Mapping)
    ):
        opener = INDEXED[0]
    if opener is None:
        raise InputError(
            f"{type(images).__name__} is not an image or a set of images: give a path (a folder, an archive, parquet, "
            "a CSV file, 'torchvision:CIFAR10/test'), a data set, a DataLoader or DataFrame, or a list of paths, PIL "
            "images, arrays or tensors"
        )
    source: Source = opener(images)
    return source


def by_name(sets: object, what: str) -> dict[str, Any]:
    """The sets, by their names.

    Raises:
        InputError: they have no names.
    """
    if isinstance(sets, Mapping):
        return dict(sets)
    got = f"'{sets}'" if isinstance(sets, str | Path) else type(sets).__name__
    raise InputError(f"{what}: expected sets of images by name, as {what}={{'textures': 'FOLDER'}}, got {got}")


def draw(base: Source, count: int) -> Source:
    """That many images of a source in its order, drawn once and for all; the source itself where it has no more."""
    if count < 1:
        raise InputError(f"{count} images cannot be drawn; take one or more")
    return base if count >= len(base) else Rows(base, numerics.drawn(len(base), count).tolist())


def open_source(spec: AnySource) -> Source:
    """Open what a user names on the command line, or holds in memory (see ``as_source``).

    Args:
        spec: a folder of images (class sub-folders or flat) or of parquet shards; a ``.zip``, ``.tar``, ``.tar.gz`` or
            ``.tgz`` of one; a ``.parquet`` file in the Hugging Face image schema; a ``.csv`` file of paths and labels;
            a glob over any of these; ``torchvision:CIFAR10/test``, a torchvision data set (downloaded where it can be);
            ``webdataset:shard-{000..010}.tar``, WebDataset's shards; ``noise:gaussian`` or ``noise:uniform`` with
            options, images that are drawn; a file, folder or glob behind a URL (``s3://…``, ``gs://…``, ``https://…``:
            whatever fsspec reaches). ``[:2000]`` at the end takes the first 2,000 images, ``[~2000]`` any 2,000, always
            the same ones (all, where there are no more). Links within a folder that lead out of it are skipped with a
            warning; ``links:FOLDER`` follows them.

    Raises:
        InputError: there is nothing there, it holds no images, or its kind is not known.
    """
    return open_cut(str(spec), _open_name) if isinstance(spec, str | Path) else as_source(spec)


def _open_name(text: str) -> Source:
    load_formats()
    word, colon, rest = text.partition(":")
    if word and word + colon in SOURCES:
        source: Source = SOURCES[word + colon](rest)
    else:
        source = SOURCES[_URL if _URL in text else ""](text)
    return source


def open_sources(specs: Sequence[AnySource]) -> Source:
    """One source of several, in the order given.

    Raises:
        InputError: as ``as_source``; or there are none.
    """
    if not specs:
        raise InputError("no images were given")
    sources = [as_source(spec) for spec in specs]
    return sources[0] if len(sources) == 1 else Concatenated(sources)


def open_cut(text: str, opened: Callable[[str], Source]) -> Source:
    """What ``opened`` gives for the name, cut as the brackets behind it say, from the first to the last."""
    name, cuts = text, []
    while match := _SLICE.fullmatch(name) or _DRAW.fullmatch(name):
        name = match["base"]
        cuts.append((match, name))
        if len(cuts) > _MOST_CUTS:
            raise InputError(f"'{text[:100]}…' cuts a set of images more than {_MOST_CUTS} times")
    source = opened(name)
    for match, base in reversed(cuts):
        cut = match.groupdict()
        if "count" in cut:
            source = draw(source, int(cut["count"]))
            continue
        start, stop = int(cut["start"] or 0), int(cut["stop"] or len(source))
        rows = range(len(source))[start:stop]
        if not rows:
            raise InputError(f"'{match[0]}' selects no images: {base} has {len(source):,}")
        _warn_of_lost_classes(source, rows, match[0], base)
        source = Rows(source, rows)
    return source


def _warn_of_lost_classes(base: Source, rows: range, text: str, name: str) -> None:
    """Say that consecutive images of a set that is sorted by class are of its first classes alone."""
    labels = base.labels
    there = len(np.unique(labels[labels >= 0]))
    taken = len(np.unique(labels[rows.start : rows.stop]))
    if taken < there <= len(rows) and bool((np.diff(labels) >= 0).all()):
        log.warning(
            "'%s' takes the first images, which are sorted by class: they cover %s of %s classes; '%s[~%s]' draws %s "
            "at random",
            *(text, f"{taken:,}", f"{there:,}", name, len(rows), f"{len(rows):,}"),
        )
