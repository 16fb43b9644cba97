"""``nescio score`` as a user meets it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from conftest import TINY_TRANSFORM, encoded, picture, tiny_net
from nescio.cli import main
from nescio.deploy import Deployed, fit
from nescio.models import Classifier


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    logger = logging.getLogger("nescio")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def deployed(tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Deployed:
    """A working folder with a detector in a file, new images, and the user's module."""
    classifier = Classifier(tiny_net(), TINY_TRANSFORM, name="mine:make", classes=["ant", "bee", "cat", "dog"])
    calibrate = make_folder("calibrate", per_class=20, seed=5000)
    made = fit(classifier, "energy", calibrate=calibrate, accept=0.5, workers=0, progress=False)
    made.save(tmp_path / "my.nescio")
    make_folder("new", per_class=6)
    (tmp_path / "mine.py").write_text("from conftest import tiny_net as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return made


def score(*arguments: str, model: str | None = "mine:make") -> Result:
    named = ["--model", model] if model else []
    return CliRunner().invoke(main, ["score", *arguments, *named], catch_exceptions=False)


def test_a_few_images_are_printed(deployed: Deployed) -> None:
    Path("new/a/[bold]0.png").write_bytes(encoded(picture(3)))
    Path("new/b/2.png").write_bytes(b"")
    result = score("my.nescio", "new/a", "new/b/2.png")
    assert result.exit_code == 0, result.output
    lines = {line.split()[1]: line for line in result.output.splitlines() if ".png" in line}
    names = [f"new/a/{n}.png" for n in ("0", "1", "2", "3", "4", "5", "[bold]0")]
    assert set(lines) == {*names, "new/b/2.png"}
    verdicts = deployed([Path(n) for n in names[:6]])
    assert {v.accepted for v in verdicts} == {True, False}
    for name, verdict in zip(names, verdicts, strict=False):
        assert ("ACCEPTED" in lines[name], "I do not know" in lines[name]) == (verdict.accepted, not verdict.accepted)
        assert f" {verdict.label} " in lines[name]
        assert f"{verdict.probability:.1%}" in lines[name]
        assert f"{verdict.p_value:.3f}" in lines[name]
    assert "unreadable: zero bytes" in lines["new/b/2.png"]


def test_many_images_go_to_parquet_files(deployed: Deployed) -> None:
    Path("new/b/2.png").write_bytes(b"")
    arguments = ("my.nescio", "new/*/*.png", "-o", "out/scores", "--part-size", "5", "--workers", "0")
    result = score(*arguments)
    assert result.exit_code == 0, result.output
    rows = pq.read_table("out/scores").to_pylist()
    accepted = sum(bool(r["accepted"]) for r in rows)
    assert f"12 images: {accepted} accepted, {11 - accepted} rejected, 1 unreadable" in result.output
    assert "(listed in out/scores/_errors.csv)" in result.output
    assert "images/s" in result.output
    assert Path("out/scores/_errors.csv").read_text() == "path,error\nnew/b/2.png,zero bytes\n"
    again = score(*arguments)
    assert again.exit_code == 0
    assert "12 of 12 images are scored already" in again.output
    assert "images/s" not in again.output
    deployed.save("other.nescio", weights=False)
    save_file(tiny_net().state_dict(), "w.safetensors")
    same = score("other.nescio", *arguments[1:], "--weights", "w.safetensors")
    assert "12 of 12 images are scored already" in same.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["my.nescio", *["new"] * 9], "too many to print"),
        (["my.nescio", "nowhere"], "no such file or folder: nowhere"),
        (["none.nescio", "new"], "no file none.nescio"),
        (["my.nescio", "new", "-o", "my.nescio"], "scores cannot be written to my.nescio"),
        (["my.nescio", "new", "-o", "new"], "new holds other things than scores"),
        (["my.nescio", "new", "-o", "s", "--engine", "spark"], "engine=spark is not a choice"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(deployed: Deployed, arguments: list[str], told: str) -> None:
    result = score(*arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not Path("s").exists()


def test_the_network_of_a_file_is_named_by_the_user(deployed: Deployed) -> None:
    result = score("my.nescio", "new", model=None)
    assert result.exit_code == 2
    assert "--model mine:make" in result.output


def test_a_proxy_adds_p_id(deployed: Deployed) -> None:
    from nescio.framework import ProxyCalibrator

    ood = torch.linspace(0, 1, 20)
    deployed.calibrator = ProxyCalibrator.fit(ood + 1, ood, proxy="noise")
    deployed.save("my.nescio")
    result = score("my.nescio", "new/a/0.png")
    (verdict,) = deployed("new/a/0.png")
    assert "P(ID | image)" in result.output
    assert f"{verdict.p_id:.3f}" in result.output
