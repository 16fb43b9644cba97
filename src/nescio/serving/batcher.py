"""Images of many requests go through the network together."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_Job = tuple[Tensor, "Future[Result | Exception]"]


class Batcher(Generic[Result]):
    """One thread that takes whatever has come in while it worked, up to ``size``, and works on it.

    Nobody waits for others to come: an image alone is judged at once, and under load the batches fill by themselves.

    Args:
        work: gives a result, or an exception, for each image of a batch ``(B, 3, S, S)``.
        size: images in a batch, at most.
    """

    def __init__(self, work: Callable[[Tensor], Sequence[Result | Exception]], size: int) -> None:
        self.work, self.size = work, size
        self.jobs: queue.SimpleQueue[_Job[Result] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="nescio-network", daemon=True)
        self.thread.start()

    def submit(self, image: Tensor) -> Future[Result | Exception]:
        """Have an image ``(3, S, S)`` worked on. The future holds what ``work`` gives or raises."""
        future: Future[Result | Exception] = Future()
        self.jobs.put((image, future))
        return future

    def close(self) -> None:
        """Finish what has come in, and end."""
        self.jobs.put(None)
        self.thread.join()

    def _run(self) -> None:
        end = False
        while not end:
            batch, end = self._next()
            batch = [job for job in batch if job[1].set_running_or_notify_cancel()]
            if batch:
                self._work(batch)

    def _next(self) -> tuple[list[_Job[Result]], bool]:
        """The jobs that wait, at least one, and whether there will be no others."""
        batch: list[_Job[Result]] = []
        job = self.jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == self.size:
                return batch, False
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _work(self, batch: list[_Job[Result]]) -> None:
        try:
            results = self.work(torch.stack([image for image, _ in batch]))
        except Exception as e:  # the clients are told; the thread goes on with the next batch
            log.exception("a batch of %d images failed", len(batch))
            results = [e] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
