"""Content hashes, with those of files remembered by all that tells that a file is still the same."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from nescio.core.errors import BadImage

log = logging.getLogger(__name__)

_UNREADABLE = "unreadable:"
_GROUP = 1024
_UNSETTLED = 2_000_000_000  # nanoseconds
_VERSION = 2
_KEY = ("path", "size", "mtime", "ctime", "inode", "device")
_TABLE = (
    "CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode TEXT, device TEXT, "
    "hash TEXT)"
)
_FIND = f"SELECT hash FROM files WHERE {' AND '.join(f'{name}=?' for name in _KEY)}"  # noqa: S608 - names of ours
_ADD = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)"
_Key = tuple[bytes, int, int, int, str, str]


def cache_root() -> Path:
    """Where banks, hashes and downloads live: ``$NESCIO_CACHE``, else ``nescio`` in the user's cache folder."""
    if root := os.environ.get("NESCIO_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nescio"


def combine(*pieces: str | bytes) -> str:
    """One hash over several pieces, unambiguous about where each ends."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def hash_files(paths: Sequence[Path]) -> list[str]:
    """Content hash of each file.

    A file is not read again while its path, size, inode, device and the times of its last write and last change of
    any kind (which no program can set) are the same. A file that cannot be read has a hash that says so; whoever
    reads it later meets the reason.
    """
    with ThreadPoolExecutor() as pool:
        keys = list(pool.map(_key, paths))
        known = _remembered(keys)
        hashes = list(pool.map(lambda p, found: found or _digest(p), paths, known))
    settled = time.time_ns() - _UNSETTLED
    # a file written this very moment may be written again without its time changing: it is not remembered
    fresh = [(*k, h) for k, h, found in zip(keys, hashes, known, strict=True) if not found and max(k[2:4]) < settled]
    if fresh := [row for row in fresh if not row[-1].startswith(_UNREADABLE)]:
        _remember(fresh)
    return hashes


def hash_images(source: Any) -> Iterator[str]:
    """A hash of each image of a source: of its bytes where it is encoded, else of its pixels; "" where unreadable."""
    for start in range(0, len(source), _GROUP):
        paths: dict[int, Path] = {}
        found = [""] * min(_GROUP, len(source) - start)
        for i in range(len(found)):
            try:
                raw = source.read(start + i)
            except (BadImage, OSError):
                continue
            if isinstance(raw, Path):
                paths[i] = raw
            else:
                data = raw if isinstance(raw, bytes) else f"{raw.mode}{raw.size}".encode() + raw.tobytes()
                found[i] = hashlib.blake2b(data, digest_size=16).hexdigest()
        for i, digest in zip(paths, hash_files(list(paths.values())), strict=True):
            found[i] = digest if paths[i].is_file() else ""
        yield from found


def _key(path: Path) -> _Key:
    try:
        stat = path.stat()
    except OSError:
        return os.fsencode(path.absolute()), -1, time.time_ns(), 0, "", ""
    # as text: some systems number their files beyond what sqlite's integers hold
    where = f"{stat.st_ino}", f"{stat.st_dev}"
    return os.fsencode(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, *where


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as e:
        return f"{_UNREADABLE} {e.strerror}"


def _file() -> Path:
    return cache_root() / "hashes.sqlite"


def _remembered(keys: Sequence[_Key]) -> list[str | None]:
    """The hashes that are known; from a cache that can be read but not written, too."""
    path = _file()
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=60, uri=True)) as memory:
            if memory.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
                rows = [memory.execute(_FIND, key).fetchone() for key in keys]
                return [row[0] if row else None for row in rows]
    except sqlite3.Error as e:
        if _shows_damage(e):
            with suppress(OSError), _writing(path):
                _discard(path, e)
    return [None] * len(keys)


def _remember(rows: Sequence[tuple[bytes, int, int, int, str, str, str]]) -> None:
    """Keep hashes for the next time, where that is possible: it saves time and nothing else."""
    path = _file()
    with suppress(OSError, sqlite3.Error):  # locked for a minute, a full disk, a folder that is not for us
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writing(path):
            try:
                _add(path, rows)
            except sqlite3.Error as e:
                if not _shows_damage(e):
                    raise
                _discard(path, e)
                _add(path, rows)


def _add(path: Path, rows: Sequence[tuple[bytes, int, int, int, str, str, str]]) -> None:
    with closing(sqlite3.connect(path, timeout=60)) as memory, memory:
        if memory.execute("PRAGMA user_version").fetchone()[0] != _VERSION:  # new, or an earlier version's
            memory.execute("DROP TABLE IF EXISTS files")
            memory.execute(_TABLE)
            memory.execute(f"PRAGMA user_version={_VERSION}")
        memory.executemany(_ADD, rows)


def _writing(path: Path) -> FileLock:
    """Held by who writes the hashes, since who finds them damaged removes the file."""
    return FileLock(path.with_name("hashes.lock"), timeout=60)


def _shows_damage(e: sqlite3.Error) -> bool:
    """Whether the file is at fault, and not the disk, a permission or another process."""
    code = getattr(e, "sqlite_errorcode", None)  # None where a text is not one
    return code is None or code & 0xFF in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _discard(path: Path, why: Exception) -> None:
    log.warning("%s is damaged (%s): starting a new one; files are read once more", path, why)
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
