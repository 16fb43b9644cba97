"""Writing files so that nobody ever sees half of one, and folders one process at a time."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nescio.core.errors import InputError

HINT = "free some space there, or give another path"
OF_THE_DISK = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    }
)
"""Errors that are of a disk, a folder or a permission, and not of a program or a network."""
_DAY = 86_400
_HOST = hashlib.blake2b(platform.node().encode(), digest_size=3).hexdigest()


@contextmanager
def writing(path: Path, hint: str = HINT) -> Iterator[None]:
    """What goes wrong with the disk within, as an InputError that names ``path`` and ends in ``hint``."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        if isinstance(e, OSError) and e.errno not in OF_THE_DISK:
            raise
        raise InputError(f"{path} cannot be written: {getattr(e, 'strerror', None) or e}; {hint}") from None


@contextmanager
def whole(path: Path, hint: str = HINT) -> Iterator[Path]:
    """A path to write to that takes the place of ``path`` at the end, or vanishes on an error.

    Raises:
        InputError: it cannot be written: a full disk, a folder that is not for us; it ends in ``hint``. What stood
            there before stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{_HOST}.partial")
    with writing(path, hint):
        _remove_leftovers(path)
        try:
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # that of any new file: some writers make theirs unreadable for others
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole. Raises InputError as ``whole`` does."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n", errors="backslashreplace")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where they are not there yet. Raises InputError where that cannot be."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while they wrote ``path``."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        writer = re.fullmatch(r"(\d+)-([0-9a-f]{6})", left.name[len(path.name) + 2 : -len(".partial")])
        if writer and _is_left(left, int(writer[1]), writer[2]):
            left.unlink(missing_ok=True)


def _is_left(partial: Path, pid: int, host: str) -> bool:
    """Whether its writer is dead: a process of this machine that is no more, or a file untouched for a day."""
    if host == _HOST and os.name == "posix":  # elsewhere the signal 0 is none that only asks
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            pass
    try:
        return time.time() - partial.stat().st_mtime > _DAY
    except FileNotFoundError:
        return False


@contextmanager
def alone(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep other processes out of what ``lock`` stands for; where one is at it already, say so and wait for it."""
    from filelock import FileLock, Timeout

    guard = FileLock(lock)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        waiting()
        guard.acquire()
    try:
        yield
    finally:
        guard.release()
