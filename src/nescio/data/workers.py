"""Processes that decode. What one dies of is tried once more, then given up; the others don't notice."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from nescio.core.errors import BadImage, InputError

Result_co = TypeVar("Result_co", covariant=True)

MEMORY = 4 << 30
"""Bytes that a decoding process may take; the largest image that is read takes less than half of it."""
KILLED = "the process that decoded it crashed"
_NOWHERE = -1
AHEAD = 2
"""Pieces that a process has been given and not handed over."""
_TRIES = 2
"""Processes that must die at an image before it is the image's fault: the system may have killed the first one."""
_IDLE_DEATHS = 3
_CHECK = 5.0
"""Seconds after which who waits for another process looks whether it still lives."""

log = logging.getLogger(__name__)


class Work(Protocol[Result_co]):
    """Something to do in processes; it can be pickled."""

    def __call__(self, number: int, entering: Callable[[int], None]) -> Result_co:
        """Do piece ``number``. ``entering(i)`` goes before each image, and raises BadImage where ``i`` kills."""


def in_order(work: Work[Result_co], count: int, workers: int, memory: int = MEMORY) -> Iterator[Result_co]:
    """The results of pieces 0 to ``count - 1`` of some work, in order.

    Args:
        work: what to do.
        count: number of pieces.
        workers: processes; 0 works in this one, which an image may then end.
        memory: bytes that each process may take beyond what it has at its start (on Linux; elsewhere without limit).

    Raises:
        InputError: the work raised one; or processes end again and again while they have no image.
        RuntimeError: the work raised anything else; its traceback is the message.
    """
    if workers < 1:
        for number in range(count):
            yield work(number, lambda _: None)
        return
    get_temp_dir()  # here, so that it goes with this process: theirs would outlive those that are killed
    size = min(workers, count)
    seats = [_Seat(work, range(k, count, size), memory) for k in range(size)]
    try:
        for number in range(count):
            yield seats[number % size].next()
    finally:
        for seat in seats:
            seat.process.terminate()
        for seat in seats:
            seat.close()


class _Seat:
    """A process, and those that take its place, with the pieces to do, one after the other."""

    def __init__(self, work: Work[Any], pieces: Sequence[int], memory: int) -> None:
        self.work, self.pieces, self.memory = work, pieces, memory
        self.done, self.idle = 0, 0
        self.deaths: Counter[int] = Counter()
        self._start()

    def _start(self) -> None:
        context: Any = multiprocessing.get_context()
        self.at = context.RawValue("q", _NOWHERE)
        self.pipe, theirs = context.Pipe()
        fatal = [i for i, deaths in self.deaths.items() if deaths >= _TRIES]
        arguments = (self.work, theirs, self.at, fatal, self.memory)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.sent = self.done

    def next(self) -> Any:
        """The result of the next piece."""
        while True:
            try:
                while self.sent < min(self.done + AHEAD, len(self.pieces)):
                    self.pipe.send(self.pieces[self.sent])
                    self.sent += 1
                while not self.pipe.poll(_CHECK):
                    if not self.process.is_alive():
                        raise EOFError
                result, error = self.pipe.recv()
            except (EOFError, OSError, multiprocessing.AuthenticationError):
                self.process.join(_CHECK)
                if self.process.is_alive():
                    raise
                self._replace()
                continue
            if error is not None:
                raise error
            self.done, self.idle = self.done + 1, 0
            return result

    def _replace(self) -> None:
        """Start another process where this one died."""
        code, image = self.process.exitcode or 0, int(self.at.value)
        how = how_ended(code)
        if image != _NOWHERE:
            self.deaths[image] += 1
        else:
            self.idle += 1
            if self.idle == _IDLE_DEATHS:
                raise InputError(
                    f"{_IDLE_DEATHS} decoding processes ended {how} before they had an image, or while they returned "
                    "images (is /dev/shm full?); decode in one process instead: workers=0 (--workers 0)"
                )
        log.warning("a decoding process ended %s; a new one takes over", how)
        self.pipe.close()
        self._start()

    def close(self) -> None:
        """Wait for the end of a terminated process."""
        self.process.join()
        self.process.close()
        self.pipe.close()


def how_ended(code: int) -> str:
    """How a process ended, by its exit code."""
    return f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with code {code}"


def _serve(work: Work[Any], pipe: Any, at: Any, fatal: Collection[int], memory: int) -> None:
    parent = os.getppid()  # the reader, or what starts processes for it and ends with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the process that reads our results ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    limit_memory(memory)

    def entering(image: int) -> None:
        at.value = _NOWHERE if image in fatal else image
        if image in fatal:
            raise BadImage(KILLED)

    try:
        while True:
            while not pipe.poll(_CHECK):
                if os.getppid() != parent:
                    return
            number = pipe.recv()
            random.seed(number)  # a data set of the user's own may draw: the same whoever does the piece
            torch.manual_seed(number)
            answer: tuple[Any, Exception | None]
            try:
                answer = work(number, entering), None
            except InputError as e:
                answer = None, e
            except Exception:  # noqa: BLE001 - told whole by the process that waits for it
                answer = None, RuntimeError(f"in a decoding process:\n{traceback.format_exc()}")
            at.value = _NOWHERE
            pipe.send(answer)
    except (EOFError, OSError):
        return  # nobody waits any more


def limit_memory(more: int) -> None:
    """Let this process take that many bytes beyond what it has; then it gets a MemoryError. On Linux alone."""
    if sys.platform != "linux":
        return
    import resource

    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    has = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    set_limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([has + more, *set_limits]), hard))
