"""A log that stays readable, whatever clients do: what is said again and again is said ever less often."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

FIRST, LONGEST = 10.0, 3600.0
"""Seconds between two lines of one cause: at first, and at most. Each one doubles the time to the next."""
MOST = 200
"""Causes that are remembered."""


@dataclass
class _Cause:
    next: float
    last: float
    interval: float
    left_out: int = 0


class Seldom(logging.Filter):
    """Lets a cause through once, and then at growing intervals, with the number of lines that were left out.

    A cause is a message before its values are filled in, or the place that an exception comes from. After as long a
    rest as the present interval it counts as new. Only the first line of a cause has the traceback.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.clock = clock
        self.causes: dict[object, _Cause] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record, which says then how many were left out before it."""
        now, key = self.clock(), _cause(record)
        known = self.causes.get(key)
        if known is None or now - known.last > known.interval:
            if len(self.causes) >= MOST:
                self.causes.clear()
            self.causes[key] = _Cause(now + FIRST, now, FIRST)
            return True
        known.last = now
        if now < known.next:
            known.left_out += 1
            return False
        record.msg = f"{record.getMessage()} (and {known.left_out:,} more like it since the last line of this kind)"
        record.args, record.exc_info, record.exc_text = (), None, None
        known.interval = min(2 * known.interval, LONGEST)
        known.next, known.left_out = now + known.interval, 0
        return True


def _cause(record: logging.LogRecord) -> object:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return record.name, record.msg
    frames = traceback.extract_tb(error.__traceback__)
    return type(error), (frames[-1].filename, frames[-1].lineno) if frames else record.msg
