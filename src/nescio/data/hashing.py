"""Content hashes, with those of files remembered by path, size and time."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

_UNREADABLE = "unreadable:"
_UNSETTLED = 2_000_000_000  # nanoseconds
_TABLE = "CREATE TABLE IF NOT EXISTS files (path BLOB, size INTEGER, mtime INTEGER, hash TEXT, PRIMARY KEY (path))"
_FIND = "SELECT hash FROM files WHERE path=? AND size=? AND mtime=?"


def cache_root() -> Path:
    """Where banks, hashes and downloads live: ``$NESCIO_CACHE``, else ``nescio`` in the user's cache folder."""
    if root := os.environ.get("NESCIO_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nescio"


def combine(*parts: str | bytes) -> str:
    """One hash over several parts, unambiguous about where each ends."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def hash_files(paths: Sequence[Path]) -> list[str]:
    """Content hash of each file. A file of the same path, size and modification time is not read again.

    A file that cannot be read has a hash that says so; whoever reads it later meets the reason.
    """
    with _memory() as memory, ThreadPoolExecutor() as pool:
        keys = list(pool.map(_key, paths))
        known = [memory.execute(_FIND, key).fetchone() for key in keys]
        hashes = list(pool.map(lambda p, row: row[0] if row else _digest(p), paths, known))
        settled = time.time_ns() - _UNSETTLED
        # a file written this very moment may be written again without its time changing: it is not remembered
        fresh = [(*k, h) for k, h, row in zip(keys, hashes, known, strict=True) if not row and k[2] < settled]
        fresh = [row for row in fresh if not row[-1].startswith(_UNREADABLE)]
        with suppress(sqlite3.Error):  # locked for a minute, or a full disk: then it is hashed again next time
            memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", fresh)
            memory.commit()
    return hashes


def _key(path: Path) -> tuple[bytes, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return os.fsencode(path.absolute()), -1, time.time_ns()
    return os.fsencode(path.absolute()), stat.st_size, stat.st_mtime_ns


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as e:
        return f"{_UNREADABLE} {e.strerror}"


def _memory() -> closing[sqlite3.Connection]:
    """The remembered hashes; forgotten at the end where the cache folder cannot be written."""
    path = cache_root() / "hashes.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=60)
        connection.execute(_TABLE)
        connection.execute("SELECT COUNT(*) FROM files")  # a damaged file shows here
    except (OSError, sqlite3.Error):
        connection = sqlite3.connect(":memory:")
        connection.execute(_TABLE)
    return closing(connection)
