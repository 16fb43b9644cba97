"""Tables that studies have stored, for the pages: nobody types their numbers twice."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"
SPACE = "\u00a0"
"""Where no line breaks."""


@dataclass(frozen=True)
class Table:
    """A table that a study has stored: the lines above it, names of its columns, and its rows."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def section(name: str, heading: str | None = None) -> str:
    """What stands under a heading in ``studies/NAME``, up to the next heading; without one, all but the title.

    Raises:
        LookupError: there is no such heading.
    """
    lines = [_unbroken(line) for line in (STUDIES / name).read_text(encoding="utf-8").splitlines()]
    if heading is None:
        return "\n".join(line for line in lines if not line.startswith("# "))
    starts = [i for i, line in enumerate(lines) if line.lstrip("#").strip() == heading and line.startswith("#")]
    if len(starts) != 1:
        raise LookupError(f"{name} has {len(starts)} headings '{heading}'; expected one")
    rest = lines[starts[0] + 1 :]
    stop = next((i for i, line in enumerate(rest) if line.startswith("#")), len(rest))
    return "\n".join(rest[:stop])


@functools.cache
def table(name: str, heading: str | None = None) -> Table:
    """The first table of a section."""
    above, lines = _split(name, heading)
    head, _, *rows = (_cells(line) for line in lines)
    return Table(" ".join(line for line in above if line and not line.startswith("#")), head, rows)


def rows(name: str, heading: str | None, *keep: str) -> str:
    """The first table of a section: its head, and the rows whose cells hold one of ``keep`` as the whole cell.

    Raises:
        LookupError: one of ``keep`` is in no row.
    """
    _, lines = _split(name, heading)
    bare = [[cell.strip("`*") for cell in _cells(line)] for line in lines]
    if missing := [k for k in keep if not any(k in cells for cells in bare[2:])]:
        raise LookupError(f"{name} has no rows with {missing}")
    found = [line for line, cells in zip(lines[2:], bare[2:], strict=True) if any(k in cells for k in keep)]
    return "\n".join([*lines[:2], *found])


def _split(name: str, heading: str | None) -> tuple[list[str], list[str]]:
    """The lines above the first table of a section, and those of the table."""
    lines = section(name, heading).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    return lines[:first], lines[first:last]


def _unbroken(line: str) -> str:
    """Cells of two numbers stay on one line; with their deviations, they may break between the two."""
    if not line.startswith("|"):
        return line
    line = re.sub(r"\| ([\d.-]+) / ([\d.-]+)(?= )", f"| \\1{SPACE}/{SPACE}\\2", line)
    line = re.sub(r"(?<=\d) ([±×]) ?", f"{SPACE}\\1{SPACE}", line)
    return re.sub(r"(?<=\d) / ", f"{SPACE}/ ", line)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
