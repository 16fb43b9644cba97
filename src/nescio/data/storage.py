"""Files on this machine and files behind URLs (fsspec): opened, hashed and told apart alike."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from nescio.core.errors import InputError
from nescio.data.hashing import combine, hash_files

Result = TypeVar("Result")

_WAITS = (0.5, 2.0)
"""Seconds before a store is asked again."""
_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError)
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Remote:
    """A file behind a URL.

    Attributes:
        url: with its protocol.
        version: what the store's listing says of its contents: size, tag, time, as far as it does.
        size: in bytes, where the listing tells it.
    """

    url: str
    version: str = ""
    size: int | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self._path).name

    @property
    def suffix(self) -> str:
        """As a path's."""
        return PurePosixPath(self._path).suffix

    @property
    def _path(self) -> str:
        # what follows a question mark belongs to a web address, elsewhere to the name
        return self.url.partition("?")[0] if self.url.startswith(("http://", "https://")) else self.url

    def relative_to(self, root: Path | str) -> PurePosixPath:
        """The path below a folder's URL."""
        return PurePosixPath(self._path.removeprefix(str(root).rstrip("/")).lstrip("/"))

    def open(self) -> Any:
        """For reading bytes anywhere in it."""
        return self.ask(lambda system, path: system.open(path, "rb"))

    def read_bytes(self) -> bytes:
        """The contents.

        Raises:
            OSError: this file is gone, or not for us.
            InputError: the store does not answer.
        """
        return self.ask(lambda system, path: bytes(system.cat_file(path)))

    def ask(self, what: Callable[[Any, str], Result]) -> Result:
        """The store's answer, asked again where it has none.

        A store that is away for a while must not turn a thousand images into unreadable ones: that stops the run.
        """
        import fsspec

        for wait in (*_WAITS, None):
            try:
                # made anew in each process: its connections do not survive a fork
                return what(*fsspec.url_to_fs(self.url))
            except _OF_THE_FILE:
                raise
            except Exception as e:  # noqa: BLE001 - every store has errors of its own
                if wait is None:
                    raise unreachable(self.url, e) from None
                time.sleep(wait)
        raise AssertionError

    def __str__(self) -> str:
        return self.url


AnyFile = Path | Remote
"""A file here or elsewhere."""


def unreachable(url: str, e: Exception) -> InputError:
    """What to say of a store that does not answer."""
    return InputError(f"{url} cannot be fetched ({type(e).__name__}: {e})")


def stamp(files: Sequence[AnyFile]) -> str:
    """A hash of what the file systems say of files, without reading them: path, size, when written, when changed."""
    return combine(*(p.version + p.url if isinstance(p, Remote) else _file_stamp(p) for p in files))


def _file_stamp(path: Path) -> bytes:
    name = os.fsencode(path)  # a file's name need not be text
    try:
        stat = path.stat()
    except OSError:
        return name
    # the last of these no program can set: an archive unpacks other images with the times of these
    return name + f":{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}".encode()


def hash_contents(files: Sequence[AnyFile]) -> list[str]:
    """Content hash of each file. Remote ones are read through each time: no store tells all that a bank relies on."""
    here = [p for p in files if isinstance(p, Path)]
    known = iter(hash_files(here) if here else [])
    return [next(known) if isinstance(p, Path) else _digest(p) for p in files]


def _digest(remote: Remote) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with remote.open() as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except _OF_THE_FILE as e:
        return f"unreadable: {e}"
    return digest.hexdigest()
