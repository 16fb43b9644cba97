"""The suites and sets that come with the package, and what the papers print."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from nescio.cli import main
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.evaluation.suites.published import beside, commands
from nescio.evaluation.suites.sets import known_set, known_sets
from nescio.evaluation.suites.suite import AVERAGE, PublishedRow, open_suite, suites
from nescio.methods.objective import parse_objective
from nescio.training import Recipe

ROWS = [(name, row) for name, suite in suites().items() for row in suite.published]


@pytest.mark.parametrize("name", suites())
def test_every_detector_of_a_suite_can_be_read_and_every_set_is_described(name: str) -> None:
    suite = suites()[name]
    assert suite.detectors
    for spec in suite.detectors:
        Detector(spec)
    assert set(suite.near) <= set(suite.ood)
    assert set(suite.counts) <= {suite.id, *suite.ood}
    assert {row.model for row in suite.published} - {""} <= {m.name for m in suite.models}
    for data in (suite.id, *suite.ood):
        entry = known_set(data)
        assert entry.title
        assert "test" in entry.splits
        assert entry.address or entry.splits["test"].open
    for row in suite.published:
        Detector(row.detector, row.model, suite.classes)
        assert set(row.values) <= {*suite.ood, AVERAGE}
        assert all(0 <= v <= 1 for pair in row.values.values() for v in pair)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_every_published_row_is_a_command(name: str, row: PublishedRow) -> None:
    lines = [shlex.split(line) for line in commands(suites()[name], row, "my data")]
    trains = bool(row.training or Detector(row.detector, row.model).needs.heads)
    assert [line[1] for line in lines] == ["train", "bench"][not trains :]
    parsed = {
        line[1]: main.get_command(click.Context(main), line[1]).make_context(line[1], line[2:]).params for line in lines
    }
    assert parsed["bench"]["detector"] == (row.detector,)
    if trains:
        parse_objective(parsed["train"]["objective"])
        Recipe.named(parsed["train"]["recipe"])
        assert parsed["train"]["train_"] == f"my data/{suites()[name].train}/train"
        assert parsed["bench"]["model"] == str(parsed["train"]["out"])
        # SSOD: 'If not specified, all methods employ ResNet-50 pre-trained on ImageNet-1k'; CIFAR-10 'from scratch'
        scratch = suites()[name].id == "cifar10" or row.training == "supcon"
        assert parsed["train"]["init"] == ("scratch" if scratch else "pretrained")


def test_the_commands_are_listed() -> None:
    told = CliRunner().invoke(main, ["data", "list", "cifar10", "--published", "--data-root", "d"]).output
    godin = told[told.index("GODIN: FPR95 32.80%, AUROC 93.52% (average)") :].splitlines()[1:3]
    assert "--objective godin --recipe cifar --train d/cifar10/train --val HELD_OUT --out runs/cifar10-" in godin[0]
    assert "SSOD, α = 1.5: FPR95 10.80%, AUROC 97.49% (places365), ID accuracy 91.36%\n" in told
    assert "HELD_OUT stands for labelled ID images" in told
    assert godin[1].endswith("--detector perturbid+godin --model runs/cifar10-godin-resnet18-cifar")


def test_the_commands_name_the_set_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "CIFAR10" / "train").mkdir(parents=True)
    godin = next(row for name, row in ROWS if (name, row.method) == ("cifar10", "GODIN"))
    assert f"--train {tmp_path}/CIFAR10/train " in commands(suites()["cifar10"], godin, tmp_path)[0]


def test_rows_that_cannot_be_printed_or_made(tmp_path: Path) -> None:
    text = """
title = "mine"
about = ""
id = "cifar10"
ood = ["svhn"]
[[published]]
paper = "x"
table = "1"
model = "resnet18-cifar"
sets = ["svhn"]
rows = [
  { method = "A", detector = "msp", values = [nan, nan] },
  { method = "B", detector = "knn", training = "%s", values = [1, 2] },
]
"""
    for training, code in (("supcon", 0), ("nosuch", 2)):
        (tmp_path / "my.toml").write_text(text % training)
        told = CliRunner().invoke(main, ["data", "list", str(tmp_path / "my.toml"), "--published"])
        assert told.exit_code == code
        assert "\n  A\n" in told.output
    assert "nosuch" in told.output
    refused = CliRunner().invoke(main, ["data", "list", "--published"])
    assert (refused.exit_code, "need the name of one suite" in refused.output) == (2, True)


def test_a_row_stands_beside_networks_trained_as_its_own() -> None:
    suite = suites()["imagenet-ssod"]
    manifest = {"detectors": {d: {"spec": repr(Detector(d))} for d in ("knn:k=10,alpha=0.01", "energy")}}
    sets = [SimpleNamespace(name="sun")]
    results = SimpleNamespace(detectors=list(manifest["detectors"]), manifest=manifest, ood_sets=sets)
    found = {o: beside(suite, "torchvision:resnet50", results, o) for o in ("", "ce", "supcon", "supcon:T=0.2", "ssod")}
    fpr95 = {o: {detector: p.fpr95 for (detector, _), p in rows.items()} for o, rows in found.items()}
    plain = {"knn:k=10,alpha=0.01": 0.6953, "energy": 0.5926}
    assert fpr95 == {"": plain, "ce": plain, "supcon": {"knn:k=10,alpha=0.01": 0.4899}, "supcon:T=0.2": {}, "ssod": {}}


PRESETS = {"FM+LS": "fmls", "LINe": "line-energy", "DICE+ReAct": "dice+react", "LINe+LS": "line-ls"}
PRESETS |= {"MSP+FM+LS": "fmls-msp", "Energy+FM+LS": "fmls", "ODIN+FM+LS": "fmls-odin"}


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet"])
def test_presets_are_the_published_rows_of_every_network(name: str) -> None:
    suite = suites()[name]
    assert suite.classes == {"cifar10": 10, "cifar100": 100, "imagenet": 1000}[name]
    rows = [r for r in suite.published if r.paper == "fmls" and r.method in PRESETS]
    assert {r.model for r in rows} == {m.name for m in suite.models} - {"timm:resnet18"}
    for row in rows:
        ours = Detector(PRESETS[row.method], row.model, suite.classes)
        assert repr(ours) == repr(Detector(row.detector, row.model, suite.classes)), (row.model, row.method)


def test_addresses_are_of_forms_that_fetch_knows() -> None:
    for entry in known_sets().values():
        for split in entry.splits.values():
            assert not (split.fetch and split.open)
            if split.fetch:
                assert re.match(
                    r"torchvision:\w+/\w+$|hf:[\w.-]+/[\w.-]+:[\w./*-]+$|https?://\S+\.(tar|tar\.gz|zip|tgz)$",
                    split.fetch,
                )


def test_the_printed_averages_are_those_of_the_sets_but_for_the_errata() -> None:
    listed = {"GODIN", "MSP", "CSI", "KNN", "ResNet-18"}  # SSOD's Tables 1, 2 and 6: their errata name these
    off = []
    for name, row in ROWS:
        sets = [pair for key, pair in row.values.items() if key != AVERAGE]
        if AVERAGE in row.values and sets:
            means = [sum(pair[i] for pair in sets) / len(sets) for i in (0, 1)]
            if any(abs(mean - printed) > 0.0002 for mean, printed in zip(means, row.values[AVERAGE], strict=True)):
                off.append((name, row.paper, row.table, row.method))
    assert all(paper == "ssod" for _, paper, _, _ in off)
    assert len(off) == 5
    assert all(any(m in method for m in (*listed, "R-18", "MSP")) for *_, method in off), off
    assert all(suites()[name].errata for name, *_ in off)


def _clean_rows(text: str) -> Iterator[list[float]]:
    """The numbers of each line of a table in Markdown that has nothing but numbers behind the method."""
    for line in text.splitlines():
        cells = [re.sub(r"</?u>", "", c).strip() for c in line.strip().strip("|").split("|")]
        numbers = [float(c) for c in cells if re.fullmatch(r"\d+\.\d+", c)]
        if len(numbers) >= 10 or re.search(r"\+|MSP|Energy|ODIN|LINE", line):
            yield numbers


@pytest.mark.parametrize("table", ["I", "II", "IV", "V"])
def test_the_numbers_are_those_that_the_fm_ls_paper_prints(shared: Path, table: str) -> None:
    papers = [p.read_text(encoding="utf-8", errors="replace") for p in (shared / "papers").glob("*.txt")]
    text = next(t for t in papers if "Logit Smoothing" in t and "TABLE V" in t)
    printed = list(_clean_rows(text))
    rows = [r for _, r in ROWS if (r.paper, r.table) == ("fmls", table)]
    assert rows
    for row in rows:
        numbers = [round(v * 100, 2) for pair in row.values.values() for v in pair]
        if table == "IV" and row.method == "Energy+ReAct" and 95.54 in numbers:
            numbers[numbers.index(95.54)] = 95.95  # what Table IV prints, and Table I does not
        assert any(_holds(line, numbers) for line in printed), (row.model, row.method, numbers)


def _holds(line: list[float], numbers: list[float]) -> bool:
    """Whether the numbers stand in a line one behind the other (Table IV has three benchmarks in each)."""
    return any(line[i : i + len(numbers)] == numbers for i in range(len(line) - len(numbers) + 1))


def test_the_ssod_rows_stand_in_the_paper(shared: Path) -> None:
    papers = [p.read_text(encoding="utf-8", errors="replace") for p in (shared / "papers").glob("*.txt")]
    text = next(t for t in papers if "Loss-Wise Balance" in t)
    printed = set(re.findall(r"\d+\.\d\d", text))
    missing = [
        (row.table, row.method, v)
        for _, row in ROWS
        if row.paper == "ssod"
        for pair in row.values.values()
        for v in pair
        if f"{v * 100:.2f}" not in printed and not math.isnan(v)
    ]
    accuracies = {f"{row.id_accuracy:.2%}"[:-1] for _, row in ROWS if row.id_accuracy is not None}
    assert len(accuracies) == 9
    assert not missing
    assert not accuracies - printed
    ours = next(r for n, r in ROWS if n == "imagenet-ssod" and r.table == "1" and r.detector == "ssod")
    assert ours.values["inaturalist"] == pytest.approx((0.1480, 0.9691))
    assert ours.values[AVERAGE] == pytest.approx((0.3189, 0.9226))


@pytest.mark.parametrize(
    "place", ["svhn/test", "svhn/test.parquet", "SVHN/test.zip", "svhn-test.tar.gz", "svhn", "svhn.parquet", "svhn/val"]
)
def test_a_set_is_found_where_people_put_it(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if "." not in path.name else path.write_bytes(b"")
    assert known_set("svhn").find("test", tmp_path) == str(path)


def test_a_folder_of_other_splits_is_not_taken_for_the_test_images(tmp_path: Path) -> None:
    (tmp_path / "svhn/train").mkdir(parents=True)
    assert known_set("svhn").find("test", tmp_path) is None


def test_noise_is_never_missing_and_as_large_as_asked(tmp_path: Path) -> None:
    needs = {n.role: n for n in open_suite("cifar10-mini").needs(tmp_path, {"id": "mine"}, size=32)}
    assert needs["gaussian-noise"].found == "noise:gaussian:size=32"
    assert needs["id"].found == "mine"
    assert needs["textures"].found is None
    assert needs["textures"].images == 1200


def test_what_a_suite_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no set 'texture'.*textures"):
        open_suite("cifar10").needs(tmp_path, {"texture": "x"})
    with pytest.raises(InputError, match=r"unknown suite 'cifar'.*cifar10"):
        open_suite("cifar")
    with pytest.raises(InputError, match=r"unknown data set 'svnh'.*svhn"):
        known_set("svnh")


def test_a_suite_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "Mine"\nabout = ""\nid = "cifar10"\nood = ["mnist"]\ndetectors = ["msp"]\n')
    assert open_suite(str(path)).ood == ("mnist",)
    path.write_text('title = "Mine"\nabout = ""\nid = "cifar10"\nood = ["mnits"]\n')
    with pytest.raises(InputError, match=r"unknown data set 'mnits'"):
        open_suite(str(path))
    path.write_text("title = ")
    with pytest.raises(InputError, match="is not a suite"):
        open_suite(str(path))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("id = 5", "is not a suite"),
        ("about = 5", "is not a suite"),
        ("counts = 5", "counts is not of type dict"),
        ("transform = 5", "transform is not of type str"),
        ('train = "mnist"', "no split 'train'"),
        ('equal = "many"', "equal = many"),
        ('near = ["svhn"]', "'svhn' is not one of the OOD sets"),
    ],
)
def test_a_mistake_in_a_users_suite_is_one_line(tmp_path: Path, entry: str, said: str) -> None:
    lines = {"title": '"Mine"', "about": '""', "id": '"cifar10"', "ood": '["mnist"]', "detectors": '["msp"]'}
    key, _, value = entry.partition(" = ")
    (tmp_path / "mine.toml").write_text("\n".join(f"{k} = {v}" for k, v in (lines | {key: value}).items()))
    with pytest.raises(InputError, match=said):
        open_suite(str(tmp_path / "mine.toml"))
