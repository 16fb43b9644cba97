"""Names can hold anything. What a terminal or a spreadsheet would act on does not reach it."""

from __future__ import annotations

import csv
import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from nescio.core.progress import Screen, progress_bar
from nescio.core.text import Line, as_written, cells, printable

TITLE = "\x1b]0;owned\x07"
RED = "\x1b[31m"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dog.jpg", "dog.jpg"),
        ("Ünïcödé 狗 🐕", "Ünïcödé 狗 🐕"),
        (f"{TITLE}a", "\\x1b]0;owned\\x07a"),
        ("a\rb\nc", "a\\rb\\nc"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj\u202e.exe", "gpj\\u202e.exe"),
        ("\udcff.png", "\\udcff.png"),
    ],
)
def test_what_a_terminal_acts_on_is_written_out(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_a_screen_prints_names_as_they_are() -> None:
    out = io.StringIO()
    screen = Screen(file=out, width=100, force_terminal=True, color_system="standard")
    table = Table(title=f"{TITLE}title")
    table.add_column(f"[bold]{RED}head")
    table.add_row("[/red] :dog: \x1b[2J")
    table.add_row(Text(f"{TITLE}green", "green"))
    screen.print(table)
    screen.print(f"wrote [/]{TITLE}")
    text = out.getvalue()
    assert "[/red] :dog: \\x1b[2J" in text
    assert "[bold]\\x1b[31mhead" in text
    assert "wrote [/]\\x1b]0;owned\\x07" in text
    assert "\\x1b]0;ownedgreen" in text  # rich itself drops the bell
    assert "\x1b]0" not in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\x1b[32m" in text  # our own colours stay


def test_a_log_message_is_one_line_and_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("reason")
    except ValueError as e:
        error = (type(e), e, e.__traceback__)
    name = f"{TITLE}\nnescio: all is well"
    record = logging.LogRecord("nescio", logging.WARNING, "", 1, "skipped %s", (name,), error)
    first, *rest = Line("nescio: %(message)s").format(record).splitlines()
    assert first == "nescio: skipped \\x1b]0;owned\\x07\\nnescio: all is well"
    assert rest[-1] == "ValueError: reason"


def test_a_progress_bar_shows_its_title_as_it_is() -> None:
    bar = progress_bar(show=False)
    bar.add_task("[/red]", total=1)
    assert bar.columns[0].render(bar.tasks[0]).plain == "[/red]"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1", "'=1"])
def test_a_cell_that_a_spreadsheet_would_run_begins_with_an_apostrophe(name: str) -> None:
    assert cells([name, -1.5, None, "dog=1"]) == ["'" + name, -1.5, None, "dog=1"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_cells_come_back_as_they_were(row: list[str]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerow(cells(row))
    (read,) = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert as_written(read) == row
