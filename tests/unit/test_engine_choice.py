"""The choice of an engine: by name or by trial, refused, remembered, written down."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nescio
from conftest import TINY_TRANSFORM, Pictures, tiny_net
from nescio import Classifier, InputError, Session
from nescio.report.words import command
from nescio.run.engines import ENGINES, Engine, choice
from nescio.run.engines.memory import FILE


class Slow(nn.Module):
    """A function of images that takes a while."""

    def __init__(self, module: nn.Module, seconds: float, error: float = 0.0) -> None:
        super().__init__()
        self.module, self.seconds, self.error = module, seconds, error

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.module(x) * (1 + self.error)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type[Engine]]]:
    """Engines of known speed instead of all others, and trials that are always worth it."""
    monkeypatch.setattr(choice, "WORTH", 0.0)
    monkeypatch.setattr(choice, "TRIAL", 0.2)
    for name in set(ENGINES) - {"torch", "plain"}:
        monkeypatch.delitem(ENGINES, name)

    def compiled(seconds: float, error: float) -> Any:
        return lambda self, module, example: Slow(module, seconds, error)  # noqa: ARG005 - as the protocol has it

    original = ENGINES["torch"].compiled
    monkeypatch.setattr(ENGINES["torch"], "compiled", lambda s, m, x: Slow(original(s, m, x), 0.05))
    rows = {"quick": (0.0, 0.0), "slow": (0.15, 0.0), "wrong": (0.0, 1e-3)}
    for name, (seconds, error) in rows.items():
        kind = type(name.title(), (Engine,), {"compiled": compiled(seconds, error), "setup": 0.0}, name=name)
        assert ENGINES.pop(name) is kind
        monkeypatch.setitem(ENGINES, name, kind)
    return {name: ENGINES[name] for name in rows}


def session(folder: Path, **options: Any) -> Session:
    return Session(Classifier(tiny_net(), TINY_TRANSFORM, name="tiny"), cache=folder, workers=0, **options)


def test_a_trial_takes_the_fastest_engine_that_is_right(
    made_up: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = session(tmp_path)
    with caplog.at_level(logging.INFO, logger="nescio"):
        bank = running.bank(Pictures(9))
    assert repr(running.running) == "quick"
    assert bank.manifest["key"]["engine"] == "quick"
    assert "engine 'wrong' cannot run tiny (on noise its features are 0.001 of the largest one" in caplog.text
    assert "engine quick runs tiny; images/s in a trial: torch " in caplog.text


def test_a_trial_keeps_pytorch_where_the_others_are_slower(made_up: dict[str, Any], tmp_path: Path) -> None:
    del ENGINES["quick"]
    running = session(tmp_path)
    running.bank(Pictures(9))
    assert repr(running.running) == "torch"
    assert list(json.loads((tmp_path / FILE).read_text()).values()) == ["torch"]


def test_a_trial_is_made_once_for_a_network_and_machine(
    made_up: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = session(tmp_path).bank(Pictures(9))
    monkeypatch.setattr(choice, "_compare", None)  # a trial would call it
    again = session(tmp_path)
    assert again.bank(Pictures(9)).path == first.path


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": {}}'])
def test_what_is_remembered_may_be_damaged(made_up: dict[str, Any], tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    running = session(tmp_path)
    running.bank(Pictures(9))
    assert repr(running.running) == "quick"


def test_banks_of_pytorch_serve_until_a_trial_has_decided(made_up: dict[str, Any], tmp_path: Path) -> None:
    known = session(tmp_path, engine="torch").bank(Pictures(9))
    assert session(tmp_path).bank(Pictures(9)).path == known.path


def test_a_few_images_are_not_worth_a_trial(tmp_path: Path) -> None:
    running = session(tmp_path)
    running.bank(Pictures(9))
    assert repr(running.running) == "torch"
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("way", [{"engine": "torch"}, {"engine": "plain"}, {"engine": "torch", "precision": "bf16"}])
def test_banks_are_keyed_by_engine_and_precision(tmp_path: Path, way: dict[str, str]) -> None:
    other = session(tmp_path, engine="openvino" if way == {"engine": "torch"} else "torch")
    if other.running.unusable(torch.device("cpu")):
        pytest.skip("openvino is not installed")
    bank = session(tmp_path, **way).bank(Pictures(9))
    assert bank.path != other.bank(Pictures(9)).path
    assert {"engine": bank.manifest["key"]["engine"]} == {"engine": way["engine"]}
    assert bank.manifest["key"]["precision"] == way.get("precision", "float32")


class Branching(nn.Module):
    """A network that does something else for small batches: tracing on two images misses it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * 2) if len(x) > 4 else self.net(x)


def test_an_engine_is_compared_on_the_first_images_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openvino")
    running = Session(Classifier(Branching(), TINY_TRANSFORM), engine="openvino", cache=tmp_path, workers=0)
    with caplog.at_level(logging.WARNING, logger="nescio"):
        bank = running.bank(Pictures(9))
    assert "engine 'openvino' cannot run Branching (on the first images its features are" in caplog.text
    assert caplog.text.count("PyTorch runs it") == 1
    assert bank.manifest["key"]["engine"] == "torch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "steam"}, "unknown engine 'steam'"),
        ({"engine": "openvino:devise=GPU"}, "engine 'openvino' has no option 'devise'"),
        ({"precision": "bf17"}, "precision=bf17 is not one of the choices"),
        ({"engine": "plain", "precision": "bf16"}, "engine 'plain' does not run in bf16, only in float32"),
        ({"precision": "tf32"}, "tf32 needs an NVIDIA GPU"),
        ({"engine": "openvino:device=GPU"}, "engine 'openvino:device=GPU' cannot be used: it finds no device GPU"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("'", ".")):
        session(tmp_path, **options).bank(Pictures(9))
    assert not list(tmp_path.glob("banks/*"))


def test_results_say_which_engine(tmp_path: Path) -> None:
    running = session(tmp_path, engine="torch", precision="bf16")
    results = nescio.bench(
        running, id=Pictures(20), ood={"noise": "noise:gaussian:size=8,images=10"}, detectors=["msp"]
    )
    assert (results.manifest["engine"], results.manifest["precision"]) == ("torch", "bf16")
    assert "--engine torch --precision bf16" in command(results.manifest)


@pytest.mark.parametrize("way", [("torch", "bf16"), ("openvino", "float32"), ("openvino", "bf16")])
def test_a_file_carries_its_engine(tmp_path: Path, way: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    running = session(tmp_path, engine=way[0], precision=way[1])
    if why := running.running.unusable(torch.device("cpu")):
        pytest.skip(why)
    deployed = nescio.fit(running, "energy", calibrate=Pictures(60))
    deployed.save(tmp_path / "my.nescio")
    again = nescio.load(tmp_path / "my.nescio", model=tiny_net)
    assert (repr(again.session.running), again.session.precision) == way
    pictures = [Pictures(5).read(i) for i in range(5)]
    ours, theirs = deployed(pictures), again(pictures)
    assert [v.score for v in ours] == [v.score for v in theirs]
    assert "PyTorch runs" not in caplog.text


def test_a_file_whose_engine_is_not_here_is_run_by_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    deployed = nescio.fit(session(tmp_path, engine="openvino"), "energy", calibrate=Pictures(60))
    deployed.save(tmp_path / "my.nescio")
    monkeypatch.setattr(ENGINES["openvino"], "unusable", lambda self, device: "it is on holiday")  # noqa: ARG005
    again = nescio.load(tmp_path / "my.nescio", model=tiny_net)
    assert "by the engine 'openvino', which cannot be used here (it is on holiday): PyTorch runs it" in caplog.text
    pictures = [Pictures(5).read(i) for i in range(5)]
    assert np.allclose([v.score for v in again(pictures)], [v.score for v in deployed(pictures)], rtol=1e-5)


def test_signals_arrive_after_networks_of_openvino_are_gone(tmp_path: Path) -> None:
    """Its signal stacks, of which one may be gone before the other, must not be left to a signal's handler."""
    pytest.importorskip("openvino")
    code = """
import gc, os, signal, torch
from nescio import Session
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
x = torch.rand(4, 3, 8, 8)
first, second = (Session(net, engine="openvino", size=(3, 8, 8)) for _ in range(2))
first(x), second(x)
del first; gc.collect()
del second; gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("arrived"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr
