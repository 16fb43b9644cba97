from __future__ import annotations

import contextlib
import csv
import json
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from again import run_again
from nescio.cli import main
from nescio.data import open_source
from nescio.data.decode import decode
from serving import service

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quickstart is run once for all tests here."""
    return tmp_path_factory.mktemp("root")


def test_the_quickstart_trains_judges_and_reports(root: Path) -> None:
    out = root / "quickstart"
    arguments = ["quickstart", "--out", str(out), "--epochs", "3", "--workers", "1", "--cache", str(root / "cache")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((out / "results.csv").open(newline="")))
    sets = {"shapes", "backdrops", "noise"}
    assert {r["ood"] for r in rows} == sets
    by = {(r["detector"], r["ood"]): float(r["auroc"]) for r in rows}
    assert float(rows[0]["id_accuracy"]) > 90  # after 3 epochs; 10 are the default
    assert sum(by["fmls", name] - by["msp", name] for name in sets) > 0.2
    assert by["energy", "shapes"] < 99.5  # not a trivial set
    assert "nescio try MODEL" in result.output
    assert (out / "report.html").read_text().count('role="img"') == 4 * 3 + 2

    start = time.monotonic()
    again = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert again.exit_code == 0
    assert again.stdout == result.stdout  # trained once, and the banks are there
    assert time.monotonic() - start < 60


def test_the_quickstarts_report_says_how_to_get_its_numbers_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("NESCIO_CACHE", str(root / "cache"))
    before, after = run_again(root / "quickstart/report.html", "--workers", "0")
    assert after == before


def fetched(words: list[str]) -> str:
    """What curl prints; the same request by other means where there is no curl."""
    if shutil.which("curl"):
        return subprocess.run([*words, "--silent", "--fail"], capture_output=True, text=True, check=True).stdout
    url, form = words[-1], [w.partition("=@") for w in words if "=@" in w]
    files = [(name, (path, Path(path).read_bytes())) for name, _, path in form]
    return (httpx.post(url, files=files) if files else httpx.get(url)).raise_for_status().text


def in_the_guide() -> list[tuple[str, str]]:
    """The blocks of the guide that are run here, in order: the language, and the text. Ray has tests of its own."""
    text = (DOCS / "guides/deploy.md").read_text(encoding="utf-8").replace("model-10-epochs", "model-3-epochs")
    found = re.findall(r"^```(sh|bash|python)\b[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(kind, code) for kind, code in found if "--on ray" not in code and not code.startswith("docker")]


def test_the_walk_to_a_deployed_detector_works_as_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, unrecorded: None
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("NESCIO_CACHE", str(root / "cache"))
    names: dict[str, object] = {}
    blocks = in_the_guide()
    assert len(blocks) == 14
    shown, answers = "", []
    with contextlib.ExitStack() as running:
        url = ""
        for kind, text in blocks:
            if kind == "python":
                exec(text, names)  # noqa: S102 - our own documentation
                continue
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.replace("http://127.0.0.1:8000", url))
                if words[1] == "serve":  # until the end, as in a terminal of its own
                    url, _ = running.enter_context(service(Path(words[2])))
                elif words[0] == "curl":
                    answers.append(fetched(words))
                elif words[0] == "nescio":
                    result = CliRunner().invoke(main, words[1:], catch_exceptions=False)
                    assert result.exit_code == 0, (line, result.output)
                    shown += result.output
                else:
                    subprocess.run(line, shell=True, check=True, capture_output=True)  # noqa: S602 - find, cat
    (said,) = json.loads(answers[0])["verdicts"]
    (verdict,) = names["digits"]("photo.png")
    assert (said["image"], said["label"]) == ("photo.png", verdict.label)
    assert json.loads(answers[1])["seen"] == 1
    assert "nescio_window_images 1.0" in answers[2]
    assert "I do not know" in shown
    assert "ACCEPTED" in shown
    scores = names["scores_of_all"]
    assert len(scores) == 2000
    assert scores.accepted[:1000].mean() > max(0.9, scores.accepted[1000:].mean() + 0.1)
    assert names["label"] == verdict.label
    assert names["accepted"].tolist() == [verdict.accepted]
    assert names["p_value"].tolist() == [verdict.p_value]
    assert names["given"][0].tolist() == [verdict.p_value > 0.2]
    assert names["found"]["score"] == pytest.approx(names["score"], rel=1e-5)
    (alarm, *_) = names["drift"].alarms
    assert 300 < alarm.image < 1300


def test_the_embedded_images_are_what_they_say(tmp_path: Path) -> None:
    from nescio.data.embedded import write_embedded

    sets = {name: open_source(path) for name, path in write_embedded(tmp_path / "a").items()}
    again = {name: open_source(path) for name, path in write_embedded(tmp_path / "b").items()}
    assert {n: s.identity for n, s in sets.items()} == {n: s.identity for n, s in again.items()}
    assert sorted(set(sets["train"].labels.tolist())) == list(range(10))
    assert all((sets[name].labels == -1).all() for name in ("shapes", "backdrops", "noise", "glyphs"))
    pixels = {n: np.stack([np.asarray(decode(s.read(i)), float) for i in range(200)]) for n, s in sets.items()}
    assert all(p.shape == (200, 32, 32, 3) for p in pixels.values())

    # neighbouring pixels agree in pictures and do not in noise; strokes stand out from their backdrop
    def smoothness(p: np.ndarray) -> float:
        return float(np.corrcoef(p[:, :, :-1].ravel(), p[:, :, 1:].ravel())[0, 1])

    assert smoothness(pixels["noise"]) < smoothness(pixels["backdrops"])
    assert pixels["id"].std((1, 2, 3)).mean() > pixels["backdrops"].std((1, 2, 3)).mean() + 5
