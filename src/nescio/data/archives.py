"""A folder of images inside a zip or tar file, read in place."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from nescio.data.hashing import combine
from nescio.data.places import Place, hash_places, stamp
from nescio.data.sources import class_folders, is_image_name
from nescio.errors import BadImage, InputError

_BLOCK = 1 << 22


class _Archive:
    """What zip and tar have in common: a plain local file, member names, from which classes follow, the archive's hash.

    Where the archive is compressed as a whole or behind a URL, the local file is a temporary one: it has no random
    access, or finding its members would read all of it anyway.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        self._copy: Any = None
        self._find_file()

    def _find_file(self) -> None:
        if isinstance(self.path, Path) and not self.path.name.endswith("gz"):
            self.file = self.path
        else:
            self._copy, self.file = _copied(self.path)

    def _set_members(self, members: list[str]) -> None:
        parts = [Path(m).parts for m in members]
        while parts and len({p[0] for p in parts}) == 1 and min(map(len, parts)) > 1:
            parts = [p[1:] for p in parts]  # the archived folder itself is not a class
        self.members = members
        self.classes, self.labels = class_folders(parts, len(members))
        self._open: Any = None
        self._owner = -1

    def __len__(self) -> int:
        return len(self.members)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, so that a worker process opens its own."""
        return {**self.__dict__, "_copy": None, "_open": None, "_owner": -1}

    def name(self, i: int) -> str:
        """Archive and member."""
        return f"{self.path}/{self.members[i]}"

    def _handle(self) -> Any:
        if self._owner != os.getpid():  # after a fork, parent and child would share one file position
            if not self.file.exists() and self.file != self.path:
                self._find_file()  # this process runs on another machine
            self._open, self._owner = self._reopen(), os.getpid()
        return self._open

    def _reopen(self) -> Any:
        raise NotImplementedError

    @cached_property
    def identity(self) -> str:
        """Of the archive's bytes."""
        return combine(*hash_places([self.path]))

    @property
    def stamp(self) -> str:
        """Of the archive."""
        return stamp([self.path])


class ZipSource(_Archive):
    """Images in a zip file."""

    def __init__(self, path: Place) -> None:
        try:
            super().__init__(path)
            with zipfile.ZipFile(self.file) as archive:
                names = sorted(n for n in archive.namelist() if is_image_name(n))
        except (zipfile.BadZipFile, OSError) as e:
            raise InputError(f"{path} cannot be read as a zip file: {e}") from None
        self._set_members(names)

    def _reopen(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.file)

    def read(self, i: int) -> bytes:
        """The member's bytes."""
        try:
            data: bytes = self._handle().read(self.members[i])
        # a bad checksum, an encrypted member, a compression that Python lacks, damaged data
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as e:
            raise BadImage(f"zip member: {e}") from None
        return data


class TarSource(_Archive):
    """Images in a tar file."""

    def __init__(self, path: Place) -> None:
        try:
            super().__init__(path)
            with tarfile.open(self.file, "r:") as archive:
                found = {m.name: (m.offset_data, m.size) for m in archive if m.isfile() and is_image_name(m.name)}
        except (tarfile.TarError, OSError, EOFError, zlib.error) as e:
            raise InputError(f"{path} cannot be read as a tar file: {e}") from None
        names = sorted(found)
        self._where = [found[n] for n in names]
        self._set_members(names)

    def _reopen(self) -> BinaryIO:
        return self.file.open("rb")

    def read(self, i: int) -> bytes:
        """The member's bytes."""
        offset, size = self._where[i]
        handle: BinaryIO = self._handle()
        handle.seek(offset)
        return handle.read(size)


def _copied(path: Place) -> tuple[Any, Path]:
    """A temporary file with an archive's bytes, decompressed, and its path; it lives as long as the former."""
    copy = tempfile.NamedTemporaryFile()  # noqa: SIM115 - lives as long as the source
    with (
        path.open("rb") if isinstance(path, Path) else path.open() as packed,
        gzip.open(packed) if path.name.endswith("gz") else packed as plain,
    ):
        shutil.copyfileobj(plain, copy, _BLOCK)
    copy.flush()
    return copy, Path(copy.name)
