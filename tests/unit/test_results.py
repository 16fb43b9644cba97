from __future__ import annotations

import csv
import dataclasses
import io
import sys

import pytest
from rich.console import Console

from nescio.core.errors import InputError
from nescio.evaluation.results import Results
from nescio.evaluation.rows import Row, Scored
from nescio.evaluation.tables import latex, markdown, terminal
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


def test_results_are_a_data_frame(results: Results) -> None:
    frame = results.frame()
    assert len(frame) == len(results.rows) == 14
    assert list(frame["ood"][:7]) == SETS
    for row, (_, found) in zip(results.rows, frame.iterrows(), strict=True):
        assert found["detector"] == row.detector
        assert found["auroc"] == pytest.approx(row.auroc * 100, abs=1e-4)
    assert frame.to_csv(index=False) == results.to_csv()


def test_without_pandas_the_extra_is_named(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install 'nescio\[pandas\]'"):
        results.frame()
    assert results.lines()[0]["fpr95"] == 50.0


def test_results_show_themselves(results: Results) -> None:
    best = f"best AUROC {results.average('fm:p=0.6+react:clip=1.6+ls+energy', 'auroc'):.2%}"
    assert repr(results).startswith(f"Results(2 detectors on 7 OOD sets; {best}")
    assert "\n" not in repr(results)
    rows = [dataclasses.replace(r, ood="<b>x") if r.ood == SETS[0] else r for r in results.rows]
    sets = [Scored("<b>x", None, {}, {}), *results.ood_sets[1:]]
    named = dataclasses.replace(results, rows=rows, ood_sets=sets)
    html = named._repr_html_()
    assert "&lt;b&gt;x" in html
    assert "<b>x" not in html
    assert "53.00 / 86.75" in html  # the average of msp
    assert html.count("<tr>") == 3
    assert results.to_markdown() == markdown(results)
    assert results.to_latex() == latex(results)


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
