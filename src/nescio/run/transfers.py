"""Copies to and from a device that go on while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from nescio.core.features import Columns, Features, Head

Result = TypeVar("Result")


class Transfers:
    """Copies between this process and a device.

    On CUDA they go through pinned memory, and those to the device through a stream of their own, so that the device
    neither waits for them nor this process for it. Elsewhere they are done when the call returns.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        on_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]

    def onto(self, images: Tensor) -> Tensor:
        """The images on the device, for what it computes next."""
        if self._stream is None or images.device.type != "cpu":
            return images.to(self.device)
        with torch.cuda.stream(self._stream):
            there = images.pin_memory().to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._stream)
        there.record_stream(computing)  # or its memory would be free for the next images while these are read
        return there

    def back(self, tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """A function that waits for what the device has been asked to compute, and gives these tensors on the CPU."""
        here = {name: t.to("cpu", non_blocking=self._stream is not None) for name, t in tensors.items()}
        if self._stream is None:
            return lambda: here
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> dict[str, Tensor]:
            done.synchronize()
            return here

        return wait

    def record(self, f: Features, head: Head) -> Callable[[], Features]:
        """The same for a record, whose head is on the CPU already."""
        there = {name: t for name, t in f.tensors().items() if t is not None}
        wait = self.back({**there, **f.aux})

        def waited() -> Features:
            here = wait()
            columns = Columns.of({name: here[name] for name in f.aux})
            return f.with_fields(**{name: here[name] for name in there}, head=head, aux=columns, _raw=None)

        return waited

    def results(self, begun: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """As ``one_ahead``, on a device that computes while this process does something else."""
        return (piece() for piece in begun) if self._stream is None else one_ahead(begun)


def one_ahead(begun: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """The results of work, in order, each asked for when the next piece is begun: so a device always has one to do.

    Args:
        begun: pieces of work. To take the next one begins it; to call it waits for its result.
    """
    waiting: Callable[[], Result] | None = None
    for piece in begun:
        if waiting is not None:
            yield waiting()
        waiting = piece
    if waiting is not None:
        yield waiting()
