"""A folder of images inside a zip or tar file, read in place."""

from __future__ import annotations

import os
import tarfile
import tempfile
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from nescio.data.hashing import combine, hash_files
from nescio.data.sources import class_folders, is_image_name
from nescio.errors import BadImage, InputError


class _Archive:
    """What zip and tar have in common: member names, from which classes follow, and the archive's own hash."""

    def __init__(self, path: Path, members: list[str]) -> None:
        self.path = path
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
        return {**self.__dict__, "_open": None, "_owner": -1}

    def name(self, i: int) -> str:
        """Archive and member."""
        return f"{self.path}/{self.members[i]}"

    def _handle(self) -> Any:
        if self._owner != os.getpid():  # after a fork, parent and child would share one file position
            self._open, self._owner = self._reopen(), os.getpid()
        return self._open

    def _reopen(self) -> Any:
        raise NotImplementedError

    @cached_property
    def identity(self) -> str:
        """Of the archive's bytes."""
        return combine(*hash_files([self.path]))


class ZipSource(_Archive):
    """Images in a zip file."""

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if is_image_name(n))
        except (zipfile.BadZipFile, OSError) as e:
            raise InputError(f"{path} cannot be read as a zip file: {e}") from None
        super().__init__(path, names)

    def _reopen(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def read(self, i: int) -> bytes:
        """The member's bytes."""
        try:
            data: bytes = self._handle().read(self.members[i])
        # a bad checksum, an encrypted member, a compression that Python lacks, damaged data
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as e:
            raise BadImage(f"zip member: {e}") from None
        return data


class TarSource(_Archive):
    """Images in a tar file. A compressed one is unpacked once, to a temporary file, since it has no random access."""

    def __init__(self, path: Path) -> None:
        self._plain: Any = None
        self.file = path
        try:
            if path.name.endswith("gz"):
                self._plain, self.file = _decompress(path)
            with tarfile.open(self.file, "r:") as archive:
                found = {m.name: (m.offset_data, m.size) for m in archive if m.isfile() and is_image_name(m.name)}
        except (tarfile.TarError, OSError, EOFError, zlib.error) as e:
            raise InputError(f"{path} cannot be read as a tar file: {e}") from None
        names = sorted(found)
        self._where = [found[n] for n in names]
        super().__init__(path, names)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files."""
        return {**super().__getstate__(), "_plain": None}

    def _reopen(self) -> BinaryIO:
        return self.file.open("rb")

    def read(self, i: int) -> bytes:
        """The member's bytes."""
        offset, size = self._where[i]
        handle: BinaryIO = self._handle()
        handle.seek(offset)
        return handle.read(size)


def _decompress(path: Path) -> tuple[Any, Path]:
    import gzip
    import shutil

    plain = tempfile.NamedTemporaryFile(suffix=".tar")  # noqa: SIM115 - lives as long as the source
    with gzip.open(path) as packed:
        shutil.copyfileobj(packed, plain)
    plain.flush()
    return plain, Path(plain.name)
