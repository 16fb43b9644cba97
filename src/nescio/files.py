"""Writing files so that nobody ever sees half of one, and folders one process at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of ``path`` at the end, or vanishes on an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # that of any new file: some writers make theirs unreadable for others
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n", errors="backslashreplace")


@contextmanager
def alone(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep other processes out of what ``lock`` stands for; where one is at it already, say so and wait for it."""
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
