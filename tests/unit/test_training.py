"""The loop: the same weights however it was interrupted, fed or split; and what it refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import nescio
from conftest import coloured
from nescio.core.errors import InputError
from nescio.core.options import parse_named
from nescio.data import Transform, open_source
from nescio.data.corruptions import shuffle_tiles
from nescio.evaluation import metrics
from nescio.models import load_classifier
from nescio.models.runs import Run
from nescio.training import Hardware, Interrupted, Recipe, recipes
from nescio.training.augment import AUGMENTS
from nescio.training.images import Images, held_side
from nescio.training.loop import Loop
from nescio.training.recipe import SCHEDULES
from nescio.training.validation import is_better
from small_runs import CPU, train
from tiny_networks import reopened

QUICK = Recipe(3, 24, "adamw:lr=3e-3", "cosine:warmup=0.5", "shift:by=0.125")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    return {"train": coloured(root, "train", 40), "val": coloured(root, "val", 10, seed=1)}


def run(out: Path, sets: dict[str, Any], **options: Any) -> nescio.models.runs.Run:
    settings = {"objective": "ssod:gamma=0.6", "recipe": QUICK, "size": 16, "hardware": CPU}
    return train(out, model="tiny_networks:batch_norm_net", **sets, **(settings | options))


def weights(out: Path, file: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return load_file(out / file)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert lines(a) == lines(b)


@pytest.fixture(scope="module")
def unbroken(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    run(out, sets)
    return out


def test_it_learns_and_leaves_a_classifier(unbroken: Path, sets: dict[str, Path]) -> None:
    logged = lines(unbroken)
    assert [line["epoch"] for line in logged] == [1, 2, 3]
    assert logged[-1]["train_loss"] < logged[0]["train_loss"]
    assert {"train_id_share", "train_ood_share", "val_accuracy", "val_shuffled_auroc", "lr"} <= logged[0].keys()
    classifier = reopened(unbroken)
    assert classifier.classes == ["class0", "class1", "class2"]
    assert classifier.transform.crop == 16
    results = nescio.bench(
        nescio.Session(classifier, workers=0),
        id=sets["val"],
        ood={"noise": sets["train"]},
        detectors=["ssod", "energy"],
    )
    chosen = json.loads((unbroken / "run.json").read_text())["selected"]["kept"]
    assert results.rows[0].id_accuracy == pytest.approx(chosen["val_accuracy"])
    best = max(line["val_accuracy"] for line in logged)
    assert chosen["val_accuracy"] >= best - (best * (1 - best) / 30) ** 0.5
    plain = load_classifier(
        "tiny_networks:batch_norm_net", weights=unbroken / "model.safetensors", transform="crop=16", device="cpu"
    )
    torch.testing.assert_close(plain.head.weight, classifier.head.weight)
    assert any((unbroken / "tensorboard").iterdir())


def test_the_score_is_the_ood_head_on_the_pooled_map(unbroken: Path, sets: dict[str, Path]) -> None:
    classifier = reopened(unbroken)
    source = open_source(sets["val"])
    bank = nescio.Session(classifier, workers=0, progress=False).bank(
        source, probes=nescio.Detector("ssod").needs.probes
    )
    features = next(bank.chunks())
    x = classifier.transform.normalise(
        torch.stack([classifier.transform.geometry(Image.open(source.name(i))) for i in range(len(source))])
    )
    with torch.no_grad():
        fmap = classifier.split.backbone(x)
        pooled = classifier.heads["ood"](fmap.mean((2, 3), keepdim=True)).flatten()
        everywhere = classifier.heads["ood"](fmap).flatten(1)
    scores = {pool: nescio.Detector(f"ssod:pool={pool}")(features) for pool in ("image", "mean", "top")}
    top = everywhere.sort(1, descending=True).values[:, :4].sigmoid().mean(1)
    for pool, expected in (("image", pooled.sigmoid()), ("mean", everywhere.sigmoid().mean(1)), ("top", top)):
        torch.testing.assert_close(scores[pool], expected.double(), rtol=1e-4, atol=1e-5)


def stop_at(step: int, error: BaseException | None = None):
    """Asks the loop to stop after a step, as a signal would; or dies there, with nothing stored on the way out."""

    def agree(loop: Loop, asked: list[int]) -> bool:
        if error is not None and loop.state.step == step:
            raise error
        return loop.state.step == step

    return agree


@pytest.mark.parametrize("step", [3, 5, 7])
def test_an_interrupted_run_resumes_to_the_same_bits(
    step: int, sets: dict[str, Path], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_agree", stop_at(step))
        with pytest.raises(Interrupted):
            run(tmp_path / "run", sets)
    assert len(lines(tmp_path / "run")) == step // 5
    run(tmp_path / "run", sets, resume=True)
    assert_same(tmp_path / "run", unbroken)
    assert torch.equal(
        weights(unbroken, "model.safetensors")["fc.weight"], weights(tmp_path / "run", "model.safetensors")["fc.weight"]
    )


def test_a_run_killed_between_checkpoints_goes_back_to_the_last(
    sets: dict[str, Path], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_agree", stop_at(8, ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "run", sets)
    run(tmp_path / "run", sets, resume=True)
    assert_same(tmp_path / "run", unbroken)


def test_seconds_are_those_of_all_sittings(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def stop_after(step: int):
        def agree(loop: Loop, asked: list[int]) -> bool:
            nonlocal now
            now += 10  # each step takes ten seconds
            return loop.state.step == step

        return agree

    monkeypatch.setattr("nescio.training.loop.monotonic", lambda: now)
    monkeypatch.setattr(Loop, "_agree", stop_after(7))
    with pytest.raises(Interrupted):
        run(tmp_path / "run", sets)
    assert Run.read(tmp_path / "run").made_with["seconds"] == 70
    now += 5000  # nobody trains
    monkeypatch.setattr(Loop, "_agree", stop_after(99))
    run(tmp_path / "run", sets, resume=True)
    steps = lines(tmp_path / "run")[-1]["step"]
    assert steps > 7
    assert Run.read(tmp_path / "run").made_with["seconds"] == 10 * steps


def test_signals_are_put_back(sets: dict[str, Path], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path / "run", sets, recipe=Recipe.named("ssod", epochs=1, batch_size=60))
    assert signal.getsignal(signal.SIGTERM) is before


def test_streaming_is_the_same_as_holding(sets: dict[str, Path], unbroken: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", sets, hardware=Hardware(device="cpu", workers=0, hold=False))
    assert_same(tmp_path / "run", unbroken)


def test_more_epochs_may_follow(sets: dict[str, Path], tmp_path: Path) -> None:
    steady = Recipe(1, 24, "sgd:lr=0.01", "constant", "none")
    run(tmp_path / "a", sets, recipe=steady)
    longer = Recipe(2, 24, "sgd:lr=0.01", "constant", "none")
    run(tmp_path / "a", sets, recipe=longer, resume=True)
    run(tmp_path / "b", sets, recipe=longer)
    assert_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("objective", ["ce", "ssod:gamma=0.6"])
def test_accumulated_parts_are_one_batch(objective: str, sets: dict[str, Path], tmp_path: Path) -> None:
    """For cross entropy exactly; of SSOD each part balances its own patches."""
    made = {}
    for parts in (1, 3):
        recipe = Recipe(2, 24, "sgd:lr=0.05", "constant", "shift", accumulate=parts)
        options = {"objective": objective, "recipe": recipe, "size": 16, "hardware": CPU}
        train(tmp_path / f"{parts}", model="tiny_networks:group_net", **sets, **options)
        made[parts] = weights(tmp_path / f"{parts}")["model.features.0.weight"]
    tolerance = 1e-6 if objective == "ce" else 5e-2
    torch.testing.assert_close(made[3], made[1], rtol=tolerance, atol=tolerance)


def test_averaged_weights_are_those_written_out(sets: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    steps: list[torch.Tensor] = []

    def agree(loop: Loop, asked: list[int]) -> bool:
        steps.append(loop.state.network.fc.weight.detach().clone())
        return False

    monkeypatch.setattr(Loop, "_agree", agree)
    start: list[torch.Tensor] = []
    whole = Loop.run_epochs

    def first(loop: Loop, **options: bool) -> None:
        start.append(loop.state.network.fc.weight.detach().clone())
        whole(loop, **options)

    monkeypatch.setattr(Loop, "run_epochs", first)
    run(tmp_path / "run", sets, recipe=Recipe(1, 24, "sgd:lr=0.1", "constant", "none", ema=0.9))
    average = start[0]
    for n, w in enumerate(steps, start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * w
    torch.testing.assert_close(weights(tmp_path / "run", "model.safetensors")["fc.weight"], average)
    torch.testing.assert_close(weights(tmp_path / "run")["model.fc.weight"], steps[-1])


def test_weights_to_start_from(sets: dict[str, Path], unbroken: Path, tmp_path: Path) -> None:
    """Everything but a last layer of another size comes from the file."""
    state = {k: t for k, t in weights(unbroken, "model.safetensors").items() if not k.startswith("nescio.")}
    save_file(state, tmp_path / "w.safetensors")
    network = nescio.models.load.new_network(
        "tiny_networks:batch_norm_net", 5, init=str(tmp_path / "w.safetensors"), size=16
    ).network
    assert network.fc.weight.shape == (5, 16)
    torch.testing.assert_close(network.features[0].weight.detach(), state["features.0.weight"])


def test_a_loss_that_is_not_finite_stops_at_the_batch(sets: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    from nescio.training.trainee import Trainee

    whole = Trainee.forward

    def broken(trainee, x, labels, epoch):
        loss, watched = whole(trainee, x, labels, epoch)
        return (loss, watched) if epoch < 1.6 else (loss * torch.nan, {**watched, "loss": loss * torch.nan})

    monkeypatch.setattr(Trainee, "forward", broken)
    with pytest.raises(InputError, match="not finite \\(nan\\) at batch 4 of epoch 2"):
        run(tmp_path / "run", sets)
    assert all(t.isfinite().all() for t in weights(tmp_path / "run").values())
    assert len(lines(tmp_path / "run")) == 1


def test_a_full_disk_keeps_the_last_checkpoint(sets: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    from nescio.core import artifact

    run(tmp_path / "run", sets, recipe=Recipe(1, 24, "sgd:lr=0.1", "constant", "none"))
    before = (tmp_path / "run/last.safetensors").read_bytes()

    def full(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "save_file", full)
    with pytest.raises(InputError, match=r"cannot be written.*No space left.*--resume"):
        run(tmp_path / "run", sets, recipe=Recipe(2, 24, "sgd:lr=0.1", "constant", "none"), resume=True)
    assert (tmp_path / "run/last.safetensors").read_bytes() == before
    assert not list((tmp_path / "run").glob(".*partial"))


def parquet(path: Path, labels: list[Any], names: list[str] | None = None) -> Path:
    rows = [{"bytes": (b"" if i % 7 == 3 else _png(i)), "path": f"{i}"} for i in range(len(labels))]
    table = pa.table({"image": rows, "label": labels})
    if names:
        feature = {"label": {"_type": "ClassLabel", "names": names}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    pq.write_table(table, path)
    return path


def _png(i: int) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (i * 40 % 255, 30, 200 - i)).save(buffer, "PNG")
    return buffer.getvalue()


def refused(tmp_path: Path, train_set: Path | str, val_set: Path | str, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "refused", {"train": train_set, "val": val_set}, **options)
    assert not (tmp_path / "refused/run.json").exists()


def test_labels_that_cannot_be_used(tmp_path: Path, sets: dict[str, Path], caplog) -> None:
    gap = parquet(tmp_path / "gap.parquet", [0, 2] * 30, ["cat", "dog", "emu"])
    refused(tmp_path, gap, sets["val"], "the training set has no images of class dog")
    refused(
        tmp_path, parquet(tmp_path / "one.parquet", [0] * 30), sets["val"], "all training images have the same class"
    )
    with caplog.at_level("WARNING", "nescio"):
        words = parquet(tmp_path / "words.parquet", ["cat", "dog"] * 20)
        refused(tmp_path, words, sets["val"], "40 of 40 training images have no class number")
    assert "column 'label' has type string" in caplog.text
    refused(tmp_path, parquet(tmp_path / "f.parquet", [0.5, 1.0] * 20), sets["val"], "have no class number")
    other = coloured(tmp_path, "other", 3, classes=2)
    refused(tmp_path, sets["train"], other, "disagree about the classes \\(class2\\)")
    refused(tmp_path, other, other, "6 training images do not fill a batch of 24")
    bad = parquet(tmp_path / "bad.parquet", [0, 1] * 30)
    for hold in (True, False):
        hardware = Hardware(device="cpu", workers=0, hold=hold, max_bad=0.05)
        with pytest.raises(InputError, match=r"or more of 60 \w+ images cannot be read, and at most the share 0.05"):
            run(tmp_path / f"bad{hold}", {"train": bad, "val": bad}, hardware=hardware, objective="ce")


def test_a_few_bad_images_are_left_out(tmp_path: Path, sets: dict[str, Path]) -> None:
    bad = parquet(tmp_path / "bad.parquet", [0, 1, 2] * 20)
    for hold in (True, False):
        hardware = Hardware(device="cpu", workers=0, hold=hold, max_bad=0.2)
        run(tmp_path / f"{hold}", {"train": bad, "val": sets["val"]}, hardware=hardware, objective="ce")
        assert np.isfinite(lines(tmp_path / f"{hold}")[-1]["train_loss"])


def test_another_run_is_not_overwritten(unbroken: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    before = (unbroken / "run.json").read_bytes()
    for message, options in (
        ("has a run already; continue it with .*--resume", {}),
        ("a different objective \\(objective: ssod:gamma=0.6, now ce\\)", {"objective": "ce", "resume": True}),
        ("a different transform", {"size": 8, "resume": True}),
        ("a different seed", {"seed": 3, "resume": True}),
        ("a different watch", {"watch": {"other": sets["val"]}, "resume": True}),
        ("a different .*classes", {"train": coloured(tmp_path, "four", 10, classes=4), "resume": True}),
    ):
        given = {"train": sets["train"], "val": sets["val"]} | {k: v for k, v in options.items() if k == "train"}
        given["val"] = given["train"] if "train" in options else given["val"]
        with pytest.raises(InputError, match=message):
            run(unbroken, given, **{k: v for k, v in options.items() if k != "train"})
    assert (unbroken / "run.json").read_bytes() == before
    with pytest.raises(InputError, match="has no run to resume"):
        run(sets["train"], sets, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: it is a file; give a folder"):
        run(tmp_path / "file", sets, resume=True)


def test_a_checkpoint_of_another_network_is_refused(unbroken: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(unbroken, tmp_path / "run")
    stored = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(stored | {"model": "timm:resnet10t"}))
    with pytest.raises(InputError, match=r"do not match its hash.*delete its entry 'hash'"):
        load_classifier(str(tmp_path / "run"))
    del stored["hash"]
    (tmp_path / "run/run.json").write_text(json.dumps(stored | {"model": "timm:resnet10t"}))
    with pytest.raises(InputError, match="does not fit model 'timm:resnet10t'"):
        load_classifier(str(tmp_path / "run"), device="cpu")
    (tmp_path / "run/run.json").write_text(json.dumps(stored | {"format": "nescio-run/9"}))
    with pytest.raises(InputError, match="a later version of nescio"):
        load_classifier(str(tmp_path / "run"), device="cpu")
    (tmp_path / "run/run.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_classifier(str(tmp_path / "run"), device="cpu")
    (tmp_path / "run/run.json").write_text(json.dumps(stored))
    (tmp_path / "run/last.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        run(tmp_path / "run", sets, resume=True, recipe=Recipe(**{**QUICK.settings(), "epochs": 4}))


def test_a_stale_checkpoint_is_not_taken_for_the_runs_own(
    unbroken: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    with pytest.raises(InputError, match="has no run to resume"):
        run(tmp_path / "run", sets, resume=True, seed=7)
    stored = json.loads((unbroken / "run.json").read_text())
    stored["settings"]["seed"] = 7
    del stored["hash"]
    (tmp_path / "run/run.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="checkpoint of another run"):
        run(tmp_path / "run", sets, resume=True, seed=7)


@pytest.mark.parametrize("killed_at", ["model", "last", "run", "metrics"])
def test_files_agree_wherever_it_was_killed(
    killed_at: str, sets: dict[str, Path], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies just before one of the four files of the second epoch is in place."""
    from nescio.core import files

    whole, seen = files.whole, []

    def dying(path: Path, *way_out: str):
        if path.name.startswith(killed_at):
            seen.append(path)
            if len(seen) == {"model": 2, "last": 2, "run": 3, "metrics": 3}[killed_at]:
                raise ZeroDivisionError
        return whole(path, *way_out)

    with monkeypatch.context() as patch:
        patch.setattr(files, "whole", dying)
        patch.setattr("nescio.core.artifact.whole", dying)
        patch.setattr("nescio.training.state.whole", dying)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "run", sets)
    run(tmp_path / "run", sets, resume=True)
    assert_same(tmp_path / "run", unbroken)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    mine, whole_run = (json.loads((p / "run.json").read_text()) for p in (tmp_path / "run", unbroken))
    for told in (mine, whole_run):
        assert told["made_with"].pop("seconds") > 0  # measured, so never twice the same
        del told["hash"]
    assert mine == whole_run


def test_a_factory_with_another_number_of_classes(sets: dict[str, Path], tmp_path: Path) -> None:
    four = coloured(tmp_path, "four", 12, classes=4)
    run(tmp_path / "run", {"train": four, "val": four}, recipe=Recipe(1, 24, "sgd:lr=0.1", "constant", "none"))
    classifier = reopened(tmp_path / "run")
    assert classifier.head.n_classes == 4
    again = reopened(tmp_path / "run", transform="interpolation=bicubic").transform
    assert (again.crop, again.interpolation) == (16, "bicubic"), "the run's transform, changed in one part"
    recipe = Recipe(1, 24, "sgd:lr=1e-9", "constant", "none")
    run(tmp_path / "next", sets, init=str(tmp_path / "run"), recipe=recipe)
    head = reopened(tmp_path / "next").heads["ood"]
    torch.testing.assert_close(head.weight, classifier.heads["ood"].weight, rtol=1e-4, atol=1e-5)


class Tied(torch.nn.Module):
    """Two names of one layer, and a layer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first
        self.idle = torch.nn.Linear(5, 5)
        self.fc = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(x).relu()).relu().mean((2, 3)))


def test_tied_and_idle_tensors(sets: dict[str, Path], tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "tied.py").write_text("from test_training import Tied as make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = Recipe(2, 24, "sgd:lr=0.1", "constant", "none", ema=0.5)
    with caplog.at_level("WARNING", "nescio"):
        options = {"objective": "ce", "recipe": recipe, "size": 16, "hardware": CPU}
        train(tmp_path / "run", model="tied:make", **sets, **options)
    assert "2 tensors do not affect the loss" in caplog.text
    kept, last = weights(tmp_path / "run", "model.safetensors"), weights(tmp_path / "run")
    assert torch.equal(kept["first.weight"], kept["second.weight"])
    assert torch.equal(last["model.first.weight"], last["model.second.weight"])
    assert not torch.equal(kept["first.weight"], last["model.first.weight"]), "the average is kept"


def test_a_network_that_cannot_be_trained_is_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="timm:resnet10t cannot be trained on 1 images at a time by 'ce': Expected more than 1 value"
    ):
        train(
            tmp_path / "run", model="timm:resnet10t", **sets, objective="ce", size=32, hardware=CPU,
            recipe=Recipe(1, 24, "sgd:lr=0.1", "constant", "none", accumulate=24),
        )  # fmt: skip


def test_weights_that_are_not_finite_are_not_judged(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = Recipe(2, 120, "sgd:lr=1e38", "constant", "none", clip=1.0)
    with pytest.raises(InputError, match="no longer finite"):
        run(tmp_path / "run", sets, recipe=recipe)


def test_watched_sets_select_nothing(unbroken: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    made = run(tmp_path / "run", sets, watch={"other": sets["train"]})
    assert torch.equal(
        weights(tmp_path / "run", "model.safetensors")["fc.weight"], weights(unbroken, "model.safetensors")["fc.weight"]
    )
    assert "looks at the test" in made.selected["papers_choice"]["by"]
    best = min(lines(tmp_path / "run"), key=lambda line: line["ood/other/fpr95"])
    assert made.selected["papers_choice"]["epoch"] == best["epoch"]
    classifier = load_classifier(
        "tiny_networks:batch_norm_net",
        weights=tmp_path / "run/papers-choice.safetensors",
        transform="crop=16",
        device="cpu",
    )
    results = nescio.bench(
        nescio.Session(classifier, workers=0), id=sets["val"], ood={"other": sets["train"]}, detectors=["ssod"]
    )
    assert results.rows[0].fpr95 == pytest.approx(best["ood/other/fpr95"])


def test_the_ssod_stage_needs_its_head(sets: dict[str, Path]) -> None:
    classifier = nescio.Classifier(_untrained(), Transform(crop=16))
    for spec in ("ssod", "mean(ssod,energy)"):
        with pytest.raises(InputError, match="not trained with the head 'ood'"):
            nescio.bench(classifier, id=sets["val"], ood={"o": sets["train"]}, detectors=[spec])


def _untrained() -> torch.nn.Module:
    from tiny_networks import group_net

    return group_net()


# the parts


def test_a_shift_is_a_padded_crop() -> None:
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    draws = torch.rand(40, 5)
    shown = parse_named("shift:by=0.125", AUGMENTS)(images, draws, Transform(crop=16))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for i in range(40):
        dx, dy = (int(v * 5) for v in draws[i, :2])
        expected = padded[i, :, dy : dy + 16, dx : dx + 16].float()
        expected = expected.flip(2) if draws[i, 4] < 0.5 else expected
        torch.testing.assert_close(shown[i], expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(("resize", "crop"), [(16, 12), (37, 32), (73, 64)])
def test_no_augmentation_is_the_test_transform(resize: int, crop: int) -> None:
    transform = Transform(crop=crop, resize=resize)
    images = torch.randint(0, 256, (3, 3, resize, resize), dtype=torch.uint8)
    shown = parse_named("none", AUGMENTS)(images, torch.rand(3, 5), transform)
    expected = torch.stack([transform.geometry(Image.fromarray(im.permute(1, 2, 0).numpy())) for im in images])
    torch.testing.assert_close(shown, expected.float(), rtol=0, atol=0.02)


@pytest.mark.parametrize("spec", ["none", "crop:least=0.3"])
def test_enlarging_darkens_no_edge(spec: str) -> None:
    white = torch.full((50, 3, 16, 16), 255, dtype=torch.uint8)
    shown = parse_named(spec, AUGMENTS)(white, torch.rand(50, 5), Transform(crop=40))
    assert shown.min() > 254.9
    shifted = parse_named("shift:by=0.2", AUGMENTS)(white, torch.rand(50, 5), Transform(crop=40))
    assert set(shifted.round().unique().tolist()) == {0, 255}, "outside is black, and nothing between"


def test_random_windows_stay_inside_and_depend_on_their_own_draws() -> None:
    crop = parse_named("crop:least=0.2", AUGMENTS)
    draws = torch.rand(500, 5)
    size, centre = crop.window(draws, Transform(crop=8))
    assert (centre.abs() + size <= 1 + 1e-6).all()
    area = size.prod(1)
    assert 0.2 - 1e-6 <= area.min() < 0.25
    assert area.max() > 0.9
    images = torch.randint(0, 256, (500, 3, 8, 8), dtype=torch.uint8)
    some = torch.randperm(500)[:7]
    whole = crop(images, draws, Transform(crop=8))
    torch.testing.assert_close(crop(images[some], draws[some], Transform(crop=8)), whole[some])


def test_accuracy_comes_first_in_the_choice() -> None:
    """One standard error of 0.8 on 400 images is 0.02."""

    def epoch(accuracy: float, auroc: float) -> dict[str, float]:
        return {"val_accuracy": accuracy, "val_shuffled_auroc": auroc}

    assert is_better(epoch(0.3, 0.1), None, 0.3, 400)
    assert is_better(epoch(0.8, 0.1), epoch(0.6, 0.9), 0.8, 400), "the kept one is no longer as accurate"
    assert is_better(epoch(0.785, 0.6), epoch(0.8, 0.5), 0.8, 400)
    assert not is_better(epoch(0.805, 0.4), epoch(0.8, 0.5), 0.805, 400)
    assert not is_better(epoch(0.7, 0.99), epoch(0.8, 0.5), 0.8, 400), "no AUROC makes up for accuracy"


def test_shuffled_tiles_are_the_same_tiles() -> None:
    images = torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    mixed = shuffle_tiles(images, torch.Generator().manual_seed(0))

    def tiles(x: torch.Tensor) -> set[tuple[int, ...]]:
        cut = x.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4)
        return {tuple(t.flatten().tolist()) for t in cut.reshape(16, -1)}

    for before, after in zip(images, mixed, strict=True):
        assert tiles(before) == tiles(after)
        assert not torch.equal(before, after)
    assert shuffle_tiles(torch.zeros(1, 3, 2, 2), torch.Generator()).shape == (1, 3, 2, 2)
    assert shuffle_tiles(torch.zeros(1, 3, 19, 19), torch.Generator()).shape == (1, 3, 19, 19)


@pytest.mark.parametrize(
    ("spec", "at", "share"),
    [
        ("step:every=30,factor=0.5", 29.9, 1.0),
        ("step:every=30,factor=0.5", 60.1, 0.25),
        ("milestones:at=50/75/90", 80, 0.01),
        ("cosine", 50, 0.5),
        ("cosine:warmup=10", 5, 0.5),
        ("cosine:warmup=10", 55, 0.5),
        ("constant:warmup=2", 1, 0.5),
        ("constant", 99, 1.0),
    ],
)
def test_schedules(spec: str, at: float, share: float) -> None:
    assert parse_named(spec, SCHEDULES).at(at, 100) == pytest.approx(share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; did you mean 'adamw'"),
        ({"schedule": "milestones"}, "needs the option 'at'; write milestones:at=value"),
        ({"schedule": "milestones:at=5-7"}, "not epochs; write at=50/75/90"),
        ({"augment": "crop:least=0"}, "least=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"ema": 1.0}, "ema=1"),
        ({"optimizer": "sgd:lr=-1"}, "lr=-1"),
    ],
)
def test_bad_recipes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.named("ssod", **change)


def test_published_recipes() -> None:
    assert {"ssod", "cifar", "cosine"} <= set(recipes())
    paper = Recipe.named("ssod")
    assert (paper.batch_size, paper.optimizer, paper.schedule) == (256, "adamw:lr=1e-4", "step:every=30,factor=0.5")
    with pytest.raises(InputError, match="unknown recipe 'sod'; did you mean 'ssod'"):
        Recipe.named("sod")


def test_small_images_are_held_at_their_own_size(sets: dict[str, Path]) -> None:
    source = open_source(sets["train"])
    assert held_side(source, Transform(crop=224, resize=256)) == 16
    assert held_side(source, Transform(crop=8)) == 8
    held = Images(source, Transform(crop=16), device=torch.device("cpu"), hardware=CPU)
    pixels, numbers = next(held.batches([[5, 2]]))
    assert pixels.shape == (2, 3, 16, 16)
    assert numbers.tolist() == [5, 2]


def test_validation_agrees_with_the_bench(unbroken: Path, sets: dict[str, Path]) -> None:
    """AUROC against shuffled images, computed again from the stored classifier."""
    classifier = reopened(unbroken)
    source = open_source(sets["val"])
    pixels = torch.stack([classifier.transform.geometry(Image.open(source.name(i))) for i in range(len(source))])
    mixed = shuffle_tiles(pixels, torch.Generator().manual_seed(0))
    detector = nescio.Detector("ssod")
    with torch.no_grad():
        own, other = (
            detector(classifier.probed(detector.needs.probes)(classifier.transform.normalise(p))).numpy()
            for p in (pixels, mixed)
        )
    chosen = json.loads((unbroken / "run.json").read_text())["selected"]["kept"]
    assert metrics.auroc(own, other) == pytest.approx(chosen["val_shuffled_auroc"])
