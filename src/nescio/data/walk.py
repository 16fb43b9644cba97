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
    walk = _Walk(root, out=out)
    walk.enter(str(root))
    if walk.away:
        message = f"{len(walk.away):,} links lead out of {root}, such as {walk.away[0]}; 'links:{root}' follows them"
        if not walk.files:
            raise InputError(f"nothing else is there: {message}")
        log.warning("skipped: %s", message)
    if walk.odd:
        log.warning("skipped: %s pipes, sockets or devices, such as %s", f"{len(walk.odd):,}", walk.odd[0])
    return sorted(walk.files)


class _Walk:
    """What was found so far."""

    def __init__(self, root: Path, *, out: bool) -> None:
        self.real, self.out = os.path.realpath(root), out
        self.files: list[Path] = []
        self.away: list[str] = []
        self.odd: list[Path] = []

    def enter(self, start: str) -> None:
        """List a folder and all below it."""
        seen: set[str] = set()
        waiting = deque([start])  # the nearer first: a link deep below must not take a class's folder away
        while waiting:
            folder = waiting.popleft()
            real = os.path.realpath(folder)
            if real in seen:
                continue  # a link back to where we were
            seen.add(real)
            try:
                with os.scandir(folder) as entries:
                    below = sorted(entries, key=lambda e: e.name)
            except OSError as e:
                raise InputError(f"{e.filename} cannot be read: {e.strerror}") from None
            waiting += [entry.path for entry in below if self._is_folder(entry)]

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether to look below; a file is noted."""
        if entry.is_symlink() and not (self.out or self._within(entry.path)):
            self.away.append(entry.path)
            return False
        if entry.is_dir():
            return True
        path = Path(entry.path)
        # a link to nothing counts as a file, whose reading gives the reason
        if entry.is_file() or (entry.is_symlink() and not path.exists()):
            self.files.append(path)
        else:
            self.odd.append(path)
        return False

    def _within(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self.real or real.startswith(self.real.rstrip(os.sep) + os.sep)
