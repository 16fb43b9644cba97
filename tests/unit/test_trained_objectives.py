"""Objectives beside cross entropy and SSOD, trained: judged, resumed, stored and loaded; and their perturbation."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch.nn import functional

import nescio
from conftest import coloured
from nescio.cli import main
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.options import parse_named
from nescio.data import Transform
from nescio.methods.input.perturb import STEPS
from nescio.methods.objective import parse_objective
from nescio.models import Classifier, load_classifier
from nescio.run.passes import pass_of
from nescio.training import Interrupted, Recipe
from nescio.training.augment import AUGMENTS
from nescio.training.images import Images, Stream
from nescio.training.loop import Loop
from small_runs import CPU, train
from tiny_networks import batch_norm_net, reopened

QUICK = Recipe(2, 24, "adamw:lr=1e-2", "constant", "shift:by=0.125", ema=0.5)
TRAINED = (
    *("logitnorm", "godin", "godin:similarity=euclid", "mos:groups=random,k=2", "oe", "ssod:gamma=0.6,outliers=1"),
    *("vos:start=1,queue=20", "conf", "conf:outliers=1", "supcon", "cider", "csi", "bal"),
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    return {
        "train": coloured(root, "train", 24),
        "val": coloured(root, "val", 10, seed=1),
        "outliers": coloured(root, "outliers", 5, classes=6, seed=2),
    }


def run(out: Path, sets: dict[str, Any], objective: str, **options: Any) -> None:
    sets = {name: s for name, s in sets.items() if name != "outliers" or parse_objective(objective).needs.outliers}
    settings = {"recipe": QUICK, "size": 16, "hardware": CPU, "objective": objective}
    train(out, model="tiny_networks:batch_norm_net", **sets, **(settings | options))


@pytest.fixture(scope="module")
def folder_of(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def made(objective: str) -> Path:
        out = tmp_path_factory.mktemp("runs") / "run"
        run(out, sets, objective)
        return out

    return made


@pytest.mark.parametrize("objective", TRAINED)
def test_a_trained_classifier_is_judged_as_it_was_in_training(
    objective: str, folder_of: Callable[[str], Path], sets: dict[str, Path]
) -> None:
    out = folder_of(objective)
    kept = json.loads((out / "run.json").read_text())["selected"]["kept"]
    detector = parse_objective(objective).detector
    results = nescio.bench(
        nescio.Session(reopened(out), workers=0),
        id=sets["val"],
        ood={"other": sets["train"]},
        detectors=["energy", detector],
        train=sets["train"],
    )
    assert results.rows[0].id_accuracy == pytest.approx(kept["val_accuracy"])
    assert kept["val_accuracy"] > 0.5


@pytest.mark.parametrize("objective", TRAINED)
def test_an_interrupted_run_resumes_to_the_same_bits(
    objective: str, folder_of: Callable[[str], Path], sets: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_agree", lambda loop, _: loop.state.step == 2)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", sets, objective)
    run(tmp_path / "run", sets, objective, resume=True)
    whole, resumed = (load_file(p / "last.safetensors") for p in (folder_of(objective), tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_godins_file_of_weights_predicts_the_same_in_a_plain_network(
    folder_of: Callable[[str], Path], sets: dict[str, Path]
) -> None:
    out = folder_of("godin")
    classifier = reopened(out)
    plain = batch_norm_net().eval()
    plain.load_state_dict({k: t for k, t in load_file(out / "model.safetensors").items() if "nescio" not in k})
    x = torch.randn(20, 3, 16, 16)
    f = classifier(x)
    head = classifier.heads["godin"]
    assert not head.training, "its batch norm is at rest"
    quotients = head.numerators(f.h, f.head) / head.denominator(f.h)
    assert torch.equal(quotients.argmax(1), plain(x).argmax(1))
    assert torch.equal(f.pred, plain(x).argmax(1))
    torch.testing.assert_close(classifier.head.weight.norm(dim=1), torch.ones(3))
    detector = nescio.Detector
    cosines = functional.cosine_similarity(f.h[:, None], f.head.weight[None], dim=2)
    torch.testing.assert_close(detector("godin")(f).float(), cosines.amax(1))
    torch.testing.assert_close(detector("godin:read=g")(f).float(), head.denominator(f.h)[:, 0])


def test_a_head_is_taken_over_where_it_fits(
    folder_of: Callable[[str], Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    recipe = Recipe(1, 24, "sgd:lr=1e-9", "constant", "none")
    init = reopened(folder_of("godin")).heads["godin"].linear.weight
    for objective, same in (("godin", True), ("godin:similarity=inner", False)):
        run(tmp_path / objective, sets, objective, init=str(folder_of("godin")), recipe=recipe)
        made = reopened(tmp_path / objective).heads["godin"]
        assert torch.allclose(made.linear.weight, init, atol=1e-5) == same


# the images that they are given


def test_outliers_are_given_where_they_are_read(sets: dict[str, Path], tmp_path: Path) -> None:
    options = {"recipe": QUICK, "size": 16, "hardware": CPU, "model": "tiny_networks:batch_norm_net"}
    pair = {name: sets[name] for name in ("train", "val")}
    for objective, outliers, told in (
        ("oe", None, "'oe' learns from outliers; give outliers= \\(--outliers SET\\)"),
        (
            "ce",
            sets["outliers"],
            "'ce' does not use outliers; these do: conf:outliers=1, oe:outliers=1, ssod:outliers=1",
        ),
        ("ssod", sets["outliers"], "'ssod' does not use outliers; these do: .*ssod:outliers=1"),
        ("oe", sets["train"], "the outliers are the same images as the train images"),
    ):
        with pytest.raises(InputError, match=told):
            train(tmp_path / "run", **pair, objective=objective, outliers=outliers, **options)
    assert not (tmp_path / "run").exists()


def test_the_command_takes_outliers(sets: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [f"--{name}={folder}" for name, folder in sets.items()]
    options = ["--arch=tiny_networks:group_net", "--size=16", "--epochs=1", "--batch-size=24", "--workers=0"]
    done = CliRunner().invoke(main, ["-q", "train", *sources, *options, "--objective=oe:outliers=1", "--out=run"])
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "run/run.json").read_text())
    assert stored["settings"]["outliers"] == nescio.open_source(sets["outliers"]).identity
    assert (
        load_classifier("tiny_networks:group_net", weights="run", device="cpu").seen["outliers"]
        == stored["settings"]["outliers"]
    )


def test_outliers_that_are_tested_on_are_noticed(
    folder_of: Callable[[str], Path], sets: dict[str, Path], caplog
) -> None:
    classifier = reopened(folder_of("oe"))
    with caplog.at_level("WARNING", "nescio"):
        nescio.bench(
            nescio.Session(classifier, workers=0), id=sets["val"], ood={"far": sets["outliers"]}, detectors=["msp"]
        )
    assert "trained with the images of 'far' as outliers" in caplog.text


@pytest.mark.parametrize("views", [1, 2])
def test_a_stream_gives_the_same_parts_to_any_number_of_processes(sets: dict[str, Path], views: int) -> None:
    source, transform = nescio.open_source(sets["outliers"]), Transform(crop=16)
    images = Images(source, transform, device=torch.device("cpu"), hardware=CPU)
    augment = parse_named("shift", AUGMENTS)

    def batches(done: int, rank: int, world: int, parts: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        stream = Stream(images, torch.Generator().manual_seed(0), 5, 20, views)  # 100 of 30 images
        return list(stream.micro_batches(done, rank, world, parts, augment, transform))

    whole = batches(0, 0, 1, 1)
    assert [len(numbers) for _, numbers in whole] == [20] * 5
    assert torch.cat([n for _, n in whole])[:30].sort().values.tolist() == list(range(30)), (
        "each before one comes again"
    )
    for (x, numbers), (second, _) in zip(whole[2:], batches(2, 0, 1, 1), strict=True):
        assert torch.equal(x, second)
        assert len(x) == views * len(numbers)
    first, other = batches(0, 0, 2, 2), batches(0, 1, 2, 2)
    shown = [x[: len(n)] for x, n in (first[0], first[1], other[0], other[1])]
    mine = torch.cat([whole[0][0][:20][0::2], whole[0][0][:20][1::2]])
    assert torch.equal(torch.cat(shown), mine)
    if views == 2:
        assert not torch.equal(whole[0][0][:20], whole[0][0][20:]), "two views of the same images"


# the perturbation


def test_the_step_is_the_one_that_raises_the_score_most(classifier: Classifier) -> None:
    detector = Detector("perturbid+energy").fit(FeatureSet(head=classifier.head))
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="'perturbid' has no step yet"):
        pass_of(detector).run(classifier, x)
    detector.input_stage.choose(classifier, detector, [x[:5], x[5:]])
    means = {eps: Detector(f"perturb:eps={eps}+energy").fit(FeatureSet(head=classifier.head)) for eps in STEPS}
    means = {eps: d(pass_of(d).run(classifier, x)).mean().item() for eps, d in means.items()}
    assert detector.settings()["perturbid"]["step"] == pytest.approx(max(means, key=means.get))
    torch.testing.assert_close(detector(pass_of(detector).run(classifier, x)).mean().item(), max(means.values()))
    broken = torch.cat([x, torch.full_like(x[:1], torch.nan)])
    chosen = float(detector.input_stage.step)
    detector.input_stage.choose(classifier, detector, [broken])
    assert float(detector.input_stage.step) == chosen  # an image that is not finite has no say


def test_the_step_is_chosen_on_id_images_by_bench_and_fit(
    folder_of: Callable[[str], Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    classifier = reopened(folder_of("godin"))
    spec, ood = "perturbid+godin", {"other": sets["train"]}
    results = nescio.bench(
        nescio.Session(classifier, workers=0), id=sets["val"], ood=ood, detectors=[spec], train=sets["train"]
    )
    assert results.manifest["detectors"][spec]["settings"]["perturbid"]["step"] in [pytest.approx(s) for s in STEPS]
    with pytest.raises(InputError, match="training images"):
        nescio.bench(nescio.Session(classifier, workers=0), id=sets["val"], ood=ood, detectors=[spec])
    with pytest.raises(InputError, match="training images"):
        nescio.fit(nescio.Session(classifier, workers=0), spec, calibrate=sets["val"], accept=0.8)
    deployed = nescio.fit(
        nescio.Session(classifier, workers=0), spec, calibrate=sets["val"], train=sets["train"], accept=0.8
    )
    deployed.save(tmp_path / "d.nescio")
    step = nescio.load(
        tmp_path / "d.nescio", model="tiny_networks:batch_norm_net", device="cpu"
    ).detector.input_stage.step
    assert float(step) == float(deployed.detector.input_stage.step)
