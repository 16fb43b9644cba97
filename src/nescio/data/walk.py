"""All files below a folder, without what is no file and without what lies elsewhere."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path

from nescio.core.errors import InputError

log = logging.getLogger(__name__)


def files_below(root: Path, *, out: bool) -> list[Path]:
    """Every file below a folder in sorted order, through links within it, too; each folder once.

    Pipes, sockets and devices would hang whoever reads them: they are skipped. So are links that lead out of the
    folder, since whoever packed it need not mean the files of this machine. One line tells how many.

    Args:
        root: the folder; it may be a link itself.
        out: follow links that lead out of it.

    Raises:
        InputError: a folder cannot be listed; or there is nothing but links that lead out.
    """
    home = os.path.realpath(root)
    files: list[Path] = []
    away: list[str] = []
    odd: list[Path] = []
    seen: set[str] = set()
    waiting = deque([str(root)])  # the nearer first: a link deep below must not take a class's folder away
    while waiting:
        folder = waiting.popleft()
        if (real := os.path.realpath(folder)) in seen:
            continue  # a link back to where we were
        seen.add(real)
        for entry in _entries(folder):
            path = Path(entry.path)
            if entry.is_symlink() and not (out or _is_within(entry.path, home)):
                away.append(entry.path)
            elif entry.is_dir():
                waiting.append(entry.path)
            # a link to nothing counts as a file, whose reading gives the reason
            elif entry.is_file() or (entry.is_symlink() and not path.exists()):
                files.append(path)
            else:
                odd.append(path)
    if away:
        message = f"{len(away):,} links lead out of {root}, such as {away[0]}; 'links:{root}' follows them"
        if not files:
            raise InputError(f"{root} contains nothing else: {message}")
        log.warning("skipped: %s", message)
    if odd:
        log.warning("skipped: %s pipes, sockets or devices, such as %s", f"{len(odd):,}", odd[0])
    return sorted(files)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda e: e.name)
    except OSError as e:
        raise InputError(f"{e.filename} cannot be read: {e.strerror}") from None


def _is_within(path: str, home: str) -> bool:
    real = os.path.realpath(path)
    return real == home or real.startswith(home.rstrip(os.sep) + os.sep)
