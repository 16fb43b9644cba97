from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from nescio.evaluation.results import Results, Row, Scored
from nescio.evaluation.tables import terminal
from nescio.report.ranges import along

SETS = [f"set{i}" for i in range(7)]


@pytest.fixture
def results() -> Results:
    def row(detector: str, i: int, fpr95: float) -> Row:
        return Row(detector, SETS[i], fpr95, 1 - fpr95 / 4, 0.9, 0.8, 0.01, 0.95, 100, 50, 0.1)

    rows = [row("msp", i, 0.5 + i / 100) for i in range(7)]
    rows += [row("fm:p=0.6+react:clip=1.6+ls+energy", i, 0.2 + i / 100) for i in range(7)]
    return Results(rows, {}, Scored("id", None, {}, {}), [Scored(n, None, {}, {}) for n in SETS])  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (80, 2), (40, 8)])
def test_no_number_is_cut_at_any_width(results: Results, width: int, tables: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    printed = list(terminal(results, width))
    for table in printed:
        console.print(table)
    text = console.export_text()
    assert len(printed) == tables
    for r in results.rows:
        assert f"{r.fpr95 * 100:.2f} / {r.auroc * 100:.2f}" in text
    assert "53.00 / 86.75" in text  # the average of msp
    assert "…" not in text


def test_averages_and_percent(results: Results) -> None:
    assert results.average("msp", "fpr95") == pytest.approx(0.53)
    rows = list(csv.DictReader(io.StringIO(results.to_csv())))
    assert [r["fpr95"] for r in rows[:2]] == ["50.0", "51.0"]
    assert rows[0]["id_accuracy"] == "95.0"


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["fm:p=0+energy", "fm:p=0.5+energy"], ("p of fm", [0.0, 0.5])),
        (["fm:p=0.6+react:clip=0.2+energy", "fm:p=0.6+react:clip=1e-3+energy"], ("clip of react", [0.2, 0.001])),
        (["vra:low=0.1,high=0.9+energy", "vra:low=0.1,high=0.8+energy"], ("high of vra", [0.9, 0.8])),
        (["fm:p=0.1+react:q=0.8+energy", "fm:p=0.2+react:q=0.9+energy"], None),
        (["knn:index=flat", "knn:index=hnsw"], None),
    ],
)
def test_what_varies_along_a_range(specs: list[str], expected: tuple[str, list[float]] | None) -> None:
    assert along(specs) == expected
