from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from nescio.cli import main
from nescio.data import open_source
from nescio.data.decode import decode


def test_the_quickstart_trains_judges_and_reports(tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    arguments = ["quickstart", "--out", str(out), "--epochs", "3", "--workers", "1", "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((out / "results.csv").open(newline="")))
    assert {r["ood"] for r in rows} == {"glyphs", "backdrops", "noise"}
    by = {(r["detector"], r["ood"]): float(r["auroc"]) for r in rows}
    assert float(rows[0]["id_accuracy"]) > 60  # after 3 epochs; 10 are the default
    assert min(by["energy", "backdrops"], by["energy", "noise"]) > 75
    assert by["energy", "glyphs"] < 98  # not a trivial set
    assert (out / "report.html").read_text().count('role="img"') == 4 * 3 + 2

    start = time.monotonic()
    again = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert again.exit_code == 0
    assert again.stdout == result.stdout  # trained once, and the banks are there
    assert time.monotonic() - start < 60


def test_the_embedded_images_are_what_they_say(tmp_path: Path) -> None:
    from nescio.data.embedded import write_embedded

    sets = {name: open_source(path) for name, path in write_embedded(tmp_path / "a").items()}
    again = {name: open_source(path) for name, path in write_embedded(tmp_path / "b").items()}
    assert {n: s.identity for n, s in sets.items()} == {n: s.identity for n, s in again.items()}
    assert sorted(set(sets["train"].labels.tolist())) == list(range(10))
    assert (sets["glyphs"].labels == -1).all()
    pixels = {n: np.stack([np.asarray(decode(s.read(i)), float) for i in range(200)]) for n, s in sets.items()}
    assert all(p.shape == (200, 32, 32, 3) for p in pixels.values())

    # neighbouring pixels agree in pictures and do not in noise; strokes stand out from their backdrop
    def smoothness(p: np.ndarray) -> float:
        return float(np.corrcoef(p[:, :, :-1].ravel(), p[:, :, 1:].ravel())[0, 1])

    assert smoothness(pixels["noise"]) < smoothness(pixels["backdrops"])
    assert pixels["id"].std((1, 2, 3)).mean() > pixels["backdrops"].std((1, 2, 3)).mean() + 5
