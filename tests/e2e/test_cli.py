"""The command line as a user meets it, on folders of real (small) images and a network of their own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from again import run_again
from conftest import TinyNet, encoded, picture
from nescio.cli import main
from nescio.core.stage import PLACES, REGISTRY, InputStage
from nescio.evaluation.results import Results
from nescio.methods import catalogue
from nescio.run.extraction import Extraction

TESTS = Path(__file__).parents[1]


@pytest.fixture
def here(working_folder: Path, make_folder: Callable[..., Path]) -> Path:
    """A working folder: images, weights, and the user's module."""
    for name, seed in (("train", 0), ("id", 1000), ("far", 2000), ("near", 3000)):
        make_folder(name, per_class=12, classes=("a", "b", "c", "d"), seed=seed)
    return working_folder


COMMON = {
    "--model": "mine:make",
    "--weights": "w.safetensors",
    "--transform": "crop=8",
    "--train": "train",
    "--id": "id",
    "--ood": ["far=far", "near=near"],
    "--detector": ["msp", "fm:p=0.5+react:q=0.9+ls+energy", "odin:eps=0.01+msp", "fmls"],
    "--workers": "0",
}


def bench(*flags: str, **changes: object) -> Result:
    """``nescio bench`` with the common options, some changed (``ood=[…]``) or left out (``train=None``)."""
    options = {**COMMON, **{f"--{k.replace('_', '-')}": v for k, v in changes.items()}}
    arguments = [*(f for f in flags if f == "--quiet"), "bench", *(f for f in flags if f != "--quiet")]
    for name, value in options.items():
        for v in value if isinstance(value, list) else [] if value is None else [value]:
            arguments += [name] if v is True else [name, str(v)]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_a_bench_writes_the_table_the_files_and_the_report(here: Path) -> None:
    result = bench("--report", out="results", intervals=20)
    assert result.exit_code == 0, result.output
    with (here / "results/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["detector"], r["ood"]) for r in rows] == [(d, o) for d in COMMON["--detector"] for o in ("far", "near")]
    assert {"fpr95", "auroc", "aupr_in", "aupr_out", "id_accuracy", "n_id", "n_ood", "seconds"} <= rows[0].keys()
    for r in rows:
        assert float(r["auroc_low"]) <= float(r["auroc"]) <= float(r["auroc_high"])
        assert (r["n_id"], r["n_ood"]) == ("48", "48")
    content = json.loads((here / "results/results.json").read_text())
    manifest = content["manifest"]
    assert manifest["detectors"]["fmls"]["spec"] == "fm+react:q=0.98+ls+energy"
    assert manifest["detectors"]["fmls"]["settings"]["fm"] == {"p": 0.6}
    assert manifest["detectors"]["fmls"]["settings"]["react"]["limit"] > 0
    assert manifest["transform"].startswith("resize=8,crop=8")
    assert set(manifest["data"]) == {"train", "id", "far", "near"}
    assert manifest["versions"]["torch"]
    mean = sum(float(r["auroc"]) for r in rows[:2]) / 2
    assert content["average"][0]["auroc"] == pytest.approx(mean, abs=1e-3)
    assert f"{mean:.2f}" in result.output
    assert "react:q=0.98 clips at" in result.stderr
    own = {r["detector"]: r["own_pass"] for r in rows}
    assert own == dict.fromkeys(COMMON["--detector"], "") | {"odin:eps=0.01+msp": "odin:eps=0.01"}
    page = (here / "results/report.html").read_text()
    assert page.count("+ its pass</small>") == 1
    assert "+ its pass (<code>odin:eps=0.01</code>)" in page
    assert page.count('role="img"') == 10  # scores, ROC, features and cosines of two sets; coverage, activation
    assert len(list((here / "results/figures").iterdir())) == 6 * 3
    assert "data:image/webp;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not list((here / "results").glob(".*"))


def test_a_report_tells_the_options_that_its_numbers_follow_from(here: Path) -> None:
    Path("names.txt").write_text("a\nb\nc\nd\n")
    (here / "far/broken.png").write_bytes(b"no image")
    given = {"classes": "names.txt", "head": "fc", "bank-dtype": "float16", "max-bad": "0.2", "id": "id[~20]"}
    changes = {k.replace("-", "_"): v for k, v in given.items()} | {"detector": ["msp", "knn:k=3|5"]}
    assert bench("--equal", "--report", out="r", **changes).exit_code == 0
    before, after = run_again(here / "r/report.html", "--workers", "0")
    assert after == before
    old, new = (Results.load(folder).manifest for folder in ("r", "RESULTS"))
    assert old["options"] == {"dtype": "float16", "max_bad": 0.2}
    assert old["model"]["opened"]["classes"] == "names.txt"
    assert all(new[key] == old[key] for key in ("options", "model", "transform", "equal", "ranges", "data"))


def test_a_second_run_with_other_detectors_runs_no_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench(detector=["msp", "ls+energy"], out="one")
    assert first.exit_code == 0

    def refuse(*_: object) -> None:
        raise AssertionError("the network ran again")

    monkeypatch.setattr(Extraction, "fill", refuse)
    second = bench(detector=["energy", "cosine", "msp"], out="two")
    assert second.exit_code == 0
    rows = {r["detector"]: r for r in csv.DictReader((here / "two/results.csv").open(newline=""))}
    again = {r["detector"]: r for r in csv.DictReader((here / "one/results.csv").open(newline=""))}
    assert rows["msp"]["auroc"] == again["msp"]["auroc"]


def test_all_stands_for_every_stage_and_preset(here: Path) -> None:
    result = bench("--quiet", detector="all", ood="far=far", out="results")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((here / "results/results.csv").open(newline="")))
    given = {r["detector"] for r in rows}
    assert {"msp", "knn", "vim", "fm+energy", "ls+energy", "odin+msp", "fmls"} <= given
    assert len(given) == len(rows) >= 29


def test_detectors_from_a_file_and_unlabelled_id_images(here: Path) -> None:
    (here / "detectors.txt").write_text("msp  # the baseline\n\n# a comment\nenergy\n")
    flat = here / "flat"
    flat.mkdir()
    for i in range(5):
        picture(i).save(flat / f"{i}.png")
    result = bench(id="flat", detector=None, detectors="detectors.txt", train=None, out="results")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((here / "results/results.csv").open(newline="")))
    assert [r["detector"] for r in rows] == ["msp", "msp", "energy", "energy"]
    assert rows[0]["id_accuracy"] == rows[0]["aurc"] == ""
    assert json.loads((here / "results/results.json").read_text())["rows"][0]["id_accuracy"] is None


def test_skipped_images_are_counted_and_listed(here: Path) -> None:
    (here / "far/a/0.png").write_bytes(b"")
    (here / "far/b/1.png").write_bytes(encoded(picture(1))[:50])
    result = bench(max_bad=0.1, out="results", detector=["msp", "odin+msp"])
    assert result.exit_code == 0, result.output
    assert "2 images were skipped" in result.stderr
    rows = list(csv.DictReader((here / "results/skipped.csv").open(newline="")))
    assert [(r["set"], Path(r["image"]).name) for r in rows] == [("far", "0.png"), ("far", "1.png")]
    assert rows[0]["reason"] == "zero bytes"
    with (here / "results/results.csv").open(newline="") as file:
        assert {r["n_ood"] for r in csv.DictReader(file) if r["ood"] == "far"} == {"46"}


def spoil(here: Path) -> None:
    """Inputs for the mistakes below."""
    (here / "empty").mkdir()
    (here / "text.safetensors").write_text("hello")
    save_file(TinyNet(7).state_dict(), here / "seven.safetensors")
    for c in "abcde":
        (here / "five" / c).mkdir(parents=True)
        picture(0).save(here / "five" / c / "0.png")
    for c in "abcx":
        (here / "renamed" / c).mkdir(parents=True)
        picture(0).save(here / "renamed" / c / "0.png")
    for i, name in enumerate(("three", "other-three")):
        for c in "abc":
            (here / name / c).mkdir(parents=True)
            picture(100 * i + ord(c)).save(here / name / c / "0.png")
    (here / "none.txt").write_text("# nothing\n")
    (here / "bad").mkdir()
    for i in range(10):
        (here / "bad" / f"{i}.png").write_bytes(b"x" * i)


MISTAKES = {
    "wrong class count": ({"weights": "seven.safetensors", "classes": 4}, "has 7 classes"),
    "weights for another network": ({"weights": "seven.safetensors", "model": "resnet18-cifar"}, "does not fit"),
    "weights that are no weights": ({"weights": "text.safetensors"}, "not a readable safetensors"),
    "a set without images": ({"ood": ["far=empty"]}, "contains no images"),
    "a set that is not there": ({"id": "gone"}, "no such file or folder"),
    "labels outside the head's range": (
        {"id": "five", "train": None, "detector": ["msp"]},
        "labels up to 4.*4 classes",
    ),
    "other class names": ({"id": "renamed"}, r"disagree about the classes \(d, x\)"),
    "percent": ({"detector": ["fm:p=60+energy"]}, r"did you mean p=0\.6"),
    "a negative clip": ({"detector": ["react:clip=-1+energy"]}, "above 0"),
    "the ID set as OOD": ({"ood": ["far=id"]}, "is the ID set itself"),
    "no training set": ({"train": None}, r"fm:p=0\.5\+react:q=0\.9\+ls\+energy.*--train"),
    "a class without training images": ({"train": "three", "id": "other-three", "detector": ["ls+energy"]}, "class 3"),
    "a misspelt stage": ({"detector": ["enrgy"]}, "did you mean 'energy'"),
    "an empty list of detectors": ({"detectors": "none.txt"}, "has no detectors"),
    "no list of detectors": ({"detectors": "gone.txt"}, "no such file: gone.txt"),
    "an OOD set without a name": ({"ood": ["far"]}, "--ood far=far"),
    "two OOD sets of one name": ({"ood": ["a=far", "a=near"]}, "two OOD sets"),
    "an OOD set called id": ({"ood": ["id=far"]}, "another name"),
    "too many bad images": ({"ood": ["bad=bad"]}, "10 of 10 bad"),
    "an unknown transform option": ({"transform": "crp=8"}, "did you mean 'crop'"),
    "a transform without a crop": ({"transform": "mean=0.5"}, "no crop"),
    "a model that is not there": ({"model": "mine:gone"}, "cannot be imported"),
    "an unknown head": ({"head": "fcc"}, "did you mean 'fc'"),
    "a device that is not there": ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    "a share of bad images in percent": ({"max_bad": 5}, r"did you mean max_bad=0\.05"),
    "a cache that cannot be": ({"cache": "w.safetensors/cache"}, "--cache DIR"),
    "an OOD set called like markup": ({"ood": ["[red]x[/]=far"]}, "another name"),
    "results in the way": ({"out": "w.safetensors/results"}, "cannot be written"),
    "a list that is no text": ({"detectors": "w.safetensors"}, "cannot be read as text"),
    "a file of weights as the model": (
        {"model": "w.safetensors"},
        r"a file of weights.*give it as weights= \(--weights\)",
    ),
    "a file of code without a function": ({"model": "mine.py"}, r"name the function.*mine\.py:FUNCTION"),
    "a function that the file lacks": ({"model": "mine.py:maek"}, "did you mean 'make'"),
    "a file of code that is not there": ({"model": "code/net.py:make"}, r"no such file: code/net\.py"),
    "a module that is not there": ({"model": "nowhere:make"}, r"PYTHONPATH.*DIR/FILE\.py:FUNCTION"),
    "an option that the factory lacks": ({"model": "mine:make:depth=3"}, "unexpected keyword argument 'depth'"),
    "a folder that holds no run": ({"model": "train"}, "is not a trained network"),
    "a deployed detector as the model": ({"model": "my.nescio"}, "a file that nescio fit wrote"),
    "a list as weights": ({"weights": "none.txt"}, r"none\.txt is text; give weights"),
    "a folder as weights": ({"weights": "."}, r"is a folder; give the file of weights in it.*w\.safetensors"),
    "a picture as weights": ({"weights": "id/a/0.png"}, "is a picture; give weights"),
    "a bracket that is open": ({"detector": ["mean(energy,knn"]}, r"write 'mean\(energy,knn\)'"),
    "a bracket too many": ({"detector": ["energy)"]}, "has a closing bracket without an opening one"),
    "default detectors without training images": (
        {"detector": None, "train": None},
        "some of the default detectors.*give train=.*--detector msp --detector maxlogit --detector energy$",
    ),
    "a report in one file": ({"out": "results.csv", "report": True}, "is a file; give a folder"),
    "a factory that fails": ({"model": "builtins:chr"}, r"chr\(\) failed: TypeError"),
    "an unknown bank dtype": ({"bank_dtype": "int8"}, "float16"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_exit_2_and_leave_nothing(here: Path, mistake: str) -> None:
    spoil(here)
    changes, told = MISTAKES[mistake]
    result = bench(**{"out": "results", **changes})
    assert result.exit_code == 2, result.output
    notes = ("clips at", ": using fm+", "about as often as guessing")
    lines = [line for line in result.stderr.splitlines() if not any(note in line for note in notes)]
    assert len(lines) == 1, lines
    assert result.stdout == ""
    import re

    assert re.search(told, lines[0]), lines[0]
    assert not (here / "results").exists()


def test_a_gpu_without_memory_is_one_line_that_says_what_to_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Extraction, "fill", full)
    result = bench(detector=["msp"])
    assert result.exit_code == 2
    assert "CUDA out of memory" in result.stderr
    assert "--batch-size" in result.stderr
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback(here: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        CliRunner().invoke(
            main, ["--debug", "bench", "--model", "mine:make", "--id", "gone", "--ood", "a=b", "--transform", "crop=8",
             "--detector", "msp"],
            catch_exceptions=False,
        )  # fmt: skip


def test_every_detector_at_once_and_what_the_model_cannot_serve_is_said(here: Path) -> None:
    spec = "mean(energy,fisher(knn:k=3,gram))"
    result = bench(detector=["all", spec], held_out="train[:40]", out="r")
    assert result.exit_code == 0, result.output
    assert "leaving out mcdropout+msp: the network has no dropout" in result.stderr
    rows = list(csv.DictReader((here / "r/results.csv").open(newline="")))
    named = {r["detector"] for r in rows}
    assert {"gram", "rankfeat+energy", "bats+msp", "perturb+msp", "openmax", "line-ls", "dice+react"} <= named
    assert not [name for name in named if name.startswith("mcdropout") or "@" in name]
    manifest = json.loads((here / "r/results.json").read_text())["manifest"]
    assert set(manifest["data"]) == {"train", "calibrate", "id", "far", "near"}
    members = manifest["detectors"][spec]["settings"]["mean"]["members"]
    assert members[1]["fisher"]["members"][0]["knn"]["k"] == 3


def test_training_images_go_through_a_fixed_pass_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    fill = Extraction.fill
    monkeypatch.setattr(Extraction, "fill", lambda e, *a: (seen.append((e.title, e.network_pass.key)), fill(e, *a)))
    spec = "bats:lam=0.5+cosine"
    assert (
        bench(detector=[spec, "bats:lam=0.5+energy", "odin:eps=0.01+cosine"], ood=["far=far"], out="r").exit_code == 0
    )
    passes = {key for name, key in seen if name == "train"}
    assert len(passes) == 2  # the truncated network's, and the plain one for odin
    assert (
        len(seen) == 2 + 2 + 2 + 1
    )  # and the two test sets through both of their own passes; id through the plain one
    assert bench(detector=["bats:lam=0.6+msp"], ood=["far=far"]).exit_code == 0
    assert [name for name, _ in seen[7:]] == ["id", "far"]  # no training images where no stage needs them


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("mcdropout+msp", "detector 'mcdropout+msp': the network has no dropout"),
        ("mean(energy,odin+msp)", "put the input stage before the ensemble"),
    ],
)
def test_a_detector_that_cannot_work_is_refused_before_any_image_is_read(here: Path, spec: str, told: str) -> None:
    result = bench(detector=[spec], out="r")
    assert result.exit_code == 2
    assert told in result.output
    assert not (here / "r").exists()
    assert not list((here / "cache").glob("banks/*"))


def test_an_unknown_command_or_method_suggests_the_nearest() -> None:
    assert "did you mean 'bench'" in CliRunner().invoke(main, ["bnech"]).output
    result = CliRunner().invoke(main, ["methods", "energi"])
    assert result.exit_code == 2
    assert "did you mean 'energy'" in result.output
    assert "k = round(L (1 - p))" in CliRunner().invoke(main, ["methods", "fm"]).output
    assert "react:clip=0.8" in CliRunner().invoke(main, ["methods", "fmls"]).output
    both = CliRunner().invoke(main, ["methods", "godin"]).output
    assert "godin (score)" in both
    assert "godin (objective)" in both
    listed = CliRunner().invoke(main, ["methods"]).output.splitlines()
    (line,) = (text for text in listed if text.split()[:1] == ["mahalanobis"])
    assert "training" in line
    assert "Lee, NeurIPS 2018" in line
    assert len(line.split()) > 10  # and its cost
    rows = {e.name: e for e in catalogue.entries() if e.place in (*PLACES, "preset")}
    refused = {name for name, e in rows.items() if e.onnx == "no"}
    assert refused == {*(n for n, s in REGISTRY.items() if issubclass(s, InputStage)), "rankfeat", "fmls-odin"}
    assert {name for name, e in rows.items() if e.onnx == "as members"} == {"mean", "max", "fisher"}
    assert rows["fmls-odin"].network == rows["odin"].network == "2.6"
    assert "fit s and µs exclude the network" in listed[-1]
    narrow, wide = (next(catalogue.tables(width)) for width in (80, catalogue.WIDE))
    assert [c.header for c in narrow.columns] == ["name", "what it does", "needs"]
    assert [c.header for c in wide.columns][3:] == ["paper", "fit s", "µs", "passes", "ONNX"]
    (trained,) = (text for text in listed if text.split()[:1] == ["logitnorm"])
    assert "Wei, ICML 2022" in trained


def test_help_does_not_wait_for_pytorch() -> None:
    code = "import sys, nescio.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    result = subprocess.run([sys.executable, "-m", "nescio", "--help"], capture_output=True, text=True, check=True)
    assert "quickstart" in result.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_what_is_done(here: Path, workers: int) -> None:
    """A real interrupt to a real process: exit code 130, one line, and the pass goes on afterwards."""
    slow = here / "slow.py"
    slow.write_text(
        "import signal, time, torch\nfrom conftest import TinyNet\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell runs in the background
        "torch.manual_seed(0)\n"
        "class make(TinyNet):\n"
        "    def forward(self, x):\n"
        "        time.sleep(0.3 if x.sum() < 1e9 else 0)\n"  # a branch, so that tracing cannot drop the sleep
        "        return super().forward(x)\n"
    )
    command = [sys.executable, "-m", "nescio", "bench", "--model", "slow:make", "--untrained", "--transform", "crop=8",
               "--id", "id", "--ood", "far=far", "--detector", "msp", "--batch-size", "4",
               "--workers", str(workers)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen(command, cwd=here, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((here / "cache").glob("banks/*.partial/manifest.json")):
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "continues where it stopped" in errors
    assert "Traceback" not in errors
    assert list((here / "cache").glob("banks/*.partial"))
    again = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert "continuing an interrupted pass at image" in again.stderr


def nescio(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def suite(here: Path) -> Path:
    """A suite of the user's own over sets below ``root``, one of which is not there."""
    root = here / "root"
    root.mkdir()
    (root / "cifar10").mkdir()
    for old, new in (("id", "cifar10/test"), ("train", "cifar10/train"), ("far", "svhn"), ("near", "Textures")):
        (here / old).rename(root / new)
    (here / "mine.toml").write_text("""
title = "Mine"
about = "A suite for a test."
id = "cifar10"
train = "cifar10"
ood = ["svhn", "textures", "mnist", "gaussian-noise"]
counts = { svhn = 48, textures = 48, cifar10 = 48 }
transform = "crop=8"
detectors = ["msp", "fmls", "ssod"]
[[published]]
paper = "fmls"
table = "I"
model = "mine:make"
sets = ["svhn", "textures"]
rows = [
  { method = "MSP", detector = "msp", values = [50, 60, 70, 80], id_accuracy = 94.21 },
  { method = "Ours", detector = "fmls", values = [10, 20, 30, 40] },
]
""")
    return root


def test_a_suite_runs_with_what_is_there_and_stands_beside_what_is_published(suite: Path) -> None:
    common = ("--suite", "mine.toml", "--data-root", "root", "--model", "mine:make", "--weights", "w.safetensors")
    result = nescio("bench", *common, "--workers", "0", "--out", "r")
    assert result.exit_code == 0, result.output
    assert "mnist is left out" in result.output
    assert "gaussian-noise has 10,000" not in result.output
    for words in ("FM + LS", "difference", "decode"):
        assert words in result.output
    with Path("r/results.csv").open(newline="") as file:
        rows = {(r["detector"], r["ood"]): r for r in csv.DictReader(file)}
    assert {o for _, o in rows} == {"svhn", "textures", "gaussian-noise"}
    assert rows["msp", "svhn"]["published_auroc"] == "60.0"
    assert rows["fmls", "gaussian-noise"]["published_auroc"] == ""
    assert rows["msp", "svhn"]["published_id_accuracy"] == "94.21"
    assert rows["fmls", "svhn"]["published_id_accuracy"] == ""
    assert "images; published: 94.21% (FM + LS, Table I)" in result.output
    assert nescio("report", "r").exit_code == 0
    assert "&nbsp;% (published: 94.21% (FM + LS, Table I))." in Path("r/report.html").read_text(encoding="utf-8")
    ours = float(rows["fmls", "textures"]["fpr95"])
    assert f"{ours - 30:+.2f}" in Path("r/results.md").read_text()
    before, after = run_again(Path("r/report.html"), "--workers", "0")
    assert after == before
    strict = nescio("bench", *common, "--strict", "--workers", "0")
    assert strict.exit_code == 2
    assert "lacks mnist; nescio data list" in strict.output


def test_sets_of_a_suite_may_lie_elsewhere(suite: Path) -> None:
    (suite / "svhn").rename("moved")
    result = nescio(
        "--quiet", "bench", "--suite", "mine.toml", "--data-root", "root", "--model", "mine:make", "--weights",
        "w.safetensors", "--ood", "svhn=moved", "--ood", "extra=noise:uniform:size=8,images=20", "--detector", "energy",
        "--workers", "0", "--out", "r",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads(Path("r/results.json").read_text())
    assert content["manifest"]["data"]["svhn"]["opened"] == "moved"
    assert content["manifest"]["data"]["extra"]["images"] == 20
    assert content["manifest"]["suite"] == "mine"


def test_data_list_says_what_is_missing_and_how_to_get_it(suite: Path) -> None:
    result = nescio("data", "list", "mine.toml", "--data-root", "root")
    assert result.exit_code == 0
    assert "root/svhn" in result.output
    assert "nescio data fetch mnist/test --data-root root" in result.output
    assert "licence" in result.output
    assert "imagenet-hard" in nescio("data", "list").output
    assert nescio("data", "list", "cifar-10").exit_code == 2


def test_data_check_finds_the_id_image_among_the_ood_ones(suite: Path) -> None:
    arguments = ("data", "check", "mine.toml", "--data-root", "root", "--workers", "0")
    image = next((suite / "cifar10/test").rglob("*.png"))
    (suite / "svhn/a/copy.png").write_bytes(image.read_bytes())
    result = nescio(*arguments)
    assert result.exit_code == 1
    assert "1 images of svhn are also in id" in result.output
    assert "svhn has 49 images; expected 48" in result.output


def test_compare_is_a_gate(here: Path) -> None:
    assert bench(out="old").exit_code == 0
    assert bench(out="new").exit_code == 0
    assert nescio("compare", "old", "new", "--resamples", "100").exit_code == 0
    both = nescio("compare", "old", "--between", "msp", "fmls", "--resamples", "100")
    assert "msp → fmls" in both.output
    assert nescio("compare", "old").exit_code == 2
    worse = Results.load("new")
    worse.ood_sets[0].scores["msp"] += 0.1  # OOD images score higher
    worse.save("new")
    result = nescio("compare", "old", "new", "--resamples", "200")
    assert result.exit_code == 1
    assert "got worse" in result.output
    assert nescio("compare", "new", "old", "--resamples", "200").exit_code == 0
    assert nescio("compare", "old", "new", "--resamples", "200", "--tolerance", "100").exit_code == 0


def test_report_is_written_again_from_the_files(here: Path) -> None:
    assert bench("--report", out="r").exit_code == 0
    first = Path("r/report.html").read_text()
    Path("r/report.html").unlink()
    assert nescio("report", "r", "--images").exit_code == 0
    assert Path("r/report.html").read_text() == first
    assert nescio("report", "r").exit_code == 0  # opens nothing outside of the folder
    again = Path("r/report.html").read_text()
    assert "This page was written without the images." in again
    assert again.partition('id="features"')[2].partition("</section>")[0] in first  # figures need none
    assert nescio("report", "nowhere").exit_code == 2


def test_tune_and_recommend_choose_without_ood_images(here: Path) -> None:
    common = (
        "--model",
        "mine:make",
        "--weights",
        "w.safetensors",
        "--transform",
        "crop=8",
        "--val",
        "id",
        "--workers",
        "0",
    )
    result = nescio(
        "tune",
        "fm:p=0.1..0.9+react:q=0.9+ls+energy",
        *common,
        "--train",
        "train",
        "--proxy",
        "tiles",
        "--out",
        "t/c.csv",
    )
    assert result.exit_code == 0, result.output
    with Path("t/c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert f"best: {rows[0]['detector']}" in result.output
    assert "expected cost" not in result.output
    result = nescio("recommend", *common, "--ood-examples", "far[:10]", "--cost-accept", "3")
    assert result.exit_code == 0, result.output
    assert "expected cost of a new image" in result.output
    assert "examples" in result.output
    assert "nescio export does not support rankfeat+energy" in result.output
    assert nescio("recommend", *common, "--proxy", "tile").exit_code == 2
    assert nescio("tune", "fm:p=0.1..+energy", *common).exit_code == 2


@pytest.mark.parametrize("sweep", ["p", "lambda", "components", "scores"])
def test_the_papers_sensitivity_studies_are_one_option(here: Path, sweep: str) -> None:
    result = bench("--quiet", sweep=sweep, detector=None, ood=["far=far"], out="r")
    assert result.exit_code == 0, result.output
    with Path("r/results.csv").open(newline="") as file:
        specs = [r["detector"] for r in csv.DictReader(file)]
    assert len(specs) == {"p": 20, "lambda": 20, "components": 6, "scores": 11}[sweep]
    curves = sorted(p.name for p in Path("r/figures").glob("curve-*"))
    options = {"p": ["p", "p_a"], "lambda": ["clip"]}.get(sweep, [])
    assert curves == sorted(f"curve-{option}.{kind}" for option in options for kind in ("pdf", "png", "svg"))
    for option in options:
        svg = Path(f"r/figures/curve-{option}.svg").read_text()
        assert "FPR95 in %" in svg


def test_a_range_for_a_detector_is_benched_value_by_value(here: Path) -> None:
    result = bench("--quiet", detector=["knn:k=1|3|5", "msp"], ood=["far=far"], out="r")
    assert result.exit_code == 0, result.output
    with Path("r/results.csv").open(newline="") as file:
        assert [r["detector"] for r in csv.DictReader(file)] == ["knn:k=1", "knn:k=3", "knn:k=5", "msp"]
    assert Path("r/figures/curve-k.svg").exists()
    assert nescio("report", "r").exit_code == 0
    before, after = run_again(Path("r/report.html"), "--workers", "0")
    assert after == before
    assert Path("RESULTS/figures/curve-k.svg").exists()  # the range, not its values one by one
    assert 'id="ranges"' in Path("r/report.html").read_text(encoding="utf-8")
    assert Path("r/figures/curve-k.svg").exists()
    assert bench("--quiet", detector=["msp"], ood=["far=far"], out="r").exit_code == 0
    assert not Path("r/figures/curve-k.svg").exists()  # it would show another run
    assert bench("--quiet", sweep="lamda", detector=None).exit_code == 2
