"""What nescio writes for itself: each kind of file says what it is, opens again, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nescio
from conftest import TINY_TRANSFORM, random_features, tiny_net, training
from nescio.core import artifact, detector_file
from nescio.core.artifact import Kind, read, write
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.deploy import Deployed
from nescio.deploy import file as deployed
from nescio.evaluation import results_files, sample
from nescio.evaluation.results import Results
from nescio.models import runs
from nescio.models.runs import Run
from nescio.training import state
from nescio.training.state import State

KINDS = [module.KIND for module in (deployed, detector_file, results_files, runs, sample, state)]
STORED = Path(__file__).parents[1] / "reference/format-1"


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=["a.nescio", "a.json"])
def path(request: pytest.FixtureRequest, tmp_path: Path, kind: Kind) -> Path:
    tensors = None if request.param.endswith("json") else {"a": torch.arange(4.0)}
    write(tmp_path / request.param, kind, {"b": [1, "x"]}, tensors)
    return tmp_path / request.param


def refused(path: Path, kind: Kind) -> str:
    with pytest.raises(InputError) as e:
        read(path, kind)
    message = str(e.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_is_written_is_read(path: Path, kind: Kind) -> None:
    found = read(path, kind)
    assert (found.kind, found.version, found.meta) == (kind, kind.version, {"b": [1, "x"]})
    assert found.tensors.keys() == ({"a"} if path.suffix == ".nescio" else set())
    assert all(torch.equal(t, torch.arange(4.0)) for t in found.tensors.values())


def test_each_fault_has_one_line_and_a_way_out(path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(k for k in KINDS if k is not kind)
    assert f"is not {other.called}: nescio wrote it as '{kind.name}'" in refused(path, other)
    newer = Kind(kind.name, 99, kind.called, kind.hint)
    write(path, newer, {}, {} if path.suffix == ".nescio" else None)
    assert "was written by a later version of nescio (format 99); update nescio" in refused(path, kind)
    whole = path.read_bytes()
    for text in (b"hello", b"", whole[:-9], whole.replace(b"/99", b"/01"), b"[]"):
        path.write_bytes(text)
        assert f"is damaged and cannot be read as {kind.called} (" in (said := refused(path, kind))
        assert said.endswith(kind.hint)
    path.unlink()
    assert refused(path, kind) == f"no such file: {path}"


def test_a_safetensors_file_of_somebody_else_is_none_of_ours(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    for kind in (k for k in KINDS if not k.unmarked):
        assert f"is not {kind.called}; give another file" in refused(tmp_path / "a.safetensors", kind)
    assert artifact.kind_of(tmp_path / "a.safetensors") is None


def test_tied_weights_views_and_odd_names_come_back(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": whole, "b": whole, "column": whole[:, 1], "row": whole[1], "array": np.arange(3)[::-1]}
    write(tmp_path / "a", detector_file.KIND, {"name": "caf\udce9"}, tensors)
    found = read(tmp_path / "a", detector_file.KIND)
    assert found.meta == {"name": "caf\udce9"}
    for name, t in tensors.items():
        assert torch.equal(found.tensors[name], torch.as_tensor(np.array(t))), name
    assert (tmp_path / "a").stat().st_size < 1000  # a view does not bring what it is a view of


def test_files_of_the_first_versions_open(tmp_path: Path) -> None:
    f = random_features()
    stored = nescio.load(STORED / "detector.safetensors")
    fresh = Detector(repr(stored)).fit(training(f))
    assert repr(stored) == "fm:p=0.5+react:q=0.9+ls+energy"
    assert torch.allclose(stored(f), fresh(f), atol=1e-6)
    found = nescio.load(STORED / "results")
    assert isinstance(found, Results)
    table = (STORED / "results/results.csv").read_text()
    assert found.to_csv() == table
    assert found.sample.sets["far"].h.shape == (16, 6)
    found.save(tmp_path / "again")
    assert nescio.load(tmp_path / "again").to_csv() == table
    assert Run.read(STORED) == Run("timm:test_resnet", 4, list("abcd"), "crop=32", "ce", {"train": "images"})


def test_a_checkpoint_of_the_first_version_goes_on(tmp_path: Path) -> None:
    def made() -> State:
        network = tiny_net()
        made = State(network, nescio.Classifier(network, TINY_TRANSFORM), settings="s")
        made.optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        return made

    first, second = made(), made()
    sum(p.sum() for p in first.network.parameters()).backward()
    first.optimizer.step()
    first.step, first.sums = 3, {"loss": float("nan")}
    first.save(tmp_path / "last.safetensors")
    numbers = {k: getattr(first, k) for k in ("settings", "step", "sums", "selected", "lines")}
    tensors = load_file(tmp_path / "last.safetensors")
    save_file(tensors, tmp_path / "old.safetensors", {"nescio": json.dumps(numbers)})
    for name in ("last", "old"):
        second = made()
        second.load(tmp_path / f"{name}.safetensors")
        assert second.step == 3
        assert np.isnan(second.sums["loss"])
        assert all(torch.equal(a, b) for a, b in zip(first.all_tensors(), second.all_tensors(), strict=True))


@pytest.mark.parametrize("version", [1, 2])
def test_deployed_files_of_earlier_versions_open(version: int) -> None:
    found = nescio.load(STORED.with_name(f"format-{version}.nescio"), model=tiny_net)
    assert isinstance(found, Deployed)
    assert "\n" not in repr(found)
    h = torch.rand(5, 6)
    assert np.isfinite(found.detector(h.numpy())).all()  # it has the network's head


def test_what_is_nothing_of_ours_is_said(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, "has neither results .results.json. nor a trained network .run.json."),
        (tmp_path / "gone", "no such file"),
    ):
        with pytest.raises(InputError, match=said):
            nescio.load(path)
