"""From held-out images to a file, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from conftest import picture, tiny_net
from nescio.cli import main
from nescio.deploy import load

FIT = ["fit", "--model", "mine:make", "--weights", "w.safetensors", "--transform", "crop=8", "--workers", "0"]
SETS = ["--train", "train", "--calibrate", "held"]


@pytest.fixture
def here(working_folder: Path, make_folder: Callable[..., Path]) -> Path:
    for name, seed in (("train", 0), ("held", 1000)):
        make_folder(name, per_class=12, classes=("a", "b", "c", "d"), seed=seed)
    return working_folder


def nescio(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def test_a_file_is_fitted_and_says_what_it_is(here: Path) -> None:
    result = nescio(*FIT, *SETS, "--detector", "fmls", "-o", "out/my.nescio")
    assert result.exit_code == 0, result.output
    shown = nescio("show", "out/my.nescio")
    assert shown.exit_code == 0
    assert shown.output.strip() in result.output
    deployed = load("out/my.nescio", model=tiny_net)
    for said in (
        "mine:make, 4 classes",
        "resize=8,crop=8",
        "fm+react:q=0.98+ls+energy",
        f"scores of {deployed.calibration.groups[0].threshold:.6g} and above",
        "at most 5 % of new ID images are rejected, on average",
        "(48 images)",
    ):
        assert said in " ".join(shown.output.split()), said
    assert len(deployed(picture(1))) == 1


def test_what_no_graph_can_hold_is_said_before_the_work(here: Path) -> None:
    told = "nescio export will not support this detector: 'odin:eps=0.01' needs its own pass"
    result = nescio(*FIT, *SETS, "--detector", "odin:eps=0.01+msp", "-o", "my.nescio")
    assert result.exit_code == 0, result.output
    assert result.output.index(told) < result.output.index("network")
    assert told not in nescio(*FIT, *SETS, "--detector", "msp", "-o", "my.nescio").output


def test_the_stronger_form_and_classes_are_options(here: Path) -> None:
    knn = [*FIT, *SETS, "--detector", "knn:k=1", "--accept", "0.8", "--confidence", "0.9"]
    result = nescio(*knn, "--proxy", "blur", "--prior", "0.7", "-o", "c.nescio")
    assert result.exit_code == 0, result.output
    assert "for 90 % of the calibration sets" in result.output
    assert "against the proxy 'blur', prior 0.7" in result.output
    result = nescio(*FIT, *SETS, "--accept", "0.8", "--per-class", "--no-weights", "-o", "p.nescio")
    assert result.exit_code == 0, result.output
    assert "by predicted class" in result.output
    assert "(not in the file)" in result.output
    assert (here / "p.nescio").stat().st_size < (here / "c.nescio").stat().st_size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([*SETS, "--accept", "95"], "write 0.95 for 95 %"),
        ([*SETS, "--accept", "0.99"], "too few"),
        (["--calibrate", "held"], "give train= (--train)"),
        (["--train", "train", "--calibrate", "train"], "are training images"),
        ([*SETS, "--detector", "fmlss"], "did you mean 'fmls'"),
        ([*SETS, "--proxy", "background"], "unknown proxy 'background'; known: blur, corner"),
        ([*SETS, "--proxy", "noise", "--prior", "1.5"], "prior=1.5 must be in (0, 1)"),
        ([*SETS, "--proxy", "noise", "--prior", "0"], "prior=0 must be in (0, 1); give prior above 0"),
        (["--train", "train", "--calibrate", "nowhere"], "no such file or folder"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_leaves_nothing(here: Path, options: list[str], said: str) -> None:
    result = nescio(*FIT, *options, "-o", "my.nescio")
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert not (here / "my.nescio").exists()


def test_a_place_that_cannot_be_written_is_refused_at_once(here: Path) -> None:
    (here / "file").write_text("")
    (here / "folder.nescio").mkdir()
    assert nescio(*FIT, *SETS, "-o", "file/my.nescio").exit_code == 2
    assert nescio(*FIT, *SETS, "-o", "folder.nescio").exit_code == 2
    assert not (here / "cache").exists()  # before the network ran
    assert nescio("show", "nothing.nescio").exit_code == 2
    assert nescio("show", "w.safetensors").exit_code == 2


def test_a_class_that_is_called_like_markup_or_an_escape_sequence_is_shown_as_text(here: Path) -> None:
    (here / "names.txt").write_text("[/red]\n\x1b]0;owned\x07b\n:dog:\nd\n")
    made = nescio(*FIT, *SETS, "--classes", "names.txt", "--accept", "0.8", "--per-class", "-o", "my.nescio")
    assert made.exit_code == 0, made.output
    (here / "held").rename(here / "[bold]\x1b[31m")
    scored = nescio("score", "my.nescio", "--model", "mine:make", "[bold]\x1b[31m")
    for output in (made.output, nescio("show", "my.nescio").output):
        assert "[/red]" in output
        assert "\\x1b]0;owned" in output
    assert "[bold]\\x1b[31m/a/0.png" in scored.output
    assert "\x1b" not in made.output + scored.output
