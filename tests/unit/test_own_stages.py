"""Stages in a file of the user's own: what they learn is saved however its type is written, or refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from conftest import random_features, training
from nescio import methods
from nescio.core.arrays import FUNCTIONS
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.plugins import load_methods
from nescio.core.stage import REGISTRY
from nescio.testing import check_stage

F = random_features()
HEAD = """
import typing
from typing import Annotated, Optional, TYPE_CHECKING, Union
import torch
from torch import Tensor
from nescio.core.stage import Stage
"""
STAGE = """
class Centred(Stage, name="centred", place="score"):
    centre: {}
    words: dict[str, Tensor]
    shared: typing.ClassVar[Tensor]

    def fit(self, data):
        self.centre = torch.cat([f.h for f in data.chunks()]).mean(dim=0)

    def forward(self, f):
        return -(f.h - self.centre).norm(dim=1)
"""
STYLES = {
    "Tensor": "Tensor",
    "torch.Tensor": "torch.Tensor",
    "string": "'Tensor'",
    "qualified string": '"torch.Tensor"',
    "union": "Tensor | None",
    "union in a string": "'torch.Tensor | None'",
    "Optional": "Optional[Tensor]",
    "typing.Optional": "typing.Optional['torch.Tensor']",
    "Union": "Union[None, torch.Tensor]",
    "Annotated": "Annotated[Tensor, 'L']",
    "Final": "typing.Final[Tensor]",
    "alias": "Vector",
    "alias in a string": "'Vector'",
}


@pytest.fixture
def registry() -> Iterator[None]:
    load_methods()
    known = (REGISTRY, FUNCTIONS)
    before = [dict(table) for table in known]
    yield
    for table, names in zip(known, before, strict=True):
        table.clear()
        table.update(names)


def imported(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (folder / "own_stages.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_stages", raising=False)
    module = importlib.import_module("own_stages")
    monkeypatch.delitem(sys.modules, "own_stages")  # undone at the end: it must not outlive the test
    monkeypatch.setitem(sys.modules, "own_stages", module)
    return module


def saved_and_read(detector: Detector, folder: Path) -> Detector:
    detector.save(folder / "own.safetensors")
    return Detector.load(folder / "own.safetensors")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("future", [True, False])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_what_a_stage_learns_is_saved_however_its_type_is_written(
    style: str, future: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from __future__ import annotations\n" * future + HEAD + "Vector = Tensor\n" + STAGE.format(style)
    assert imported(source, tmp_path, monkeypatch).Centred.declared() == ["centre"]
    detector = Detector("react:clip=1+centred").fit(training(F))
    torch.testing.assert_close(detector.steps[-1].centre, F.h.clamp(max=1).mean(dim=0))
    assert torch.equal(saved_and_read(detector, tmp_path)(F), detector(F))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("style", ["Tensor", "Tensor | None"])
def test_a_tensor_that_only_the_type_checker_imports_is_one(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = HEAD.replace("from torch import Tensor\n", "if TYPE_CHECKING:\n    from torch import Tensor\n")
    source = "from __future__ import annotations\n" + hidden + STAGE.format(style)
    assert imported(source, tmp_path, monkeypatch).Centred.declared() == ["centre"]
    detector = Detector("centred").fit(training(F))
    assert torch.equal(saved_and_read(detector, tmp_path)(F), detector(F))


UNDECLARED = {
    "a tensor": "self.centre = mean",
    "a tensor that is called private": "self._centre = mean",
    "a number": "self.centre = float(mean[0])",
    "a list of tensors": "self.centre = [mean]",
    "an array": "self.centre = mean.numpy()",
    "a buffer": "self.register_buffer('centre', mean)",
    "a parameter": "self.centre = torch.nn.Parameter(mean)",
    "a module": "self.centre = torch.nn.Linear(2, 2)",
}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("spec", ["centred", "mean(energy,centred)"])
@pytest.mark.parametrize("line", UNDECLARED.values(), ids=UNDECLARED)
def test_what_saving_would_lose_is_refused_when_it_is_learned(
    line: str, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"""{HEAD}
class Centred(Stage, name="centred", place="score"):
    needs_train = True
    other: list[Tensor]

    def fit(self, data):
        mean = torch.cat([f.h for f in data.chunks()]).mean(dim=0)
        {line}

    def forward(self, f):
        return f.h.norm(dim=1)
"""
    imported(source, tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"stage 'centred' learned '_?centre'.*class body \(_?centre: Tensor\)"):
        Detector(spec).fit(training(F))


NORM = '''
"""A score of a user's own."""

from typing import Annotated

from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.fitting import mean_feature
from nescio.core.needs import Needs
from nescio.core.bounds import Positive
from nescio.core.stage import Score


@of_arrays
def away(h: Tensor, centre: Tensor, power: float = 1.0) -> Tensor:
    """``Away`` of features ``h (B, L)`` and a centre ``(L,)``."""
    return -(h.double() - centre).norm(dim=1).pow(power)


class Away(Score, name="away"):
    """Distance from the mean training feature, to a power."""

    needs = Needs(train=True)
    centre: Tensor

    def __init__(self, *, power: Annotated[float, Positive] = 1.0) -> None:
        super().__init__()
        self.power = power

    def fit(self, data):
        self.centre = mean_feature(data)

    def forward(self, f):
        return away(f.h, self.centre, self.power)
'''


@pytest.mark.usefixtures("registry")
def test_a_score_is_one_file_and_one_reference_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = imported(NORM, tmp_path, monkeypatch)
    check_stage(module.Away)
    assert methods.Away is module.Away
    assert methods.away is module.away
    detector = methods.FM(p=0.3) + module.Away(power=2)
    assert repr(detector) == "fm:p=0.3+away:power=2"
    h = np.array([[3.0, 4.0], [0.0, 1.0]])
    assert Detector("away").fit(h)(np.array([[1.5, 6.5]])).tolist() == [-4.0]
    assert module.away(np.array([[1.5, 6.5]]), h.mean(axis=0)).tolist() == [-4.0]
    with pytest.raises(InputError, match="power=-1 must be a finite number above 0"):
        module.Away(power=-1)


BROKEN = {
    "option power changes the scores": ("pow(power)", "pow(1.0)"),
    "scores of finite features are finite": ("-(h.double() - centre)", "float('nan') * (h.double() - centre)"),
    "gives scores of shape": ("h.double() - centre).norm(dim=1)", "h.double() - centre).norm().expand(1)"),
    "says that it needs labels": ("train=True", "train=True, labels=True"),
    "declares too little: stage 'away': there are no training features": ("train=True", ""),
    "Tensor-likes are not close": ("-(h.double() - centre)", "-(h.double() - h.mean(dim=0) - centre)"),
}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_promise_is_told(promise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = imported(NORM.replace(*BROKEN[promise]), tmp_path, monkeypatch)
    with pytest.raises((AssertionError, InputError), match=promise):
        check_stage(module.Away)


@pytest.mark.usefixtures("registry")
def test_options_without_a_bound_and_without_a_type_are_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = NORM.replace("power: Annotated[float, Positive] = 1.0", "power=1.0, unused: int = 3").replace(
        "self.power = power", "self.power, self.unused = power, unused"
    )
    stage = imported(plain, tmp_path, monkeypatch).Away
    assert repr(Detector("away:power=2,unused=4")) == repr(stage(power=2, unused=4)) == "away:power=2,unused=4"
    with pytest.raises(InputError, match="option unused=x of stage 'away' is not of type int"):
        Detector("away:unused=x")
    with pytest.raises(AssertionError, match="option unused changes the scores"):
        check_stage(stage)
