"""One look for every progress bar: what, how far, images per second, time left; where the time went; and quiet."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.text import Text

from nescio.core.text import printable


class Screen(Console):
    """A terminal or file on which text is text: it has no markup, no emoji codes, and no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as it is measured and printed."""
        return super().render_str(printable(text, keep="\n"), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything that is printed comes through here, also styled text in tables."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Images per second, over the whole task once it is finished."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s", style="progress.data.speed")


def progress_bar(*, show: bool = True, of_bytes: bool = False) -> Progress:
    """A bar on standard error; nothing at all where ``show`` is false or nobody watches. It counts images, or bytes."""
    console = Screen(stderr=True)
    counts = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(), _Rate())
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        *counts,
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not (show and console.is_terminal),
    )


class Clock:
    """Seconds of wall time by what they went to."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.perf_counter()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Count the time within for ``what``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begin

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count time that another clock has counted."""
        for what, value in seconds.items():
            self.seconds[what] = self.seconds.get(what, 0.0) + value

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begin

    def __str__(self) -> str:
        total = self.total()
        spent = self.seconds | {"other": max(0.0, total - sum(self.seconds.values()))}
        return f"{total:,.1f} s: " + ", ".join(f"{what} {seconds:,.1f}" for what, seconds in spent.items())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advice and warnings that libraries give to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
