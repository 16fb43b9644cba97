"""Images of many requests go through the network together."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nescio.serving.fair import FairQueue

Result = TypeVar("Result")
_Job = tuple[Tensor, "Future[Result]"]


class Batcher(Generic[Result]):
    """One thread that takes whatever has come in while it worked, up to ``size``, and works on it.

    The clients take turns. Nobody waits for others to come: an image alone is judged at once, and under load the
    batches fill by themselves.

    Args:
        work: gives a result, or an exception, for each image of a batch ``(B, 3, S, S)``.
        size: images in a batch, at most.
    """

    def __init__(self, work: Callable[[Tensor], Sequence[Result | Exception]], size: int) -> None:
        self.work, self.size = work, size
        self.jobs: FairQueue[_Job[Result]] = FairQueue()
        self.arrival, self.closing = threading.Condition(), False
        self.thread = threading.Thread(target=self._run, name="nescio-network", daemon=True)
        self.thread.start()

    def submit(self, image: Tensor, client: str = "") -> Future[Result]:
        """Have a client's image ``(3, S, S)`` worked on. The future holds what ``work`` gives or raises."""
        future: Future[Result] = Future()
        with self.arrival:
            self.jobs.put(client, (image, future))
            self.arrival.notify()
        return future

    def close(self) -> None:
        """Finish what has come in, and end."""
        with self.arrival:
            self.closing = True
            self.arrival.notify()
        self.thread.join()

    def _run(self) -> None:
        while jobs := self._next():
            batch = [job for job in jobs if job[1].set_running_or_notify_cancel()]
            if batch:
                self._work(batch)

    def _next(self) -> list[_Job[Result]]:
        """The jobs that wait, each client's in turn, at least one; none at the end."""
        with self.arrival:
            self.arrival.wait_for(lambda: self.jobs or self.closing)
            return list(itertools.islice(iter(self.jobs.get, None), self.size))

    def _work(self, batch: list[_Job[Result]]) -> None:
        try:
            results = self.work(torch.stack([image for image, _ in batch]))
        except Exception as e:  # noqa: BLE001 - the clients get it, and it is logged there; the next batch may do better
            results = [e] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
