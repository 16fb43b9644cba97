"""``nescio train`` and ``explain`` as commands: signals, killed processes, several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import coloured

TESTS = Path(__file__).parents[1]
CHAIN = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("work")
    coloured(root, "train", 40)
    coloured(root, "val", 10, seed=1)
    return root


def command(out: str, *options: str) -> list[str]:
    return [
        *("train", "--arch", "tiny_networks:batch_norm_net", "--train", "train", "--val", "val", "--out", out),
        *("--size", "16", "--objective", "ssod:gamma=0.6", "--optimizer", "adamw:lr=3e-3", "--batch-size", "24"),
        *("--workers", "0", "--device", "cpu", *options),
    ]


def nescio(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "nescio", *arguments]
    return subprocess.run(whole, cwd=here, env=CHAIN, capture_output=True, text=True, timeout=300, check=False)


def lines(out: Path) -> list[dict[str, float]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def started(here: Path, out: str, *options: str, until: Callable[[], bool]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "nescio", *command(out, *options)],
        cwd=here,
        env=CHAIN,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not until():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def same_weights(a: Path, b: Path) -> None:
    first, second = (load_file(path / "last.safetensors") for path in (a, b))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


OWN = ("--model", "tiny_networks:batch_norm_net", "--weights", "run")
"""A run folder may not say which code is run, so the network of a run on one's own code is named again."""


def test_train_bench_explain(here: Path) -> None:
    done = nescio(here, *command("run", "--epochs", "3", "--watch", "other=train"))
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert re.search(r"run/model.safetensors: epoch \d, ID validation accuracy", text)
    assert "no OOD image was used" in text
    assert "papers-choice.safetensors" in text
    assert "this looks at the test" in text
    judged = nescio(
        here, "bench", *OWN, "--train", "train", "--id", "val", "--ood", "other=train[:20]",
        "--detector", "ssod", "--detector", "fm+react+ls+energy", "--detector", "mean(ssod,energy)", "--workers", "0",
        "--device", "cpu", "--cache", "cache", "--out", "table",
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert len((here / "table/results.csv").read_text().splitlines()) >= 4
    drawn = nescio(here, "explain", "val/class0/000.png", "val/class1", *OWN, "--out", "maps.png")
    assert drawn.returncode == 0, drawn.stderr
    assert (here / "maps.png").stat().st_size > 10_000
    again = nescio(here, *command("run", "--epochs", "3"))
    assert again.returncode == 2
    assert (
        again.stderr.strip()
        == "nescio: run has a run already; continue it with resume=True (--resume), or give another folder"
    )


@pytest.fixture(scope="module")
def unbroken(here: Path) -> Path:
    assert nescio(here, *command("unbroken", "--epochs", "40")).returncode == 0
    return here / "unbroken"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_resumes_to_the_same_bits(number: signal.Signals, here: Path, unbroken: Path) -> None:
    out = f"stopped-{number.name}"
    process = started(here, out, "--epochs", "40", until=lambda: len(lines(here / out)) >= 2)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert len(lines(here / out)) < 40, "it was stopped on the way"
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "interrupted; run the same command with --resume: it continues where it stopped" in error
    resumed = nescio(here, *command(out, "--epochs", "40", "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    same_weights(here / out, unbroken)
    assert lines(here / out) == lines(unbroken)


@pytest.mark.parametrize("launcher", ["--devices", "torchrun"])
def test_two_processes_follow_one(launcher: str, here: Path) -> None:
    """Group norm, so that the parts of a batch are independent; patches are counted over both processes."""
    options = ["--epochs", "4", "--arch", "tiny_networks:group_net"]
    if not (here / "one").exists():
        alone = nescio(here, *command("one", *options))
        assert alone.returncode == 0, alone.stderr
    out = f"two{launcher}"
    if launcher == "torchrun":
        chain = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nescio"]
        whole = [*chain, *command(out, *options)]
        done = subprocess.run(whole, cwd=here, env=CHAIN, capture_output=True, text=True, timeout=300, check=False)
    else:
        done = nescio(here, *command(out, *options, "--devices", "2"))
    assert done.returncode == 0, done.stderr
    one, two = lines(here / "one"), lines(here / out)
    assert one[0]["train_ood_share"] > 0.05
    assert [line["epoch"] for line in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "train_cls_loss", "train_ood_loss", "train_id_share", "val_accuracy"):
            assert b[name] == pytest.approx(a[name], abs=1e-4), name
    first, second = (load_file(here / run / "last.safetensors") for run in ("one", out))
    assert all(torch.allclose(first[k], second[k], atol=1e-4) for k in first if k.startswith("model."))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "ssod:gamma=0.3"], "gamma=0.3 must be in (0.5, 1)"),
        (["--recipe", "sod"], "unknown recipe 'sod'"),
        (["--arch", "tiny_networks:nothing"], "cannot be imported"),
        (["--devices", "5"], "batch_size=24 is not divisible by 1 × 5 processes"),
        (["--device", "cuda"], "device 'cuda' cannot be used"),
        (["--init", "nowhere.safetensors"], "no such weights file: nowhere.safetensors"),
        (["--init", "pretrained", "--arch", "resnet18-cifar"], "no pretrained weights"),
        (["--arch", "timm:resnet10t", "--size", "16"], "feature map"),
        (["--watch", "train"], "write --watch train=train"),
        (["--device", "cpu:abc"], "unknown device 'cpu:abc'"),
        (["--device", "cuda:0", "--devices", "2"], "is a single device"),
        (["--seed", "99999999999999999999"], "seed=99999999999999999999 must be below"),
        (["--size", "1000000"], "crop and resize up to 4,096 pixels"),
        (["--batch-size", "200"], "120 training images do not fill a batch of 200"),
    ],
)
def test_what_is_refused(options: list[str], message: str, here: Path) -> None:
    from click.testing import CliRunner

    from nescio.cli import main

    old = Path.cwd()
    os.chdir(here)
    try:
        result = CliRunner().invoke(main, command("refused", "--epochs", "1", *options))
    finally:
        os.chdir(old)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not (here / "refused/run.json").exists()
