"""The processes of ``torchrun``, on one host or several with a shared folder, that write rows of one bank.

Process 0 decides what is done. It sends the extraction to the others, each of which writes its share into the same
folder. What they send each other goes by way of PyTorch's process group on CPUs (gloo).
"""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from nescio.core.errors import InputError
from nescio.run.bank import MANIFEST, Bank
from nescio.run.devices.packing import Packed, there
from nescio.run.devices.places import shares, workers_of

if TYPE_CHECKING:
    from nescio.run.bank_writer import BankWriter
    from nescio.run.extraction import Extraction

_FOR_EVER = timedelta(days=365)
"""The others wait as long as process 0 fits and scores."""
_ENDED = "another process of torchrun has ended; run the same command again: it continues where it stopped"


@dataclass(frozen=True)
class _Job:
    """Batches of rows to write, and all that it takes."""

    packed: Packed
    writer: BankWriter
    missing: list[range]
    device: str


@dataclass(frozen=True)
class _Failed:
    """Process 0 could not make the bank."""

    reason: str


@dataclass(frozen=True)
class Ranks:
    """The processes of ``torchrun``: this one's number, how many there are, and how they talk."""

    rank: int
    count: int
    group: Any

    def fill(self, work: Extraction, writer: BankWriter, missing: Sequence[range]) -> None:
        """As ``Split.fill``, in process 0."""
        device = work.runner.classifier.device
        self._said(_Job(Packed.of(work), writer, list(missing), device.type))
        mine = shares(list(missing), self.count)[0]
        own = work.on(device, workers_of(work.runner.workers, _here()))
        error: Exception | None = None
        try:
            with work.progress(mine) as seen:
                own.fill(writer, mine, seen)
            writer.close()
        except Exception as e:  # noqa: BLE001 - the others' words have to be heard first
            error = e
        work.runner.clock.add(own.runner.clock.seconds)
        answers = self._gathered(None)
        if error is not None:
            raise error
        if failed := [(number, text) for number, text in enumerate(answers) if text]:
            raise InputError(f"process {failed[0][0]} of torchrun failed: {failed[0][1]}")
        writer.check_all_there()

    def together(self, make: Callable[[], Bank], probes: Collection[str]) -> Bank:
        """The bank that process 0 makes, in all processes; they call this for the same banks in the same order.

        Raises:
            InputError: process 0 cannot make it; or a process ended.
        """
        if self.rank:
            while not isinstance(said := self._said(None), _Failed | Path):
                self._do(said)
            if isinstance(said, _Failed):
                raise InputError(said.reason)
            return Bank(there(said), probes)
        try:
            bank = make()
        except Exception as e:
            self._said(_Failed(str(e)))
            raise
        self._said(bank.path.absolute())
        return bank

    def follow(self) -> None:
        """Do what process 0 says, to its end."""
        while (said := self._said(None)) is not None:
            if isinstance(said, _Job):
                self._do(said)

    def end(self) -> None:
        """Let the others go."""
        if self.rank == 0:
            self._said(None)

    def _do(self, job: _Job) -> None:
        error = ""
        try:
            there(job.writer.partial / MANIFEST)
            device = "cpu" if job.device == "cpu" else f"{job.device}:{os.environ.get('LOCAL_RANK', '0')}"
            work = job.packed.unpacked()
            mine = shares(job.missing, self.count)[self.rank]
            work.on(device, workers_of(work.runner.workers, _here())).fill(job.writer, mine, lambda _: None)
            job.writer.close()
        except InputError as e:
            error = str(e)
        except Exception:  # noqa: BLE001 - told whole by process 0
            error = traceback.format_exc()
        self._gathered(error)

    def _said(self, what: Any) -> Any:
        """What process 0 says."""
        held = [what]
        with _heard():
            dist.broadcast_object_list(held, src=0, group=self.group, device=torch.device("cpu"))
        return held[0]

    def _gathered(self, answer: str | None) -> list[str | None]:
        answers: list[str | None] = [None] * self.count
        with _heard():
            dist.all_gather_object(answers, answer, group=self.group)
        return answers


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """What gloo raises when a process has ended, in one line."""
    try:
        yield
    except RuntimeError:
        raise InputError(_ENDED) from None


def started() -> bool:
    """Whether torchrun has started this process, beside others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@functools.cache
def ranks() -> Ranks:
    """The processes of torchrun.

    Raises:
        InputError: torchrun has not started this process.
    """
    if not (dist.is_available() and ("RANK" in os.environ or dist.is_initialized())):
        raise InputError(
            "devices='torchrun' is for processes that torchrun starts: start this program with it, or give a number"
        )
    if dist.is_initialized():
        group: Any = dist.new_group(backend="gloo", timeout=_FOR_EVER)
    else:
        dist.init_process_group("gloo", timeout=_FOR_EVER)
        group = dist.group.WORLD
    return Ranks(dist.get_rank(), dist.get_world_size(), group)


def _here() -> int:
    """Processes of torchrun on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
