"""A disk that is full or cannot be written to ends every command in one line, and leaves nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from conftest import read_only, small_disk
from nescio.cli import main

MODEL = ("--model", "mine:make", "--weights", "w.safetensors", "--transform", "crop=8")
EACH = ("--train", "train", "--workers", "0", "--cache", "cache")
COMMANDS: dict[str, tuple[str, ...]] = {
    "bench": (
        "bench",
        *MODEL,
        *EACH,
        "--id",
        "id",
        "--ood",
        "far=far",
        "--detector",
        "fmls",
        "--out",
        "disk/r",
        "--report",
    ),
    "fit": ("fit", *MODEL, *EACH, "--calibrate", "id", "-o", "disk/my.nescio"),
    "score": ("score", "my.nescio", "far", "--model", "mine:make", "--workers", "0", "-o", "disk/scores"),
    "tune": (
        "tune",
        "fm:p=0.1|0.5+energy",
        *MODEL,
        *EACH,
        "--val",
        "id",
        "--proxy",
        "noise",
        "--out",
        "disk/choice.csv",
    ),
    "report": ("report", "r", "--out", "disk/r"),
    "explain": ("explain", "far[:2]", *MODEL, "--out", "disk/maps.png"),
    "train": (
        *("train", "--arch", "tiny_networks:batch_norm_net", "--train", "train", "--val", "id", "--out", "disk/run"),
        *("--size", "16", "--objective", "ce", "--batch-size", "24", "--epochs", "1", "--workers", "0"),
    ),
    "quickstart": ("quickstart", "--epochs", "1", "--out", "disk/quick", "--cache", "cache"),
}


def nescio(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["--quiet", *arguments], catch_exceptions=False)


@pytest.fixture
def here(working_folder: Path, make_folder: Callable[..., Path]) -> Path:
    """Images, weights, a fitted file and results."""
    for name, seed in (("train", 0), ("id", 1000), ("far", 2000)):
        make_folder(name, per_class=12, classes=("a", "b", "c", "d"), seed=seed)
    for name in ("fit", "bench"):
        assert nescio(*(a.removeprefix("disk/") for a in COMMANDS[name])).exit_code == 0
    (working_folder / "disk").mkdir()
    return working_folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_to_is_one_line(here: Path, name: str) -> None:
    with read_only(here / "disk"):
        refused = nescio(*COMMANDS[name])
    assert refused.exit_code == 2, refused.output
    line = refused.output.strip().splitlines()[-1]
    assert line.startswith("nescio: ")
    assert "disk" in line


# one page holds the folder and nothing more: whatever is written first does not fit
@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "quickstart"])
def test_a_full_disk_is_one_line(here: Path, name: str) -> None:
    with small_disk(here / "disk", 4096):
        (here / "disk/full").write_bytes(b"x" * 4096)
        refused = nescio(*COMMANDS[name])
        left = [p for p in (here / "disk").rglob("*") if p.is_file() and p.stat().st_size and p.name != "full"]
    assert refused.exit_code == 2, refused.output
    line = refused.output.strip().splitlines()[-1]
    assert line.startswith("nescio: ")
    assert "No space left" in line
    assert left == []
