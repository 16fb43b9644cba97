"""Which processes share an extraction, by what ``devices`` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from nescio.run.devices.places import RAY, TORCHRUN, places_of
from nescio.run.devices.processes import Processes
from nescio.run.devices.ranks import ranks

if TYPE_CHECKING:
    from nescio.run.bank_writer import BankWriter
    from nescio.run.extraction import Extraction
    from nescio.run.runner import Runner


class Split(Protocol):
    """The processes that share the work of an extraction."""

    def fill(self, work: Extraction, writer: BankWriter, missing: Sequence[range]) -> None:
        """Write all of these batches of rows into the bank.

        Raises:
            InputError: a process ended before its share was done. What was written counts.
        """


class Alone:
    """This process does all."""

    def fill(self, work: Extraction, writer: BankWriter, missing: Sequence[range]) -> None:
        """As ``Extraction.fill``, with a bar."""
        with work.progress(missing) as seen:
            work.fill(writer, missing, seen)


def split_of(runner: Runner) -> Split:
    """The processes that ``runner.devices`` asks for.

    Raises:
        InputError: there are not that many devices.
    """
    if runner.devices == TORCHRUN:
        return ranks()
    if runner.devices == RAY:
        from nescio.run.devices.on_ray import OnRay

        return OnRay()
    places = places_of(runner.classifier.device, runner.devices, runner.workers)
    return Processes(places) if len(places) > 1 else Alone()
