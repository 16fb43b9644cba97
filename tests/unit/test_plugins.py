"""What other packages and a user's file add is known by its name like everything else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import nescio
from nescio.cli import main
from nescio.core import plugins
from nescio.core.stage import REGISTRY
from nescio.methods.objective import OBJECTIVES

NORM = '''
import nescio

class Norm(nescio.Score, name="norm"):
    """Length of the penultimate features."""

    def forward(self, f):
        return f.h.norm(dim=1)
'''
SCORE = """
import json, nescio, numpy
h = numpy.array([[3.0, 4.0], [0.0, 1.0]])
print(json.dumps(nescio.Detector("norm")(h).tolist()))
"""


@pytest.fixture(autouse=True)
def registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test adds is gone after it."""
    monkeypatch.setattr(plugins, "_loaded", set())
    plugins.load_methods()
    before = [dict(known) for known in (REGISTRY, OBJECTIVES)]
    yield
    for known, was in zip((REGISTRY, OBJECTIVES), before, strict=True):
        known.clear()
        known.update(was)
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


def installed(site: Path, module: str, source: str, entries: str) -> None:
    """A package as an installer leaves it: its module, and what it says of itself."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)


def run(*command: str, site: Path) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(site)}
    return subprocess.run([sys.executable, *command], env=path, capture_output=True, text=True, check=False)


def test_an_installed_package_adds_a_score(tmp_path: Path) -> None:
    installed(tmp_path, "lengths", NORM, "[nescio.methods]\nnorm = lengths\n")
    scored = run("-c", SCORE, site=tmp_path)
    assert json.loads(scored.stdout) == [5.0, 1.0], scored.stderr
    listed = run("-m", "nescio", "methods", site=tmp_path)
    assert "Length of the penultimate features" in listed.stdout, listed.stderr


def test_the_contract_of_stages_holds_for_an_installed_score(tmp_path: Path) -> None:
    source = NORM.replace('features."""', 'features ``(B, L)``.\n\n    Source: here, "This test", 2026.\n    """')
    installed(tmp_path, "lengths", source, "[nescio.methods]\nnorm = lengths\n")
    contract = Path(__file__).parents[1] / "contract/test_contract.py"
    ran = run("-m", "pytest", "-p", "no:cacheprovider", "-k", "norm", str(contract), site=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.count(".") > 50


def test_a_package_that_cannot_be_imported_is_named_and_left_out(tmp_path: Path) -> None:
    installed(tmp_path, "lengths", NORM, "[nescio.methods]\nnorm = lengths\n")
    installed(tmp_path, "broken", "import no_such_module", "[nescio.methods]\nodd = broken\n")
    listed = run("-m", "nescio", "methods", "norm", site=tmp_path)
    assert "Length of the penultimate features" in listed.stdout
    said = "nescio: plugin 'odd' (broken) is left out: ModuleNotFoundError: No module named 'no_such_module'\n"
    assert listed.stderr == said


def test_an_installed_package_adds_an_engine(tmp_path: Path) -> None:
    source = """
from nescio.run.engines import Engine

class Slow(Engine, name="slow"):
    def prepare(self, classifier):
        return classifier
"""
    installed(tmp_path, "engines", source, "[nescio.engines]\nslow = engines\n")
    made = run("-c", "import nescio, torch; nescio.Session(torch.nn.Linear(2, 2), engine='slow')", site=tmp_path)
    assert made.returncode == 0, made.stderr
    unknown = run("-c", "import nescio, torch; nescio.Session(torch.nn.Linear(2, 2), engine='fast')", site=tmp_path)
    assert "unknown engine 'fast'; known: compile, openvino, plain, slow, torch" in unknown.stderr


def test_sources_are_imported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = "import logging; logging.getLogger('more').warning('imported')"
    installed(tmp_path, "more_sources", source, "[nescio.sources]\nmore = more_sources\n")
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        plugins.load_group(plugins.SOURCES)
    assert [r.getMessage() for r in caplog.records if r.name == "more"] == ["imported"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_file_of_the_users_own_adds_a_score(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(NORM)
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugin, command = ["--plugin", str(tmp_path / "own.py")], ["methods", "norm"]
    result = CliRunner().invoke(main, plugin + command if place == "before" else command + plugin)
    about = "Length of the penultimate features.\n\nNeeds: penultimate features\n\nCosts: ONNX export: yes"
    assert (result.exit_code, result.output) == (0, f"norm (score)\n\n{about}\n")
    h = np.array([[3.0, 4.0], [0.0, 1.0]])
    assert nescio.Detector("norm")(h).tolist() == [5.0, 1.0]


def test_bench_judges_a_score_of_a_module_by_its_name(
    working_folder: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (working_folder / "own_scores.py").write_text(NORM)
    ids, far = make_folder("id", 6, ("a", "b", "c", "d")), make_folder("far", 6, seed=500)
    options = ["--model", "mine:make", "--weights", "w.safetensors", "--transform", "crop=8", "--workers", "0"]
    sets = ["--id", str(ids), "--ood", f"far={far}", "--detector", "norm", "-o", "results"]
    result = CliRunner().invoke(main, ["--plugin", "own_scores", "bench", *options, *sets], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads((working_folder / "results/results.json").read_text())["rows"]
    assert [(r["detector"], r["ood"]) for r in rows] == [("norm", "far")]


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("no_such_module", "plugin no_such_module cannot be imported: ModuleNotFoundError: No module named"),
        ("no/such/file.py", "no such file: no/such/file.py"),
        ("broken.py", "plugin broken.py cannot be imported: ZeroDivisionError: division by zero"),
        ("energy.py", "stage 'energy' exists already: nescio.methods.score.logits.Energy; rename energy@"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused(
    plugin: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "energy.py").write_text(NORM.replace('"norm"', '"energy"'))
    result = CliRunner().invoke(main, ["--plugin", plugin, "methods"])
    assert result.exit_code == 2
    assert result.output.startswith(f"nescio: {said}")
