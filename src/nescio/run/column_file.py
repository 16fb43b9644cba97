"""A column of a bank while it is written: an ``.npy`` file of which several processes write rows."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nescio.run.bank import DamagedBank, head_checksum

_NOT_OPEN = -1


class ColumnFile:
    """Rows of one type in an ``.npy`` file that has its whole length from the beginning.

    Rows are written at their place in the file, not through a memory map: a full disk is then an error instead of the
    end of the process. And hosts that share a folder write their own bytes: through a map they would write whole pages,
    with old bytes where another host wrote.

    Args:
        path: a file that ``made`` has made.
        dtype: type of its numbers.
        shape: ``(N, …)``.

    Raises:
        DamagedBank: the file has another type or shape.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        rows = np.load(path, mmap_mode="r")
        if (rows.dtype, rows.shape) != (dtype, shape):
            raise DamagedBank(f"{path.name} has the wrong shape")
        self.path, self.dtype, self.shape = path, dtype, shape
        self._start, self._head = rows.offset, head_checksum(path, rows)
        self._file = _NOT_OPEN

    @classmethod
    def made(cls, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Self:
        """A new file of zeros."""
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        _reserve(path)
        return cls(path, dtype, shape)

    def __getstate__(self) -> dict[str, Any]:
        """Closed: another process opens it for itself."""
        return vars(self) | {"_file": _NOT_OPEN}

    def read(self) -> np.memmap[Any, Any]:
        """All rows as they are now ``(N, …)``, mapped into memory."""
        return np.load(self.path, mmap_mode="r")  # type: ignore[no-any-return]

    def write(self, start: int, rows: npt.NDArray[Any]) -> int:
        """Write rows from number ``start`` on, and return their checksum, as ``bank.checksum`` finds it."""
        rows = np.ascontiguousarray(rows, self.dtype)
        if rows.shape[1:] != self.shape[1:] or start + len(rows) > len(self):
            raise ValueError(f"{self.path.name}: rows {start} to {start + len(rows)} of {rows.shape} do not fit")
        if self._file == _NOT_OPEN:
            # for writing alone: a network file system then does not read pages first, to write them back whole
            self._file = os.open(self.path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
        data, at = rows.tobytes(), self._start + start * rows[:1].nbytes
        done = 0
        while done < len(data):
            done += _write_at(self._file, data[done:], at + done)
        return zlib.crc32(data, self._head)

    def close(self) -> None:
        """Bring what was written to the disk."""
        if self._file != _NOT_OPEN:
            os.fsync(self._file)
            os.close(self._file)
            self._file = _NOT_OPEN

    def __len__(self) -> int:
        return self.shape[0]


def _write_at(file: int, data: bytes, at: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, at)
    os.lseek(file, at, os.SEEK_SET)
    return os.write(file, data)


def _reserve(path: Path) -> None:
    """Claim the file's blocks now where the system can, so that a disk that fills up later does not stop the run."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
