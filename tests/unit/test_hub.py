"""Detectors on the Hugging Face Hub, against a stand-in for its HTTP API. huggingface_hub itself does the talking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import hub
import tiny_networks
from nescio.calibration.conformal import Calibration
from nescio.cli import main
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.data import Transform
from nescio.deploy import Deployed
from nescio.deploy.card import card_of
from nescio.deploy.hub import Repository
from nescio.models import Classifier

CLASSES = 3
NETWORK = "tiny_networks:batch_norm_net"
PRELUDE = """
import json, sys
import numpy as np
import nescio, tiny_networks
from nescio.cli import main
from nescio.cli.base import EXIT_BAD_INPUT

def command(*words):
    assert main(["-q", *words], standalone_mode=False) is None
    sys.stdout.flush()

def refused(call):
    try:
        call()
    except nescio.InputError as e:
        return str(e)
"""


def python(url: str, cache: Path, code: str, token: str | None = hub.TOKEN) -> Any:
    """Run as a user would, in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    given = {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))} | given | {"PYTHONPATH": paths}
    if token is not None:
        env["HF_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def saved(folder: Path, **options: Any) -> Path:
    names = [f"kind|{i}" for i in range(CLASSES)]
    classifier = Classifier(tiny_networks.batch_norm_net().eval(), Transform(crop=16), name=NETWORK, classes=names)
    detector = Detector("energy").fit(FeatureSet(head=classifier.head))
    calibration = Calibration.fit(np.linspace(-1, 3, 99), np.arange(99) % CLASSES, accept=0.9)
    Deployed(classifier, detector, calibration).save(folder / "my.nescio", **options)
    return folder / "my.nescio"


def test_what_was_pushed_is_loaded_by_name(tmp_path: Path) -> None:
    file = saved(tmp_path)
    with hub.hub() as held:
        code = f"""
            command("push", {str(file)!r}, "hf:me/birds", "--private", "--license", "apache-2.0")
            command("push", {str(file)!r}, "hf:me/birds@next", "--no-card", "--message", "again")
            command("show", "hf:me/birds")
            x = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
            net = tiny_networks.batch_norm_net().eval()
            both = [nescio.load(name, model=net)(x) for name in ("hf:me/birds", "hf:me/birds@next", {str(file)!r})]
            print(json.dumps([[v.score for v in one] for one in both]))
        """
        here, branch, local = python(held.url, tmp_path / "cache", code)
        assert here == branch == local
        files = held.files("me/birds")
        assert held.repositories["me/birds"].private
        assert set(files) == {"detector.nescio", "README.md"}
        assert files["detector.nescio"] == file.read_bytes()
        assert held.messages[1] == "again"
        card = files["README.md"].decode()
        assert card.startswith("---\nlibrary_name: nescio\nlicense: apache-2.0\n")
        assert 'nescio.load("hf:me/birds")' in card


def test_the_hubs_refusals_say_what_to_do(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.nescio"
    damaged.write_bytes(saved(tmp_path).read_bytes()[:-1] + b"!")
    with hub.hub() as held:
        held.repositories["me/empty"] = hub.Repository(private=False)
        held.commit("me/empty", "main", [])
        held.repositories["me/broken"] = hub.Repository(private=False)
        held.commits["0" * 40] = {"detector.nescio": damaged.read_bytes()}
        held.repositories["me/broken"].heads["main"] = "0" * 40
        code = f"""
            names = ["hf:me/none", "hf:me/empty", "hf:me/empty@v9", "hf:me/broken", "hf:me"]
            said = [refused(lambda: nescio.load(name)) for name in names]
            said += [refused(lambda: nescio.push({str(tmp_path / "my.nescio")!r}, "hf:me/birds"))]
            print(json.dumps(said))
        """
        none, empty, revision, broken, name, push = python(held.url, tmp_path / "cache", code, token=None)
        assert "no repository me/none" in none
        assert "hf auth login" in none
        assert "hf:me/empty has no detector.nescio" in empty
        assert "me/empty has no revision 'v9'" in revision
        assert "do not match its hash" in broken
        assert "write hf:USER/NAME" in name
        assert "hf auth" in push
        assert "me/birds" not in held.repositories
    code = 'print(json.dumps([refused(lambda: nescio.load("hf:me/birds"))]))'
    (away,) = python(held.url, tmp_path / "other", code)
    assert "the hub cannot be reached" in away


def test_nothing_is_uploaded_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "odd.nescio").write_bytes(b"\x80\x04.")
    for file, said in (("odd.nescio", "odd.nescio"), ("none.nescio", "no such file")):
        result = CliRunner().invoke(main, ["push", str(tmp_path / file), "hf:me/birds"])
        assert result.exit_code == 2
        assert said in result.output
    result = CliRunner().invoke(main, ["push", str(saved(tmp_path)), "me/birds"])
    assert (result.exit_code, "write hf:USER/NAME" in result.output) == (2, True)


def test_the_card_tells_what_the_file_holds(tmp_path: Path) -> None:
    card = card_of(saved(tmp_path), "hf:me/birds@v2")
    assert "# birds\n" in card
    assert "| predicted class | calibration images | accepted from a score of |" in card
    assert "| any | 99 | -0.632653 |" in card
    assert "at most 10 % of new ID images are rejected" in card
    assert "kind\\|0" in card  # a class's name cannot break the table
    assert "How often the class is right is not known" in card
    assert "nothing in it is run" in card
    without = card_of(saved(tmp_path, weights=False), "hf:me/birds")
    assert "weights=FILE" in without
    Detector("knn:k=2").fit(torch.randn(20, 4, generator=torch.Generator().manual_seed(0))).save(tmp_path / "d.nescio")
    alone = card_of(tmp_path / "d.nescio", "hf:me/knn")
    assert "| detector | knn:k=2 |" in alone
    result = CliRunner().invoke(main, ["show", str(tmp_path / "d.nescio"), "--card"])
    assert (result.exit_code, "# d.nescio" in result.output) == (0, True)


@pytest.mark.parametrize("text", ["hf:", "hf:me", "hf:me/a/b", "hf:me/a@", "hf:../x", "hf:me/a b", "me/a", "hf:m/a@ "])
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="does not name a repository"):
        Repository.parse(text)


def test_a_repositorys_name_is_read_as_written() -> None:
    assert Repository.parse("hf:me/birds") == Repository("me/birds")
    assert Repository.parse("hf:me/birds@refs/pr/1") == Repository("me/birds", "refs/pr/1")
    assert str(Repository.parse("hf:me/birds@v1")) == "hf:me/birds@v1"
