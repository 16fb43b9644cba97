"""What a classifier knows: its accuracy against guessing, random weights, and the order of the classes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from conftest import TinyNet, tiny_net
from nescio import bench, fit, load_classifier, tune
from nescio.cli import main
from nescio.core.errors import InputError
from nescio.core.features import Head
from nescio.data import Transform, open_source
from nescio.data.labels import Relabelled, aligned, renumbering
from nescio.deploy import describe
from nescio.evaluation.accuracy import FEWEST, Accuracy, measure, moved_classes
from nescio.models import Classifier
from nescio.models.zoo.registry import architecture_of
from nescio.run.bank import Bank
from nescio.run.session import Session

OPTIONS = {"workers": 0, "progress": False}
COLOURS = ("red", "green", "blue")


class Colours(nn.Module):
    """Names the brightest of three colours: right without any training."""

    def __init__(self, *, knows: bool = True) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(3) if knows else torch.zeros(3, 3))
            self.fc.bias.copy_(torch.tensor([0.0, 0.0, 0.0 if knows else 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(x).flatten(1))


def colours(classes: list[str] | None = None, *, knows: bool = True) -> Classifier:
    return Classifier(Colours(knows=knows), Transform(crop=8), name="colours", classes=classes)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """``make("id", ("blue", …), 20, seed)``: class folders of images in the colour that the folder says."""

    def folder(name: str, folders: tuple[str, ...] = COLOURS, each: int = 20, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        for called in folders:
            (tmp_path / name / called).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 150, (8, 8, 3), dtype=np.uint8)
                pixels[..., COLOURS.index(called.lower().strip("_ "))] += 100
                Image.fromarray(pixels).save(tmp_path / name / called / f"{i}.png")
        return tmp_path / name

    return folder


def run(classifier: Classifier, make: Callable[..., Path], folders: tuple[str, ...] = COLOURS):
    train, ids, far = make("train", folders, seed=1), make("id", folders, seed=2), make("far", seed=3)
    return bench(Session(classifier, **OPTIONS), id=ids, train=train, ood={"far": far}, detectors=["msp", "ls+energy"])


@pytest.mark.parametrize(
    ("theirs", "own", "numbers"),
    [
        (["a", "b"], ["a", "b"], None),
        (["b", "a"], ["a", "b"], [1, 0]),
        (["Polar_Bear", "golden-retriever"], ["golden retriever", "cat", "polar bear"], [2, 0]),
        (["a", "b"], ["a", "b", "c"], None),  # the first classes, in place
        (["c", "a"], ["a", "b", "c"], [2, 0]),
        (["n01440764", "n01443537"], ["tench", "goldfish"], None),  # nothing to compare
        (["plane", "car", "bird"], ["airplane", "car", "bird"], None),  # in place, but for a spelling
        (["crane", "x", "crane"], ["crane", "x", "crane"], None),
        (["cardigan", "Cardigan", "dog"], ["Cardigan", "Dog", "cardigan"], [2, 0, 1]),
    ],
)
def test_classes_are_numbered_by_name(theirs: list[str], own: list[str], numbers: list[int] | None) -> None:
    assert renumbering(theirs, own) == numbers


@pytest.mark.parametrize(
    ("theirs", "own", "told"),
    [
        (["bird", "car", "plane"], ["airplane", "car", "bird"], "not among airplane, car, bird: plane"),
        (["x", "crane"], ["crane", "x", "crane"], "more than one class is called crane"),
    ],
)
def test_names_that_say_too_little_are_refused(theirs: list[str], own: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        renumbering(theirs, own)


def test_relabelled_images_are_another_data_set_for_a_bank(make: Callable[..., Path]) -> None:
    base = open_source(make("set", ("blue", "green", "red"), each=2))
    same = aligned(base, COLOURS)
    assert isinstance(same, Relabelled)
    assert same.classes == [*COLOURS]
    assert same.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert (same.name(3), same.read(3), len(same)) == (base.name(3), base.read(3), 6)
    assert len({base.identity, same.identity, aligned(base, COLOURS[::-1]).identity}) == 2  # blue, green, red: as it is
    assert same.stamp != base.stamp
    unknown = Relabelled(base, [2, 1, 0], None)
    base.labels[0] = -1
    assert Relabelled(base, unknown.numbers, None).labels.tolist() == [-1, 2, 1, 1, 0, 0]


def test_names_on_both_sides_put_the_labels_in_order(make: Callable[..., Path], caplog) -> None:
    with caplog.at_level(logging.INFO, "nescio"):
        results = run(colours(["red", "green", "blue"]), make, ("Blue", "green", "_red"))
    assert results.rows[0].id_accuracy == 1
    assert results.manifest["accuracy"]["train"]["share"] == 1  # the prototypes' labels, too
    assert results.manifest["warnings"] == []
    assert "the labels of the id images are matched by name to the classes of the model" in caplog.text
    sorted_network = colours()  # blue, green, red, as folders are sorted
    sorted_network.rewrite_head(Head(torch.eye(3)[[2, 1, 0]], torch.zeros(3)))
    expected = run(sorted_network, lambda name, *a, **more: make(f"other-{name}", *a, **more), ("blue", "green", "red"))
    assert results.rows[1].auroc == pytest.approx(expected.rows[1].auroc)


def test_a_few_of_the_classes_are_found_by_name(make: Callable[..., Path]) -> None:
    train, ids = make("train", seed=1), make("id", ("blue", "red"), seed=2)
    for classifier in (colours(["red", "green", "blue"]), colours(list(COLOURS))):
        results = bench(
            Session(classifier, **OPTIONS), id=ids, train=train, ood={"far": make(f"far{id(classifier)}", seed=3)}
        )
        assert results.rows[0].id_accuracy == 1


def test_labels_in_another_order_are_refused_with_the_way_out(make: Callable[..., Path]) -> None:
    with pytest.raises(
        InputError,
        match=r"id images are in a different order.*--classes FILE.*order red, green, blue; if the weights are random",
    ) as e:
        run(colours(), make)  # folders are sorted: blue, green, red
    assert "right for 33.3% of them, and would be for 100.0% with 2 classes renumbered" in str(e.value)


def test_every_command_refuses_another_order(make: Callable[..., Path]) -> None:
    train, held = make("train", seed=1), make("held", seed=2)
    for call in (
        lambda: fit(Session(colours(), **OPTIONS), "energy", calibrate=held),
        lambda: fit(Session(colours(), **OPTIONS), "ls+energy", calibrate=held, train=train),
        lambda: tune(Session(colours(), **OPTIONS), "energy", val=open_source(held)),
    ):
        with pytest.raises(InputError, match="are in a different order from the classes of the model"):
            call()
    fitted = fit(Session(colours(["red", "green", "blue"]), **OPTIONS), "ls+energy", calibrate=held, train=train)
    assert fitted.about["accuracy"]["share"] == 1


def test_sets_of_other_classes_are_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    train, ids = make("train", seed=1), make("id", seed=2)
    (ids / "red").rename(ids / "crimson")
    with pytest.raises(InputError, match=r"id images and the train images disagree.*not among blue, green, red: crims"):
        bench(Session(colours(), **OPTIONS), id=ids, train=train, ood={"far": train}, detectors=["msp"])
    for old, new in (("crimson", "n1"), ("green", "n2"), ("blue", "n3")):
        (ids / old).rename(ids / new)
    for classes in (None, ["x", "y", "z"]):
        with pytest.raises(InputError, match=r"id images and the train images disagree about the classes \(blue, gre"):
            bench(Session(colours(classes), **OPTIONS), id=ids, train=train, ood={"far": train}, detectors=["msp"])


def labelled(n: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, n)


def test_moved_classes_are_those_of_the_permutation() -> None:
    y, rng = labelled(3000, 10), np.random.default_rng(1)
    order = np.array([8, 1, 2, 3, 4, 5, 6, 7, 9, 0])
    pred = np.where(rng.random(3000) < 0.8, order[y], rng.integers(0, 10, 3000))
    assert moved_classes(y, pred) == {0: 8, 8: 9, 9: 0}
    y = labelled(20_000, 1000)  # all of ImageNet's, of a network that is right for six in ten
    order = rng.permutation(1000)
    pred = np.where(rng.random(len(y)) < 0.6, order[y], rng.integers(0, 1000, len(y)))
    moved = moved_classes(y, pred)
    assert len(moved) > 500
    assert all(order[label] == number for label, number in moved.items())
    few = labelled(2000, 10)  # folders of ten classes of a thousand
    assert moved_classes(few, few * 50 + 7) == {c: c * 50 + 7 for c in range(10)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_no_class_has_moved_where_a_network_is_right_or_guesses(classes: int, seed: int) -> None:
    y, rng = labelled(2000, classes, seed), np.random.default_rng(seed)
    guesses = rng.integers(0, classes, len(y))
    for right in (0, 0.1, 0.5, 0.95):
        assert moved_classes(y, np.where(rng.random(len(y)) < right, y, guesses)) == {}
    assert moved_classes(y, np.zeros_like(y)) == {}
    assert moved_classes(y, np.minimum(y + 1, classes - 1)) == {} or classes > 2  # one class takes another's place
    assert moved_classes(y[:6], 1 - y[:6] % 2) == {}  # too few to tell


def told_of(y: np.ndarray, pred: np.ndarray, classifier: Classifier) -> Accuracy | None:
    bank = Bank.__new__(Bank)
    bank.__dict__ |= {"labels": y, "pred": pred}
    return measure(classifier, bank, "id")


def test_accuracy_is_held_against_guessing(caplog) -> None:
    classifier, rng = colours(), np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [900, 50, 50])
    noisy = np.where(rng.random(1000) < 0.9, y, rng.integers(0, 3, 1000))
    for pred, near, share in (
        (y, False, 1.0),
        (noisy, False, (noisy == y).mean()),
        (np.zeros_like(y), True, 0.9),  # always the same: the share alone would not show it
        (rng.integers(0, 3, 1000), True, None),
    ):
        found = told_of(y, pred, classifier)
        assert found is not None
        assert bool(found.warning) == near == ("about as often as guessing" in found.warning)
        assert share is None or found.share == share
        assert 0.3 < found.guessing < 0.36
    assert told_of(np.full(50, 1), np.full(50, 1), classifier).warning == ""  # one class alone, and right
    assert told_of(y[:0], y[:0], classifier) is None
    few = np.arange(FEWEST - 1) % 3
    assert told_of(few, np.zeros_like(few), classifier).warning == ""
    assert caplog.text.count("about as often as guessing") == 2


def test_accuracy_is_held_against_what_is_on_record() -> None:
    classifier = colours()
    y = np.arange(600) % 3
    pred = np.where(np.arange(600) < 450, y, (y + 1) % 3)  # 75 %
    assert told_of(y, pred, classifier).warning == ""
    classifier.recorded = (0.8, "its training recorded")
    assert told_of(y, pred, classifier).warning == ""
    classifier.recorded = (0.95, "its training recorded")
    warning = told_of(y, pred, classifier).warning
    assert "right for 75.0% of 600 id images, far below the 95.0% that its training recorded" in warning
    assert architecture_of("torchvision:resnet18").accuracy[0] == pytest.approx(0.69758)


def test_a_network_that_knows_nothing_says_so_wherever_it_is_used(
    make: Callable[..., Path], tmp_path: Path, caplog
) -> None:
    blank, told = colours(knows=False), "right for 33.3% of the id images, about as often as guessing (33.3%)"
    results = run(blank, make)
    assert told in results.manifest["warnings"][0]
    assert told in caplog.text
    deployed = fit(Session(blank, **OPTIONS), "energy", calibrate=tmp_path / "id")
    deployed.save(tmp_path / "blank.nescio")
    assert describe(tmp_path / "blank.nescio")["accuracy"]["share"] == pytest.approx(1 / 3)
    shown = " ".join(CliRunner().invoke(main, ["show", str(tmp_path / "blank.nescio")]).output.split())
    assert "accuracy right for 33.33% of 60 calibration images" in shown
    assert "WARNING the classifier is right for 33.3% of the calibration images, about as often as guessing" in shown
    assert "at most 5 %" in shown or "5 %" in shown  # the promise holds, and is told
    choice = tune(Session(blank, **OPTIONS), "energy", val=open_source(tmp_path / "id"), proxy="noise")
    assert choice.accuracy.images == 60
    assert "as often as guessing" in choice.accuracy.warning


def test_a_good_networks_accuracy_is_shown(make: Callable[..., Path], tmp_path: Path) -> None:
    held, flat = make("held", each=20), tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(held.rglob("*.png"))):
        path.rename(flat / f"{i}.png")
    good = colours(["red", "green", "blue"])
    fit(Session(good, **OPTIONS), "energy", calibrate=flat).save(tmp_path / "unlabelled.nescio")
    assert (
        "unknown: no labelled images" in CliRunner().invoke(main, ["show", str(tmp_path / "unlabelled.nescio")]).output
    )
    train = make("train", seed=1)
    deployed = fit(Session(good, **OPTIONS), "ls+energy", calibrate=flat, train=train)
    assert deployed.about["accuracy"] == {
        "title": "training", "images": 60, "share": 1.0, "guessing": pytest.approx(1 / 3), "warning": ""
    }  # fmt: skip


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(
        "from conftest import TinyNet as random, tiny_net as seeded\nfrom torch import nn\n"
        "def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))\n"
        "made = random()\ndef brings(): return made\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_random_weights_of_a_factory_are_refused(factories: Path) -> None:
    options = {"transform": "crop=8", "device": "cpu"}
    for name in ("nets:random", "nets:lazy", TinyNet):
        with pytest.raises(InputError, match=r"different weights each time.*--weights FILE.*--untrained"):
            load_classifier(name, **options)
    for name in ("nets:seeded", "nets:brings", tiny_net):  # the same each time: their own
        assert not load_classifier(name, **options).untrained
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_classifier("nets:brings", **options)
    assert torch.equal(torch.rand(3), expected)
    assert load_classifier("nets:random", untrained=True, **options).untrained
    assert load_classifier("resnet18-cifar", untrained=True).head.n_classes == 10
    assert load_classifier("timm:test_resnet", untrained=True, classes=5).classes is None
    with pytest.raises(InputError, match="so it is not untrained"):
        load_classifier("nets:random", weights=tiny_net().state_dict(), untrained=True, **options)


def test_an_untrained_network_may_predict_any_order(make: Callable[..., Path], tmp_path: Path) -> None:
    random = colours()
    random.untrained = True
    results = run(random, make)
    assert results.rows[0].id_accuracy == pytest.approx(1 / 3)
    assert results.manifest["model"]["untrained"] is True
    fit(Session(random, **OPTIONS), "energy", calibrate=tmp_path / "id").save(tmp_path / "random.nescio")
    shown = CliRunner().invoke(main, ["show", str(tmp_path / "random.nescio")]).output
    assert "the weights are random: the network is untrained" in " ".join(shown.split())


def test_extract_matches_labels_by_name(make: Callable[..., Path]) -> None:
    source = open_source(make("set"))
    assert Session(colours(["red", "green", "blue"]), **OPTIONS).bank(source).accuracy == 1
    assert Session(colours(), **OPTIONS).bank(source).accuracy == pytest.approx(1 / 3)
    others = make("scenes", each=3)
    (others / "red").rename(others / "sea")
    assert len(Session(colours(["red", "green", "blue"]), **OPTIONS).bank(open_source(others))) == 9  # OOD: not refused
