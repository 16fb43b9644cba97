"""What a report says about how to get its numbers again, run as it is printed."""

from __future__ import annotations

import csv
import html
import shlex
from pathlib import Path

from click.testing import CliRunner

from nescio.cli import main

Table = list[dict[str, str]]


def run_again(page: Path, *further: str) -> tuple[Table, Table]:
    """The rows of the results beside a report, and those that its own command gives, without their seconds."""
    section = page.read_text(encoding="utf-8").partition('<section id="again">')[2]
    told = html.unescape(section.partition('<code id="command">')[2].partition("</code>")[0])
    words = shlex.split(told.replace("\\\n", " "))
    assert words[0] == "nescio"
    assert words[-3:] == ["--out", "RESULTS", "--report"]
    result = CliRunner().invoke(main, [*words[1:-1], *further], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    before, after = (
        [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(path.open(newline=""))]
        for path in (page.parent / "results.csv", Path("RESULTS/results.csv"))
    )
    return before, after
