"""Processes on this machine, one for each GPU or each share of the cores, that write rows of one bank."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import torch

from nescio.core.errors import InputError
from nescio.data.workers import how_ended
from nescio.run.devices.packing import Packed
from nescio.run.devices.places import Place, shares

if TYPE_CHECKING:
    from nescio.run.bank_writer import BankWriter
    from nescio.run.extraction import Extraction

_CHECK = 1.0
"""Seconds after which a process looks whether the other one still lives."""


@dataclass(frozen=True)
class Processes:
    """A process for each place.

    On a CPU under Linux they are forks of this one, which need not pickle anything. A GPU cannot be used in a fork, so
    there the network, the transform and the images are pickled.
    """

    places: Sequence[Place]

    def fill(self, work: Extraction, writer: BankWriter, missing: Sequence[range]) -> None:
        """As ``Split.fill``. When a process dies, the others go on with their shares."""
        parts = [part for part in shares(list(missing), len(self.places)) if part]
        forks = sys.platform == "linux" and work.runner.forks(work.network_pass)
        context = multiprocessing.get_context("fork" if forks else "spawn")
        given: Extraction | Packed = work if forks else Packed.of(work)
        seats: list[_Seat] = []
        try:
            for place, part in zip(self.places, parts, strict=False):
                seats.append(_Seat(context, place, (given, writer, part)))
            with work.progress(missing) as seen:
                _listen(seats, seen)
        finally:
            for seat in seats:
                seat.close()
        for seat in seats:
            work.runner.clock.add({what: s / len(seats) for what, s in (seat.seconds or {}).items()})
        if lost := [(number, seat) for number, seat in enumerate(seats, 1) if seat.seconds is None]:
            number, seat = lost[0]
            left = sum(len(rows) for _, each in lost for rows in each.part) - sum(each.done for _, each in lost)
            raise InputError(
                f"process {number} of {len(seats)} ({seat.place.device}) ended {how_ended(seat.code)}, and "
                f"{left:,} images are missing; run the same command again: it computes these"
            )


class _Seat:
    """A process with its share, and what it has said."""

    def __init__(self, context: Any, place: Place, job: tuple[Any, BankWriter, list[range]]) -> None:
        self.place, self.part, self.done, self.code = place, job[2], 0, 0
        self.seconds: dict[str, float] | None = None
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(*job, place, theirs))
        self.process.start()
        theirs.close()

    def hear(self, seen: Callable[[int], None]) -> bool:
        """Take one message; false where there are no more."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            return False
        if isinstance(message, Exception):
            raise message
        if isinstance(message, int):
            self.done += message
            seen(message)
        else:
            self.seconds = message
        return self.seconds is None

    def close(self) -> None:
        """End the process where it still runs."""
        if self.seconds is None:
            self.process.join(_CHECK)
            self.process.terminate()
        self.process.join()
        self.code = self.process.exitcode or 0
        self.process.close()
        self.pipe.close()


def _listen(seats: Sequence[_Seat], seen: Callable[[int], None]) -> None:
    """Until each process has ended. Raises what one of them raised."""
    open_seats = {seat.pipe: seat for seat in seats}
    while open_seats:
        ready = connection.wait(list(open_seats), timeout=_CHECK)
        # a dead process's end of the pipe stays open while processes that it started live
        ready += [pipe for pipe, seat in open_seats.items() if not seat.process.is_alive() and pipe not in ready]
        for pipe in ready:
            seat = open_seats[pipe]
            if not (seat.process.is_alive() or seat.pipe.poll()) or not seat.hear(seen):
                del open_seats[pipe]


def _serve(given: Any, writer: BankWriter, part: list[range], place: Place, pipe: Any) -> None:
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the process that listens ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A thread, because OpenMP's threads did not survive a fork, and only its first thread would wait for them for ever.
    worker = threading.Thread(target=_work, args=(given, writer, part, place, pipe), daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(_CHECK)
        if os.getppid() != parent:
            os._exit(1)


def _work(given: Any, writer: BankWriter, part: list[range], place: Place, pipe: Any) -> None:
    answer: Any
    try:
        place.take()
        work = (given.unpacked() if isinstance(given, Packed) else given).on(place.device, place.workers)
        work.fill(writer, part, pipe.send)
        writer.close()
        answer = work.runner.clock.seconds
    except (InputError, torch.OutOfMemoryError) as e:
        answer = e
    except Exception:  # noqa: BLE001 - told whole by the process that listens
        answer = RuntimeError(f"in a process on {place.device}:\n{traceback.format_exc()}")
    pipe.send(answer)
