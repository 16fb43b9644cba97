"""Text that comes from strangers (names of files, classes, detectors), made harmless where people read it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

_ACTS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what turns the direction of writing round, and bytes of a file's name that are not Unicode."""
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_QUOTE = "'"


def printable(text: str, keep: str = "") -> str:
    r"""The text with every character that a terminal acts on written out, as ``\x1b``; those in ``keep`` stay."""
    return _ACTS.sub(lambda c: c[0] if c[0] in keep else c[0].encode("unicode_escape").decode(), text)


def cells(row: Iterable[object]) -> list[object]:
    """A row for a CSV file: text that a spreadsheet would run as a formula begins with an apostrophe.

    Numbers stay as they are. ``as_written`` takes the apostrophe off again.
    """
    return [_QUOTE + v if isinstance(v, str) and v.startswith((*_FORMULA, _QUOTE)) else v for v in row]


def as_written(row: Iterable[str]) -> list[str]:
    """The texts that ``cells`` was given, from a row that was read back."""
    return [text.removeprefix(_QUOTE) for text in row]


class Line(logging.Formatter):
    """A log message in one line, whatever the names in it hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message without a traceback, which keeps its lines."""
        return printable(super().formatMessage(record))
