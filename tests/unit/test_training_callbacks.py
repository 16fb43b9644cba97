"""Detectors measured while a network trains: by itself, in two processes, in each framework with its own logger."""

from __future__ import annotations

import csv
import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

import nescio
from nescio.integrations.watch import Watch
from tiny_networks import BatchNormNet

DETECTORS = ["msp", "fmls", "knn:k=3", "odin+msp"]


def images(seed: int, n: int, shift: float = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) + shift


def loader(seed: int, n: int, shift: float = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images(seed, n, shift), torch.arange(n) % 3), 16, **options)


def network() -> BatchNormNet:
    torch.manual_seed(0)
    net = BatchNormNet()
    net(images(9, 64))  # statistics
    return net


def sets() -> dict[str, Any]:
    ood = {"far": loader(1, 50, 1.0), "near": loader(2, 30, 0.3)}
    return {"id": loader(0, 60), "ood": ood, "train": loader(3, 120, shuffle=True)}


def test_the_numbers_are_those_of_a_table_of_the_same_features() -> None:
    net, given = network(), sets()
    values = Watch(detectors=DETECTORS, **given)(net)
    ordered = given | {"train": DataLoader(given["train"].dataset, 16)}
    results = nescio.bench(nescio.Session(net, engine="plain", size=(3, 16, 16)), detectors=DETECTORS, **ordered)
    named = dict(zip(DETECTORS, ("msp", "fmls", "knn_k_3", "odin_msp"), strict=True))
    assert len(values) == 3 * 4 * 2
    for spec, name in named.items():
        for ood in ("far", "near"):
            row = results.row(spec, ood)
            assert values[f"ood/{ood}/{name}/auroc"] == row.auroc
            assert values[f"ood/{ood}/{name}/fpr95"] == row.fpr95
        assert values[f"ood/average/{name}/auroc"] == pytest.approx(results.average(spec, "auroc"))


def test_training_goes_on_as_if_nothing_had_been_measured() -> None:
    net = network()
    net(images(0, 4)).sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    state = {name: t.clone() for name, t in net.state_dict().items()}
    net.drop.eval()  # not all of it is in training
    modes = [m.training for m in net.modules()]
    draws = []
    for measured in (False, True):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        if measured:
            with torch.inference_mode():  # as Lightning validates
                Watch(detectors=DETECTORS, **sets())(net)
        draws.append((float(torch.rand(1)), random.random(), np.random.rand()))  # noqa: NPY002, S311
    assert draws[0] == draws[1]
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_a_forward_that_a_framework_has_set_is_run_on_the_copy() -> None:
    """Lightning's redirection for DistributedDataParallel leaves the module's own bound method in the module."""
    net, watch = network(), Watch(**sets())
    expected = watch(net)
    net.forward = net.forward
    assert watch(net) == expected


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(TensorDataset(images(1, 50, 1.0)))


def one_of_two(rank: int, folder: Path, picture: Path) -> None:
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    net, given = network(), sets()
    for statistics in net.buffers():
        statistics.add_(rank)  # each process counts its own
    before = [b.clone() for b in net.buffers()]
    wrapped = nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)
    given["train"] = loader(3, 120, sampler=DistributedSampler(given["train"].dataset))
    given["ood"] |= {"stream": DataLoader(Stream(), 16), "few": loader(4, 5)}  # one process has no batch of these
    values = Watch(detectors=DETECTORS, **given)(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
    (folder / f"{rank}.json").write_text(json.dumps(values))

    class Broken(TensorDataset):
        def __getitem__(self, i: Any) -> Any:
            if i >= 16:  # a batch of process 1 alone
                raise OSError("disk full")
            return super().__getitem__(i)

    broken = DataLoader(Broken(images(0, 32)), 16)
    with pytest.raises(OSError if rank else nescio.InputError, match="disk full"):
        Watch(id=given["id"], ood={"far": broken})(net)
    named = {"id": str(picture), "ood": {"noise": "noise:gaussian:images=70,size=16"}}
    (folder / f"{rank}-named.json").write_text(json.dumps(Watch(transform=TRANSFORM, workers=0, **named)(net)))
    torch.distributed.destroy_process_group()


TRANSFORM = "crop=16,mean=0.5,std=0.5"


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
    torch.multiprocessing.spawn(one_of_two, (tmp_path, pictures), nprocs=2)
    given = sets()
    given["ood"] |= {"stream": DataLoader(Stream(), 16), "few": loader(4, 5)}
    alone = Watch(detectors=DETECTORS, **given)(network())
    named = {"id": str(pictures), "ood": {"noise": "noise:gaussian:images=70,size=16"}}
    alone_named = Watch(transform=TRANSFORM, workers=0, **named)(network())
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
        assert json.loads((tmp_path / f"{rank}-named.json").read_text()) == alone_named


def test_a_network_that_diverged_gets_nan_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    net, watch = network(), Watch(detectors=DETECTORS, **sets())
    with torch.no_grad():
        net.fc.weight[0, 0] = torch.nan
    values = watch(net)
    assert len(values) == 3 * 4 * 2
    assert all(np.isnan(v) for v in values.values())
    assert "no longer finite" in caplog.text
    assert values.keys() == watch(network()).keys()


def test_detectors_have_the_names_that_they_are_given_and_are_fitted_anew() -> None:
    given = sets()
    detector = nescio.Detector("knn:k=3")
    watch = Watch(detectors={"near neighbours": detector, "e": "energy"}, **given, network="inner")
    module = nn.ModuleDict({"inner": network(), "other": nn.Linear(2, 2)})
    first = watch(module)
    assert {name.split("/")[2] for name in first} == {"near_neighbours", "e"}
    with torch.no_grad():
        module["inner"].features[0].weight.mul_(torch.linspace(-1, 1, 8)[:, None, None, None])
        module["inner"].fc.weight.mul_(-1)
    assert watch(module) != first
    assert detector.fitted_to is None
    assert (
        Watch(detectors="knn:k=3", **given)(module["inner"])["ood/far/knn_k_3/auroc"]
        == (watch(module)["ood/far/near_neighbours/auroc"])
    )


def test_what_cannot_be_measured_is_refused_before_training() -> None:
    given, net = sets(), network()
    for changed, told in (
        ({"train": None, "detectors": ["knn"]}, "fitted on training images"),
        ({"detectors": ["nothing"]}, "nothing"),
        ({"detectors": ["knn:k=3", "knn k=3"]}, "knn k=3"),
        ({"detectors": {"a b": "msp", "a/b": "energy"}}, "two detectors are called 'a_b'"),
        ({"ood": {}}, "at least one OOD set"),
        ({"ood": given["id"]}, "by name"),
        ({"head": "features.0"}, "is a Conv2d"),
        ({"id": DataLoader(given["id"].dataset, 4, sampler=[1, 2])}, "draws its images"),
    ):
        with pytest.raises(nescio.InputError, match=told):
            Watch(**given | changed).check(net)
    Watch(**given).check(net)


@pytest.mark.parametrize(("library", "extra"), [("lightning", "lightning"), ("transformers", "trainer")])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, library: str, extra: str) -> None:
    module = f"nescio.integrations.{library}"
    for known in [m for m in sys.modules if m.partition(".")[0] == library or m == module]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(nescio.InputError, match=rf"nescio\[{extra}\]"):
        importlib.import_module(module).OODCallback(**sets())
    sys.modules.pop(module)  # the next one looks for the library again


def scalars(folder: Path) -> dict[str, list[Any]]:
    """What TensorBoard's files hold: events by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_the_metrics_and_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from nescio.integrations.lightning import OODCallback

    class Lit(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        validation_step = training_step

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.3)

    def fit(callbacks: list[Any], *val: Any) -> None:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        loggers = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path / "csv")]
        trainer = Trainer(max_epochs=3, logger=loggers, callbacks=callbacks, **quiet)
        trainer.fit(Lit(), loader(3, 120), *val)

    monitored = {"monitor": "ood/far/fmls/auroc", "mode": "max"}
    ood = OODCallback(detectors=["msp", "fmls", "odin+msp"], **sets())
    best = ModelCheckpoint(tmp_path / "best", filename="best", **monitored)
    fit([EarlyStopping(patience=9, **monitored), best, ood], loader(0, 60))
    logged = scalars(tmp_path / "lightning_logs" / "version_0")
    seen = {e.step: e.value for e in logged["ood/far/fmls/auroc"]}
    assert sorted(seen) == [8, 16, 24]
    assert seen[24] == pytest.approx(ood.values["ood/far/fmls/auroc"])
    kept = Lit()
    kept.load_state_dict(torch.load(best.best_model_path)["state_dict"])
    again = Watch(detectors=["fmls"], **sets())(kept)
    assert again["ood/far/fmls/auroc"] == pytest.approx(max(seen.values()))
    assert float(best.best_model_score) == pytest.approx(max(seen.values()))

    # steps, without validation: each measurement is logged, whenever the trainer logs its own
    fit([OODCallback(detectors="msp", every_n_steps=5, **sets() | {"train": None})])
    with (tmp_path / "csv" / "lightning_logs" / "version_1" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["ood/far/msp/auroc"]]
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    fit([last := OODCallback(**sets())])  # after each epoch
    assert "ood/far/energy/auroc" in last.values


class Pixels(Dataset[Any]):
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return {"pixel_values": self.x[i], "labels": i % 3}


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_trainer_logs_the_metrics_and_loads_the_best_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import EarlyStoppingCallback, ResNetConfig, ResNetForImageClassification, Trainer
    from transformers import TrainingArguments as Arguments

    from nescio.integrations.transformers import OODCallback

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config)
    train, val, far = (Pixels(images(*of)) for of in ((3, 48), (0, 60), (1, 50, 1.0)))
    given = {"id": DataLoader(val, 16), "ood": {"far": DataLoader(far, 16)}, "train": DataLoader(train, 16)}
    quiet = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 16}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "ood/far/fmls/auroc", "greater_is_better": True}
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    arguments = Arguments(
        str(tmp_path / "run"),
        num_train_epochs=3,
        learning_rate=0.02,
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="tensorboard",
        **best,
        **quiet,
    )
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=val, callbacks=[EarlyStoppingCallback(9)])
    ood = OODCallback(detectors=["fmls", "msp"], **given).attach(trainer)
    trainer.train()
    name = "eval_ood/far/fmls/auroc"
    seen = [line[name] for line in trainer.state.log_history if name in line]
    assert len(seen) == 3
    assert trainer.state.best_metric == max(seen)
    assert ood.watch(model)["ood/far/fmls/auroc"] == pytest.approx(max(seen))  # it was loaded
    logged = scalars(tmp_path / "board")
    assert [e.value for e in logged["eval/ood/far/fmls/auroc"]] == pytest.approx(seen)

    plain = Arguments(str(tmp_path / "none"), max_steps=4, save_strategy="no", report_to="none", **quiet)
    trainer = Trainer(model, plain, train_dataset=train)
    OODCallback(**given).attach(trainer)
    trainer.train()
    assert sum("eval_ood/far/energy/auroc" in line for line in trainer.state.log_history) == 2
    with pytest.raises(nescio.InputError, match="attach"):
        Trainer(model, plain, train_dataset=train, callbacks=[OODCallback(**given)]).train()


def test_ignite_finds_the_metrics_in_the_engines_state(tmp_path: Path) -> None:
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver
    from ignite.handlers.tensorboard_logger import OutputHandler, TensorboardLogger

    from nescio.integrations.ignite import OODHandler

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.3)

    def step(_: Engine, batch: Any) -> float:
        net.train()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer, name = Engine(step), "ood/far/fmls/auroc"
    ood = OODHandler(detectors=["fmls"], **sets())
    ood.attach(trainer, net)
    seen: list[float] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(e.state.metrics[name]))
    score = Checkpoint.get_default_score_fn(name)
    best = Checkpoint({"net": net}, DiskSaver(tmp_path), score_function=score, n_saved=1)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, best)
    with TensorboardLogger(log_dir=tmp_path / "board") as board:
        board.attach(trainer, OutputHandler("train", metric_names="all"), Events.EPOCH_COMPLETED)
        trainer.run(loader(3, 120), max_epochs=3)
    assert len(seen) == 3
    assert [e.value for e in scalars(tmp_path / "board")[f"train/{name}"]] == pytest.approx(seen)
    net.load_state_dict(torch.load(tmp_path / str(best.last_checkpoint)))
    assert ood.watch(net)[name] == max(seen)
