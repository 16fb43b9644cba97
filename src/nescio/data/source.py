"""Where images come from: a folder, a zip or tar of one, parquet, a named or user's own data set, globs, URLs."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from nescio.core import numerics
from nescio.core.errors import InputError, some
from nescio.data.decode import Raw, check_bytes
from nescio.data.formats.files import files_below
from nescio.data.hashing import combine
from nescio.data.storage import Place, Remote, hash_places, stamp

Labels = npt.NDArray[np.int64]
log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
        ".heic",
        ".jfif",
    ]
)
_SLICE = re.compile(r"(?P<base>.+)\[(?P<start>\d*):(?P<stop>\d*)\]")
_DRAW = re.compile(r"(?P<base>.+)\[~(?P<count>\d+)\]")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_SPLITS = {"train", "test", "val", "validation"}
_LINKS = "links:"
_MOST_CUTS = 8
"""Brackets behind one name."""
_UNLABELLED = -1


class Source(Protocol):
    """A finite, ordered collection of images, read by position from any worker process.

    Attributes:
        labels: true class per image, -1 where unknown ``(N,)``.
        classes: class names in label order, or None where nobody named them.
    """

    classes: list[str] | None

    @property
    def labels(self) -> Labels:
        """True classes."""
        ...

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What a person would call image ``i``: its path, or the file and row."""
        ...

    def read(self, i: int) -> Raw:
        """Image ``i``, not decoded yet where the source holds encoded bytes. Raises BadImage or OSError."""
        ...

    @property
    def identity(self) -> str:
        """A hash of the contents and labels: equal for equal data, wherever they lie."""
        ...

    @property
    def stamp(self) -> str:
        """A hash of paths, sizes and times: another one where images came, went or changed. Reads none of them."""
        ...


@dataclass
class Rows:
    """Some positions of another source, in order."""

    base: Source
    rows: Sequence[int]

    def __post_init__(self) -> None:
        self.labels = self.base.labels[np.asarray(self.rows, dtype=np.int64)]
        self.classes = self.base.classes

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """As the base names it."""
        return self.base.name(self.rows[i])

    def read(self, i: int) -> Raw:
        """As the base reads it."""
        return self.base.read(self.rows[i])

    @property
    def identity(self) -> str:
        """Of the base and the positions."""
        return combine(self.base.identity, np.asarray(self.rows, dtype=np.int64).tobytes())

    @property
    def stamp(self) -> str:
        """Of the base and the positions."""
        return combine(self.base.stamp, np.asarray(self.rows, dtype=np.int64).tobytes())


class Files:
    """Image files. Folders directly below ``root`` that hold images are the classes, in sorted order."""

    def __init__(self, paths: Sequence[Place], root: Path | str | None = None) -> None:
        self.paths = list(paths)
        relative = [p.relative_to(root).parts for p in self.paths] if root else []
        self.classes, self.labels = class_folders(relative, len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """The path."""
        return str(self.paths[i])

    def read(self, i: int) -> Raw:
        """The path, which Pillow opens in the worker, or the bytes behind a URL."""
        path = self.paths[i]
        if isinstance(path, Path):
            return path
        check_bytes(path.size or 0)
        return path.read_bytes()

    @cached_property
    def identity(self) -> str:
        """Of all file contents and labels, whatever the files are called."""
        return combine(*hash_places(self.paths), self.labels.tobytes())

    @cached_property
    def stamp(self) -> str:
        """Of all files."""
        return stamp(self.paths)


@dataclass
class Concatenated:
    """Several sources one after the other, unlabelled where they don't mean the same classes."""

    parts: Sequence[Source]

    def __post_init__(self) -> None:
        self.ends = np.cumsum([len(p) for p in self.parts])
        self.classes = self.parts[0].classes
        if self.agree:
            self.labels = np.concatenate([p.labels for p in self.parts])
        else:
            self.classes, self.labels = None, np.full(len(self), _UNLABELLED, dtype=np.int64)

    @cached_property
    def agree(self) -> bool:
        """Whether all parts have the same class names."""
        return all(p.classes == self.parts[0].classes for p in self.parts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _find(self, i: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self.ends, i, "right"))
        return self.parts[part], i - (int(self.ends[part - 1]) if part else 0)

    def name(self, i: int) -> str:
        """As the part names it."""
        source, at = self._find(i)
        return source.name(at)

    def read(self, i: int) -> Raw:
        """As the part reads it."""
        source, at = self._find(i)
        return source.read(at)

    @property
    def identity(self) -> str:
        """Of the parts in order."""
        return combine(*(p.identity for p in self.parts))

    @property
    def stamp(self) -> str:
        """Of the parts in order."""
        return combine(*(p.stamp for p in self.parts))


AnySource = str | Path | Source | Dataset[Any]
"""A source, a PyTorch data set, or what ``open_source`` takes."""


def as_source(given: AnySource) -> Source:
    """The source itself, or that of a name or of a PyTorch data set.

    Raises:
        InputError: it is none of these, or as ``open_source``.
    """
    if isinstance(given, str | Path):
        return open_source(given)
    if callable(getattr(given, "read", None)) and callable(getattr(given, "name", None)):
        return cast("Source", given)
    from nescio.data.formats.torch import of_dataset

    return of_dataset(given)


def by_name(given: object, what: str) -> dict[str, Any]:
    """The sets, by their names.

    Raises:
        InputError: they have no names.
    """
    if isinstance(given, Mapping):
        return dict(given)
    got = f"'{given}'" if isinstance(given, str | Path) else type(given).__name__
    raise InputError(f"{what} takes sets of images by name, as {what}={{'textures': 'FOLDER'}}, got {got}")


def draw(base: Source, count: int) -> Source:
    """That many images of a source in its order, drawn once and for all; the source itself where it has no more."""
    if count < 1:
        raise InputError(f"{count} images cannot be drawn; take one or more")
    return base if count >= len(base) else Rows(base, numerics.drawn(len(base), count).tolist())


def class_folders(relative: Sequence[Sequence[str]], n: int) -> tuple[list[str] | None, Labels]:
    """Class names and labels from relative paths: the first folder names the class, if every file lies in one."""
    if relative and all(len(parts) > 1 for parts in relative):
        classes = sorted({parts[0] for parts in relative})
        index = {name: i for i, name in enumerate(classes)}
        return classes, np.array([index[parts[0]] for parts in relative], dtype=np.int64)
    return None, np.full(n, _UNLABELLED, dtype=np.int64)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's and is not hidden (macOS leaves ``._x.jpg`` and ``__MACOSX``)."""
    path = Path(name)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def open_source(spec: str | Path) -> Source:
    """Open what a user names on the command line.

    Args:
        spec: a folder of images (class sub-folders or flat) or of parquet shards; a ``.zip``, ``.tar``, ``.tar.gz`` or
            ``.tgz`` of one; a ``.parquet`` file in the Hugging Face image schema; a glob over any of these;
            ``torchvision:CIFAR10/test``, a torchvision data set (downloaded where it can be); ``noise:gaussian`` or
            ``noise:uniform`` with options, images that are drawn; a file, folder or glob behind a URL (``s3://…``,
            ``gs://…``, ``https://…``: whatever fsspec reaches). ``[:2000]`` at the end takes the first 2,000 images,
            ``[~2000]`` any 2,000, always the same ones (all, where there are no more). Links within a folder that lead
            out of it are skipped with a warning; ``links:FOLDER`` follows them.

    Raises:
        InputError: there is nothing there, it holds no images, or its kind is not known.
    """
    return _open_cut(str(spec), _open_named)


def open_here(spec: str) -> Source:
    """Open a file or folder of this machine, with what ``[…]`` at its end takes of it; nothing else.

    For names that a file of anyone holds: nobody is asked, nothing is fetched, no links out of a folder are followed.

    Raises:
        InputError: as ``open_source``; or it is no such name.
    """
    return _open_cut(spec, _open_file_or_folder)


def _open_cut(text: str, opened: Callable[[str], Source]) -> Source:
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
            raise InputError(f"'{match[0]}' takes no images: {base} has {len(source):,}")
        _warn_of_lost_classes(source, rows, match[0], base)
        source = Rows(source, rows)
    return source


def _open_named(text: str) -> Source:
    if text.startswith("noise:"):
        from nescio.data.formats.synthetic import NoiseSource

        return NoiseSource.parse(text.removeprefix("noise:"))
    if text.startswith("torchvision:"):
        from nescio.data.formats.torch import torchvision_source

        return torchvision_source(text.removeprefix("torchvision:"))
    if "://" in text:
        from nescio.data.formats.remote import local_path, open_remote

        here = local_path(text)
        return open_remote(text) if here is None else _open_named(here)
    out = text.startswith(_LINKS)
    text = text.removeprefix(_LINKS)
    try:
        path = Path(text).expanduser()
        source = _open_glob(text, out=out) if not path.exists() and glob.has_magic(text) else _open_path(path, out=out)
    except (OSError, RuntimeError) as e:
        raise InputError(f"{text} cannot be opened: {e}") from None
    return _with_images(source, text)


def _open_file_or_folder(text: str) -> Source:
    path = Path(text)
    try:
        # two strokes name another machine on Windows
        if text.startswith(("//", "\\\\")) or not path.exists():
            raise InputError(f"{text[:200]} is no file or folder of this machine")
        source = _open_path(path)
    except (OSError, RuntimeError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{text[:200]} cannot be opened: {e}") from None
    return _with_images(source, text)


def _with_images(source: Source, text: str) -> Source:
    if len(source) == 0:
        raise InputError(f"{text} holds no images")
    return source


def _warn_of_lost_classes(base: Source, rows: range, text: str, name: str) -> None:
    """Say that consecutive images of a set that is sorted by class are of its first classes alone."""
    labels = base.labels
    there = len(np.unique(labels[labels >= 0]))
    taken = len(np.unique(labels[rows.start : rows.stop]))
    if taken < there <= len(rows) and bool((np.diff(labels) >= 0).all()):
        log.warning(
            "'%s' takes images in their order, which is by class: they are of %s of %s classes; '%s[~%s]' takes any %s",
            *(text, f"{taken:,}", f"{there:,}", name, len(rows), f"{len(rows):,}"),
        )


def open_sources(specs: Sequence[AnySource]) -> Source:
    """One source of several, in the order given.

    Raises:
        InputError: as ``open_source``; or there are none.
    """
    if not specs:
        raise InputError("no images were named")
    sources = [as_source(spec) for spec in specs]
    return sources[0] if len(sources) == 1 else Concatenated(sources)


def _open_path(path: Path, *, out: bool = False) -> Source:
    if path.is_dir():
        return of_files(files_below(path, out=out), path)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if not path.is_file():
        raise InputError(f"{path} is a pipe, socket or device, not a file")
    return of_file(path)


def single(name: str) -> bool:
    """Whether a file of that name can hold images, or be one."""
    return name.lower().endswith((".parquet", *_ARCHIVES)) or is_image_name(name)


def of_file(place: Place) -> Source:
    """The images in one file."""
    from nescio.data.formats.archive import TarSource, ZipSource
    from nescio.data.formats.parquet import ParquetSource

    name = place.name.lower()
    if name.endswith(".parquet"):
        return ParquetSource(place)
    if name.endswith(".zip"):
        return ZipSource(place)
    if name.endswith(_ARCHIVES):
        return TarSource(place)
    if is_image_name(name):
        return Files([place])
    raise InputError(f"{place} is neither a folder, an image, nor a .parquet, .zip or .tar file")


def of_files(files: Sequence[Place], root: Path | str) -> Source:
    """The images of a folder, from all files below it: images, else parquet shards."""
    images = [p for p in files if is_image_name(str(p.relative_to(root)))]
    if images:
        return Files(images, root)
    shards = [p for p in files if p.suffix == ".parquet"]
    if not shards:
        others = sorted({p.suffix for p in files})
        found = f"; its {len(files)} files end in {some(others)}" if files else "; it is empty"
        raise InputError(f"{root} holds no images{found}")
    splits = sorted({p.name.partition("-")[0] for p in shards} & _SPLITS)
    if len(splits) > 1:
        raise InputError(f"{root} holds the splits {some(splits)}; name one, e.g. '{root}/**/{splits[0]}-*.parquet'")
    return _alike([of_file(p) for p in shards])


def of_matches(matches: Sequence[Place], pattern: str, *, out: bool = False) -> Source:
    """The images of what a glob matches; ``out``: links that lead out of a folder are followed."""
    files = [p for p in matches if isinstance(p, Remote) or p.is_file()]
    if files and all(is_image_name(p.name) for p in files):
        return Files(files)
    if any(is_image_name(p.name) for p in files):
        raise InputError(f"'{pattern}' matches images and other things; match images alone, e.g. '{pattern}.jpg'")
    opened = (of_file(p) if isinstance(p, Remote) else _open_path(p, out=out) for p in matches)
    parts = [source for source in opened if len(source)]
    if not parts:
        raise InputError(f"no images match '{pattern}'")
    return _alike(parts)


def _alike(parts: Sequence[Source]) -> Source:
    source = Concatenated(parts)
    if not source.agree:
        raise InputError("the parts of a glob have different class names; give them one at a time")
    return source


def _open_glob(pattern: str, *, out: bool) -> Source:
    # an absolute pattern has no root for Path.glob to start from
    matches = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207
    return of_matches(sorted(Path(p) for p in matches), pattern, out=out)
