"""What a user gives a command, in the forms that people write it in: places for results, code, transforms, sets."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from conftest import tiny_net
from nescio.cli import main
from nescio.models import load_classifier

MODEL = ["--model", "mine:make", "--weights", "w.safetensors", "--transform", "crop=8", "--workers", "0"]


def nescio(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.fixture
def here(working_folder: Path, make_folder: Callable[..., Path]) -> Path:
    for name, seed in (("train", 0), ("id", 1000), ("far", 2000)):
        make_folder(name, per_class=12, classes=("a", "b", "c", "d"), seed=seed)
    return working_folder


# each with inputs that are not there: a place that is looked at after them would not be told of
COMMANDS = {
    "bench": ["--model", "none", "--id", "none", "--ood", "a=none"],
    "quickstart": [],
    "report": ["none"],
    "fit": ["--model", "none", "--calibrate", "none"],
    "export": ["none.nescio"],
    "score": ["none.nescio", "none"],
    "train": ["--arch", "none", "--train", "none", "--val", "none"],
    "tune": ["energy", "--model", "none", "--val", "none"],
    "recommend": ["--model", "none", "--val", "none"],
    "explain": ["none", "--model", "none"],
}
FILES = {"fit": ".nescio", "export": ".onnx", "tune": ".csv", "recommend": ".json", "explain": ".png"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(working_folder: Path, command: str) -> None:
    ending = FILES.get(command, "")
    Path("file").write_text("in the way")
    Path(f"taken{ending}").mkdir() if ending else Path("taken").write_text("in the way")
    for out in (f"file/below/out{ending}", f"taken{ending}", "s3://bucket/out" + ending, f"/proc/nescio/out{ending}"):
        result = nescio(command, *COMMANDS[command], "--out", out)
        assert result.exit_code == 2, result.output
        assert "cannot be written" in result.output, out
        assert len(result.output.splitlines()) == 1
    assert Path("file").read_text() == "in the way"
    assert sorted(p.name for p in working_folder.iterdir()) == ["file", "mine.py", f"taken{ending}", "w.safetensors"]


def test_a_device_is_no_place_for_results(working_folder: Path) -> None:
    result = nescio("fit", *COMMANDS["fit"], "-o", "/dev/null")
    assert "not a regular file" in result.output
    assert Path("/dev/null").is_char_device()


def test_bench_writes_one_file_where_one_is_named(here: Path) -> None:
    common = ["bench", *MODEL, "--id", "id", "--ood", "far=far", "--detector", "msp", "--detector", "energy"]
    assert nescio(*common, "-o", "results").exit_code == 0
    for name in ("r.csv", "deep/er/r.json", "r.parquet"):
        result = nescio(*common, "-o", name)
        assert result.exit_code == 0, result.output
        assert f"wrote {name}" in result.output

    def without_time(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    whole = json.loads(Path("results/results.json").read_text())
    kept = json.loads(Path("deep/er/r.json").read_text())
    assert kept["manifest"]["detectors"] == whole["manifest"]["detectors"]
    assert without_time(kept["rows"]) == without_time(whole["rows"])
    assert without_time(pq.read_table("r.parquet").to_pylist()) == without_time(whole["rows"])
    with Path("r.csv").open(newline="") as file, Path("results/results.csv").open(newline="") as other:
        assert without_time(list(csv.DictReader(file))) == without_time(list(csv.DictReader(other)))
    assert not list(here.rglob("*.partial"))


def test_choices_are_written_in_the_form_that_is_named(here: Path) -> None:
    common = ["tune", "energy", "react:q=0.8|0.9+energy", *MODEL, "--val", "id", "--train", "train", "--proxy", "tiles"]
    for name in ("c.csv", "c.json", "c.parquet"):
        assert nescio(*common, "-o", name).exit_code == 0
    rows = json.loads(Path("c.json").read_text())
    assert pq.read_table("c.parquet").to_pylist() == rows
    with Path("c.csv").open(newline="") as file:
        assert [float(r["tiles_auroc"]) for r in csv.DictReader(file)] == [r["tiles_auroc"] for r in rows]
    assert list(rows[0]) == ["detector", "tiles_fpr95", "tiles_auroc", "gap"]
    result = nescio(*common, "-o", "c.txt")
    assert result.exit_code == 2
    assert "c.txt must end in .csv, .json or .parquet" in result.output


def test_tune_and_recommend_take_the_sets_that_bench_takes(here: Path) -> None:
    shutil.make_archive("val", "zip", "id")
    common = ["recommend", *MODEL, "--train", "train[~40]", "--val", "val.zip"]
    result = nescio(*common, "--ood-examples", "far/*/1*.png", "-o", "r.json")
    assert result.exit_code == 0, result.output
    assert "examples_auroc" in json.loads(Path("r.json").read_text())[0]
    result = nescio(*common, "--ood-examples", "one=far[:9]", "--ood-examples", "noise two=noise:uniform:images=9",
                    "-o", "r.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {"one_auroc", "noise two_auroc"} <= set(json.loads(Path("r.json").read_text())[0])
    assert "average" in result.output
    for given, told in (
        (["far", "id"], "--ood-examples far has no name"),
        (["noise=far"], "cannot be called 'noise'"),
        (["x=id"], "the OOD x are other"),
        (["gone"], "no such file or folder: gone"),
    ):
        result = nescio(*common[:-1], "id", *(word for g in given for word in ("--ood-examples", g)))
        assert result.exit_code == 2
        assert told in result.output or "validation images themselves" in result.output


def test_a_default_detector_is_not_blamed_on_the_user(here: Path) -> None:
    result = nescio("fit", *MODEL, "--calibrate", "id", "-o", "my.nescio")
    assert result.exit_code == 2
    assert "detector 'fmls', the default, is fitted on training images" in result.output
    assert "--detector energy" in result.output


def test_code_is_named_by_its_file_with_options(here: Path) -> None:
    (here / "code").mkdir()
    (here / "code/beside.py").write_text("from conftest import TinyNet\n")
    (here / "code/net.py").write_text(
        "from dataclasses import dataclass\nfrom beside import TinyNet\n\n\n"
        "@dataclass\nclass Size:\n    classes: int\n\n\n"
        "def make(classes=4, bias=True):\n    return TinyNet(Size(classes).classes, bias=bias)\n"
    )
    for model in ("code/net.py:make", f"{here}/code/net.py:make:classes=4,bias=True"):
        result = nescio("bench", *MODEL[2:], "--model", model, "--id", "id", "--ood", "far=far", "--detector", "msp")
        assert result.exit_code == 0, result.output
    weights = tiny_net(7, bias=False).state_dict()
    classifier = load_classifier("code/net.py:make:classes=7,bias=False", weights=weights, transform="crop=8")
    assert torch.equal(classifier.head.weight, weights["fc.weight"])
    assert not classifier.head.bias.any()
    made = nescio(
        "fit", *MODEL[2:], "--model", "code/net.py:make", "--calibrate", "id", "--detector", "msp", "-o", "n.nescio"
    )
    assert made.exit_code == 0, made.output
    assert "code/net.py:make" in nescio("score", "n.nescio", "far/a/0.png").output  # which a file must not choose
    assert nescio("score", "n.nescio", "far/a/0.png", "--model", "code/net.py:make").exit_code == 0


def test_a_network_made_in_python_is_asked_for(here: Path) -> None:
    import nescio as package
    from conftest import TINY_TRANSFORM
    from nescio.models import Classifier

    made = package.fit(
        package.Session(Classifier(tiny_net(), TINY_TRANSFORM), workers=0, progress=False), "msp", calibrate="id"
    )
    made.save("python.nescio")
    result = nescio("score", "python.nescio", "far/a/0.png")
    assert result.exit_code == 2
    assert "--model" in result.output
    assert "did you mean" not in result.output
    assert nescio("score", "python.nescio", "far/a/0.png", "--model", "mine:make").exit_code == 0
