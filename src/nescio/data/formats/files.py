"""Image files: one, a folder of them, what a glob matches, or a list of paths."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from nescio.core.errors import InputError, some
from nescio.data.decode import Raw, check_bytes
from nescio.data.hashing import combine
from nescio.data.registry import SOURCES, load_formats, register
from nescio.data.source import Concatenated, Labels, Source, open_cut, unlabelled
from nescio.data.storage import AnyFile, Remote, hash_contents, stamp
from nescio.data.walk import files_below

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
) | {".ppm", ".pgm", ".pbm"}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_SELF_CONTAINED = (".parquet", *ARCHIVES)
"""Files that hold their images themselves, and name no others."""
_SPLITS = {"train", "test", "val", "validation"}


class Stored:
    """What sources of files have in common."""

    files: Sequence[AnyFile]

    @cached_property
    def identity(self) -> str:
        """Of the contents of all files, whatever these are called."""
        return combine(*hash_contents(self.files))

    @cached_property
    def stamp(self) -> str:
        """Of what the file systems say of them."""
        return stamp(self.files)


class Files(Stored):
    """Image files.

    Args:
        files: their paths or URLs.
        root: folders directly below it that hold images are the classes, in sorted order.
        labels: class numbers ``(N,)``, where ``root`` does not tell them.
        classes: what these numbers mean.
    """

    def __init__(
        self,
        files: Sequence[AnyFile],
        root: Path | str | None = None,
        labels: Labels | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.files = list(files)
        relative = [p.relative_to(root).parts for p in self.files] if root else []
        found = class_folders(relative, len(self.files)) if labels is None else (classes, labels)
        self.classes, self.labels = found

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        """The path."""
        return str(self.files[i])

    def read(self, i: int) -> Raw:
        """The path, which Pillow opens in the worker, or the bytes behind a URL."""
        file = self.files[i]
        if isinstance(file, Path):
            return file
        check_bytes(file.size or 0)
        return file.read_bytes()

    @cached_property
    def identity(self) -> str:
        """Of the contents and labels."""
        return combine(*hash_contents(self.files), self.labels.tobytes())


def class_folders(relative: Sequence[Sequence[str]], n: int) -> tuple[list[str] | None, Labels]:
    """Class names and labels from relative paths: the first folder names the class, if every file lies in one."""
    if relative and all(len(path) > 1 for path in relative):
        classes = sorted({path[0] for path in relative})
        index = {name: i for i, name in enumerate(classes)}
        return classes, np.array([index[path[0]] for path in relative], dtype=np.int64)
    return None, unlabelled(n)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's and is not hidden (macOS leaves ``._x.jpg`` and ``__MACOSX``)."""
    path = Path(name)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


@register("")
def open_local(text: str, *, out: bool = False) -> Source:
    """A file, folder or glob of this machine; ``out``: links that lead out of a folder are followed."""
    try:
        path = Path(text).expanduser()
        if path.exists() or not glob.has_magic(text):
            source = _open_path(path, out=out)
        else:  # an absolute pattern has no root for Path.glob to start from
            matches = glob.glob(str(path), recursive=True)  # noqa: PTH207
            source = of_matches(sorted(map(Path, matches)), text, out=out)
    except (OSError, RuntimeError) as e:
        raise InputError(f"{text} cannot be opened: {e}") from None
    return _with_images(source, text)


@register("links:")
def open_with_links(text: str) -> Source:
    """The same, through links that lead out of a folder."""
    return open_local(text, out=True)


def open_here(spec: str) -> Source:
    """Open a file or folder of this machine, with what ``[…]`` at its end takes of it; nothing else.

    For names that a file of anyone holds: nobody is asked, nothing is fetched, no links out of a folder are followed,
    no file is opened that names others.

    Raises:
        InputError: as ``open_source``; or it is no such name.
    """
    load_formats()
    return open_cut(spec, _open_file_or_folder)


def _open_file_or_folder(text: str) -> Source:
    path = Path(text)
    try:
        # two strokes name another machine on Windows
        if text.startswith(("//", "\\\\")) or not path.exists():
            raise InputError(f"{text[:200]} is not a file or folder on this machine")
        if path.is_file() and not (text.lower().endswith(_SELF_CONTAINED) or is_image_name(text)):
            raise InputError(f"{text[:200]} is not a file that contains images")
        source = _open_path(path)
    except (OSError, RuntimeError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{text[:200]} cannot be opened: {e}") from None
    return _with_images(source, text)


def _with_images(source: Source, text: str) -> Source:
    if len(source) == 0:
        raise InputError(f"{text} contains no images")
    return source


def _open_path(path: Path, *, out: bool = False) -> Source:
    if path.is_dir():
        return of_files(files_below(path, out=out), path)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if not path.is_file():
        raise InputError(f"{path} is a pipe, socket or device, not a file")
    return of_file(path)


def of_file(file: AnyFile) -> Source:
    """The images in one file, by how its name ends."""
    if is_image_name(file.name):
        return Files([file])
    suffix = suffix_of(file.name)
    if suffix is None:
        known = ", ".join(sorted(key for key in SOURCES if key.startswith(".")))
        raise InputError(f"{file} is not a folder, an image or a file of images ({known})")
    source: Source = SOURCES[suffix](file)
    return source


def suffix_of(name: str) -> str | None:
    """The longest suffix in ``SOURCES`` that a file's name ends in."""
    found = [key for key in SOURCES if key.startswith(".") and name.lower().endswith(key)]
    return max(found, key=len, default=None)


def of_files(files: Sequence[AnyFile], root: Path | str) -> Source:
    """The images of a folder, from all files below it: images, else parquet shards."""
    images = [p for p in files if is_image_name(str(p.relative_to(root)))]
    if images:
        return Files(images, root)
    shards = [p for p in files if p.suffix == ".parquet"]
    if not shards:
        others = sorted({p.suffix for p in files})
        found = f"; its {len(files)} files end in {some(others)}" if files else "; it is empty"
        raise InputError(f"{root} contains no images{found}")
    splits = sorted({p.name.partition("-")[0] for p in shards} & _SPLITS)
    if len(splits) > 1:
        raise InputError(f"{root} contains the splits {some(splits)}; give one, e.g. '{root}/**/{splits[0]}-*.parquet'")
    return _alike([of_file(p) for p in shards])


def of_matches(matches: Sequence[AnyFile], pattern: str, *, out: bool = False) -> Source:
    """The images of what a glob matches; ``out``: links that lead out of a folder are followed."""
    files = [p for p in matches if isinstance(p, Remote) or p.is_file()]
    if files and all(is_image_name(p.name) for p in files):
        return Files(files)
    if any(is_image_name(p.name) for p in files):
        raise InputError(f"'{pattern}' matches images and other files; match only images, e.g. '{pattern}.jpg'")
    opened = (of_file(p) if isinstance(p, Remote) else _open_path(p, out=out) for p in matches)
    sources = [source for source in opened if len(source)]
    if not sources:
        raise InputError(f"no images match '{pattern}'")
    return _alike(sources)


def of_paths(paths: Sequence[Path], labels: Labels | None, classes: list[str] | None, hint: str = "") -> Source:
    """The image files at paths that somebody listed, with their labels where these are known.

    Raises:
        InputError: some are not there.
    """
    gone = [p for p in paths if not p.is_file()]
    if gone:
        message = f"{len(gone):,} of {len(paths):,} images do not exist" if len(paths) > 1 else "no such file"
        raise InputError(f"{message}: {some(gone, 3)}{hint}")
    return Files(paths, labels=labels, classes=classes)


def _alike(sources: Sequence[Source]) -> Source:
    source = Concatenated(sources)
    if not source.agree:
        raise InputError("the sets that a glob matches have different class names; give them one at a time")
    return source
