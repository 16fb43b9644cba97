"""Functions that read the same rows, each written as if it were alone, run so that one read serves all of them."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")


class Source(Generic[T]):
    """Pieces that come in a fixed order, afresh at each call. Tasks that want the same piece get it from one read."""

    def __init__(self, read: Callable[[], Iterable[T]]) -> None:
        self.read = read

    def __call__(self) -> Iterator[T]:
        """All pieces in order: as they are read, or in a task as the others get them too."""
        if current() is None:
            yield from self.read()
            return
        at = 0
        while True:
            piece, there = cast("Task", current()).ask((self, at))
            if not there:
                return
            yield piece
            at += 1


class Task(greenlet):  # type: ignore[misc]
    """A function that stops where it wants a piece, or what another task returns, and goes on when that is there.

    Threads would do the same. But each thread that computes gets threads of its own from OpenMP, as many as there are
    cores, so thirty of them on a large machine would start thousands.
    """

    def __init__(self, owner: Together, function: Callable[[], Any]) -> None:
        super().__init__(self._work, owner.driver)
        self.owner, self._function = owner, function
        self.wants: Any = None
        """``(source, position)``, or a task; None before the start and after the end."""
        self.started = self.done = False
        self.seconds = 0.0
        """What its steps took, with its share of the reads, and all that it was the first to ask for."""
        self._value: Any = None
        self.error: Exception | None = None

    def _work(self, _: Any) -> None:
        try:
            self._value = self._function()
        except Exception as e:  # noqa: BLE001 - whoever waits for the task gets it
            self.error = e
        self.done = True

    def step(self, given: Any = None) -> None:
        """Let it run until it wants something."""
        start, self.started, self.wants = time.perf_counter(), True, None
        with torch.no_grad():
            self.switch(given)
        self.seconds += time.perf_counter() - start

    def ask(self, wants: Any) -> Any:
        """Wait for a piece, or for a task. Called from within."""
        grad, self.wants = torch.is_grad_enabled(), wants
        given = self.parent.switch()
        torch.set_grad_enabled(grad)
        if isinstance(given, Exception):
            raise given
        return given

    def result(self) -> Any:
        """What it returns, once it is there.

        Raises:
            Exception: what it raised.
        """
        if not self.done:
            cast("Task", current()).ask(self)
        if self.error is not None:
            raise self.error
        return self._value


def current() -> Task | None:
    """The task that calls this."""
    here = getcurrent()
    return here if isinstance(here, Task) else None


class Together:
    """Tasks that run in turns, in a fixed order. Whenever all of them wait, a source that some wait for is read once.

    A read goes from the first piece to the last that anyone wants; every task gets the pieces that it wants, in order.
    """

    def __init__(self) -> None:
        self.driver = getcurrent()
        self._tasks: list[Task] = []
        self._known: dict[Hashable, Task] = {}

    def task(self, function: Callable[[], Any], key: Hashable = None) -> tuple[Task, bool]:
        """A task that begins at the next turn, and whether it is new: one of the same key is made once."""
        if key is not None and key in self._known:
            return self._known[key], False
        made = Task(self, function)
        self._tasks.append(made)
        if key is not None:
            self._known[key] = made
        return made, True

    def run(self, watched: Sequence[Task]) -> None:
        """Run all tasks to their end.

        Raises:
            Exception: what one of those given here raised, at once. What others raise, those that wait for them get.
        """
        try:
            self._settle(watched)
            while sources := [t.wants[0] for t in self._tasks if isinstance(t.wants, tuple)]:
                self._read(min(sources, key=sources.count), watched)  # the others can join those who wait for more
        finally:
            for task in self._tasks:
                if task.started and not task.dead:
                    task.throw(GreenletExit)
            self._tasks, self._known = [], {}  # tasks know this object, and keep what they return

    def _settle(self, watched: Sequence[Task]) -> None:
        """Let tasks run until each of them is done or waits for a piece."""
        while ready := [t for t in self._tasks if not t.started or (isinstance(t.wants, Task) and t.wants.done)]:
            for task in ready:
                task.step()
            for task in watched:
                if task.error is not None:
                    raise task.error

    def _read(self, source: Source[Any], watched: Sequence[Task]) -> None:
        """Read a source as far as anyone wants it. Where it ends or fails, whoever wants more learns that."""
        pieces = iter(source.read())
        for at in itertools.count():
            start = time.perf_counter()
            given: tuple[Any, bool] | Exception
            try:
                given = next(pieces), True
            except StopIteration:
                given = None, False
            except Exception as e:  # noqa: BLE001 - it belongs to those who want to read
                given = e
            took, more = time.perf_counter() - start, isinstance(given, tuple) and given[1]
            served: list[Task] = []
            while now := self._waiting(source, at, at if more else sys.maxsize):  # also those who come to want it here
                for task in now:
                    task.step(given)
                served += now
                self._settle(watched)
            for task in served:
                task.seconds += took / len(served)
            if not more or not self._waiting(source, at + 1, sys.maxsize):
                return

    def _waiting(self, source: Source[Any], first: int, last: int) -> list[Task]:
        """Tasks that want one of some pieces."""
        wanting = [t for t in self._tasks if isinstance(t.wants, tuple) and t.wants[0] is source]
        return [t for t in wanting if first <= t.wants[1] <= last]
