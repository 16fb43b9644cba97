"""The notebooks of the guides run from the first cell to the last; one is run in a kernel, as Jupyter does."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs/notebooks").glob("*.py"))


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder and with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NESCIO_CACHE", str(tmp_path / "cache"))
    mpl.use("agg")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path) -> None:
    assert len(NOTEBOOKS) >= 5
    runpy.run_path(str(notebook))


def test_what_make_notebooks_does_gives_a_notebook_with_its_outputs(tmp_path: Path) -> None:
    script = NOTEBOOKS[0].parents[1] / "_build/notebooks.py"
    subprocess.run([sys.executable, script, tmp_path / "out", "which_detector"], check=True)
    notebook = json.loads((tmp_path / "out/which_detector.ipynb").read_text(encoding="utf-8"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["which_detector.ipynb"]
    tables = [out["data"] for cell in notebook["cells"] for out in cell.get("outputs", []) if "data" in out]
    found = ["".join(table["text/plain"]) for table in tables]
    assert any("fpr95" in table and "mean(fmls,knn:k=10)" in table for table in found)
