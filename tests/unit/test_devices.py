"""One extraction on several devices: the same bytes as on one, whatever happens to a process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from conftest import TINY_TRANSFORM, Pictures, tiny_net
from nescio.cli import main
from nescio.core.errors import InputError
from nescio.models import Classifier
from nescio.run.bank import Bank
from nescio.run.devices import places, processes
from nescio.run.engines.torch import TorchEngine
from nescio.run.session import Session

BAD = {3: b"", 8: b"not an image", 57: b"", 70: b"no image"}
pytestmark = pytest.mark.skipif(len(places.cores()) < 2, reason="needs two cores")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The last bits of a feature can depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes as for GPUs: new ones, to which all is sent."""
    monkeypatch.setattr(TorchEngine, "forks", False)


def files_of(bank: Bank) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in bank.path.iterdir()}


def session(cache: Path, devices: int | str = 1, **options: object) -> Session:
    given = {"batch_size": 8, "workers": 0, "max_bad": 0.5} | options
    return Session(Classifier(tiny_net(), TINY_TRANSFORM, name="tiny"), cache=cache, devices=devices, **given)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_write_the_bytes_of_one(tmp_path: Path, workers: int) -> None:
    one = session(tmp_path / "one").bank(Pictures(90, BAD))
    two = session(tmp_path / "two", 2, workers=workers).bank(Pictures(90, BAD))
    assert [row for row, _, _ in two.skipped] == sorted(BAD)
    assert files_of(two) == files_of(one)


def test_spawned_processes_write_them_too(tmp_path: Path, spawned: None) -> None:
    one = session(tmp_path / "one").features(Pictures(40), "gram")
    two = session(tmp_path / "two", 2).features(Pictures(40), "gram")
    assert files_of(two) == files_of(one)


def test_more_processes_than_batches_and_a_clock_over_all(tmp_path: Path) -> None:
    made = session(tmp_path / "two", 2)
    assert files_of(made.bank(Pictures(5))) == files_of(session(tmp_path / "one").bank(Pictures(5)))
    assert {"decode", "network", "write"} <= set(made.clock.seconds)


@pytest.mark.parametrize("detector", ["gram", "mcdropout:p=0.5+msp", "odin+msp", "multimahalanobis", "bats+energy"])
def test_probes_and_input_stages_score_the_same(tmp_path: Path, detector: str) -> None:
    torch.ones(1, requires_grad=True).sum().backward()  # this process may have taken gradients
    found = []
    for devices in (1, 2):
        made = session(tmp_path / str(devices), devices)
        fitted = made.fit([detector], Pictures(120))
        found.append(made.scores(fitted, Pictures(40, {9: b""}))[detector])
        banks = sorted((tmp_path / str(devices) / "banks").glob("*/h.npy"))
        found.append([path.parent.name for path in banks])
    assert found[1] == found[3]
    np.testing.assert_array_equal(found[0], found[2])
    assert np.isnan(found[0]).sum() == 1


class Dying(Pictures):
    """Reading image 60 ends the process that runs the network, once it has done a batch."""

    def read(self, i: int) -> bytes:
        if i == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i)


def test_a_killed_process_costs_its_share_alone(tmp_path: Path) -> None:
    whole = session(tmp_path / "one").bank(Pictures(90, BAD))
    with pytest.raises(InputError, match=r"process 2 of 2 \(cpu\) ended by signal 9 .*, and \d+ images are missing"):
        session(tmp_path / "two", 2).bank(Dying(90, BAD))
    (partial,) = tmp_path.glob("two/banks/*.partial")
    done = np.load(partial / "status.npy") != 0
    assert done[:48].all()
    assert not done[56:].any()

    class NotAgain(Pictures):
        def read(self, i: int) -> bytes:
            assert not done[i], f"image {i} is decoded again"
            return super().read(i)

    assert files_of(session(tmp_path / "two").bank(NotAgain(90, BAD))) == files_of(whole)


class Interrupted(BaseException):
    """As Ctrl-C: not an image's fault."""


def test_one_device_goes_on_for_two_and_two_for_one(tmp_path: Path) -> None:
    class Stopping(Pictures):
        def read(self, i: int) -> bytes:
            if i == 30:
                raise Interrupted
            return super().read(i)

    whole = session(tmp_path / "one").bank(Pictures(90, BAD))
    with pytest.raises(Interrupted):
        session(tmp_path / "two").bank(Stopping(90, BAD))
    assert files_of(session(tmp_path / "two", 2, batch_size=5).bank(Pictures(90, BAD))) == files_of(whole)


def test_a_caller_who_is_killed_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes notice that who listens is gone."""
    monkeypatch.setattr(processes, "_CHECK", 0.2)
    caller = multiprocessing.get_context("fork").Process(target=_slow, args=(tmp_path,))
    caller.start()
    status = _wait_for(lambda: next(tmp_path.glob("banks/*.partial/status.npy"), None))
    _wait_for(lambda: np.count_nonzero(np.load(status)))
    caller.kill()
    caller.join()
    time.sleep(1)
    before = np.count_nonzero(np.load(status))
    time.sleep(1)
    assert np.count_nonzero(np.load(status)) == before < 400


def _slow(cache: Path) -> None:
    session(cache, 2).bank(Pictures(400, delay=0.05))


def _wait_for(what: Callable[[], Any]) -> Any:
    last = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < last
        time.sleep(0.02)
    return found


def test_what_a_process_raises_is_raised_here(tmp_path: Path) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * 1e6

    class Broken(Pictures):
        def name(self, i: int) -> str:
            raise KeyError(f"no name {i}")

    large = Classifier(Large(), TINY_TRANSFORM, head="none")
    with pytest.raises(InputError, match="the largest float16"):
        Session(large, cache=tmp_path, devices=2, workers=0, batch_size=8, dtype="float16").bank(Pictures(40))
    with pytest.raises(RuntimeError, match=r"(?s)in a process on cpu:.*KeyError: .no name"):
        session(tmp_path, 2).bank(Broken(40, {20: b""}))


def test_what_cannot_be_sent_is_one_line(tmp_path: Path, spawned: None) -> None:
    class Local(Pictures):
        pass

    with pytest.raises(InputError, match=r"cannot be sent to another process .*devices=1") as refused:
        session(tmp_path, 2).bank(Local(40))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("devices", [0, -1, "many", 1.5, True, None])
def test_what_is_not_a_number_of_devices_is_refused(devices: object) -> None:
    with pytest.raises(InputError, match=f"devices={devices} is not a number of devices: .*1 or more, auto"):
        Session(tiny_net(), devices=devices)


def test_more_devices_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"devices=999, but here: \d+ cores; give at most"):
        session(tmp_path, 999).bank(Pictures(4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="devices=3, but here: 2 GPUs"):
        places.places_of(torch.device("cuda:0"), 3, None)
    with pytest.raises(InputError, match="device 'cuda:1' is a single device"):
        places.places_of(torch.device("cuda:1"), 2, None)
    with pytest.raises(InputError, match="but here: 1 device of type mps"):
        places.places_of(torch.device("mps"), 2, None)


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two sockets of two cores with two threads each, numbered as Linux numbers them."""
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu // 2 % 2}\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    for node, cpus in enumerate(("0-1,4-5\n", "2-3,6-7\n", "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}/cpulist").write_text(cpus)
    monkeypatch.setattr(places, "_CPUS", tmp_path)
    monkeypatch.setattr(places, "_NODES", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    cpu = torch.device("cpu")
    assert [p.cores for p in places.places_of(cpu, "auto", None)] == [(0, 4, 1, 5), (2, 6, 3, 7)]
    four = places.places_of(cpu, 4, 9)
    assert [p.cores for p in four] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert {(p.threads, p.workers, p.device) for p in four} == {(1, 2, "cpu")}
    assert [p.workers for p in places.places_of(cpu, 2, 0)] == [0, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cards = places.places_of(torch.device("cuda:0"), "auto", None)
    assert [(p.device, p.threads, p.workers, p.cores) for p in cards] == [("cuda:0", 2, 4, ()), ("cuda:1", 2, 4, ())]
    assert [p.device for p in places.places_of(torch.device("cuda:1"), "auto", None)] == ["cuda:1"]


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from test_devices import BAD, Pictures, session
from nescio.cli import main
from nescio.core.errors import InputError

torch.set_num_threads(1)
made = session(sys.argv[1], "torchrun")
bank = made.bank(Pictures(90, BAD))
again = made.bank(Pictures(90, BAD))
assert again is bank or bank.path == again.path
gram = made.features(Pictures(30), "gram")
try:
    session(sys.argv[1], "torchrun", max_bad=0).bank(Pictures(90, BAD))
except InputError as e:
    assert "4 of 90" in str(e)
print(dist.get_rank(), bank.path, len(bank), len(gram))
"""


def torchrun(*command: str, cwd: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    chain = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    }
    return subprocess.run(
        [*chain, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_two_processes_of_torchrun_write_one_bank(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun("script.py", "cache", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.split())
    one = session(tmp_path / "one")
    bank = one.bank(Pictures(90, BAD))
    made = {path.name: path for path in (tmp_path / "cache/banks").iterdir() if path.is_dir()}
    assert files_of(bank) == {p.name: p.read_bytes() for p in made[bank.path.name].iterdir()}
    gram = one.features(Pictures(30), "gram")
    assert files_of(gram) == {p.name: p.read_bytes() for p in made[gram.path.name].iterdir()}
    assert done.stdout.count(" 86 30") == 2, lines


def test_torchrun_is_asked_for_where_it_has_not_started_anything(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="devices='torchrun' is for processes that torchrun starts"):
        session(tmp_path, "torchrun").bank(Pictures(4))


@pytest.fixture
def bench_words(working_folder: Path, make_folder: Callable[..., Path]) -> list[str]:
    """A command that makes banks for two passes, one of which needs a fitted detector."""
    for name, seed in (("train", 0), ("test", 40), ("other", 900)):
        make_folder(name, per_class=20, classes=("a", "b", "c", "d"), seed=seed)
    model = "bench --model mine:make --weights w.safetensors --transform crop=8 --batch-size 8"
    options = "--train train --id test --ood o=other --detector odin+react+energy --detector gram --cache cache"
    return [*model.split(), *options.split()]


def banks_in(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.glob("banks/*/*")}


def test_commands_take_devices_and_run_under_torchrun(
    working_folder: Path, bench_words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = CliRunner().invoke(main, bench_words)
    assert alone.exit_code == 0, alone.output
    banks = banks_in(working_folder / "cache")
    assert len({Path(name).parent for name in banks}) == 5  # train; test and other by both passes
    two = CliRunner().invoke(main, [*bench_words[:-1], "two", "--devices", "2"])
    assert two.stdout == alone.stdout
    assert banks_in(working_folder / "two") == banks
    done = torchrun("-m", "nescio", *bench_words[:-1], "many", "--out", "results", cwd=working_folder)
    assert done.returncode == 0, done.stderr
    assert banks_in(working_folder / "many") == banks
    assert done.stdout.count("AUROC") == alone.stdout.count("AUROC")  # one of the two reports
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = CliRunner().invoke(main, [*bench_words, "--devices", "2"])
    assert "torchrun has started the processes already; drop --devices 2" in refused.stderr


@pytest.mark.parametrize(
    ("devices", "message"), [("0", "1 or more"), ("-1", "1 or more"), ("many", "1 or more"), ("99", "but here: ")]
)
def test_commands_refuse_what_is_not_a_number_of_devices(bench_words: list[str], devices: str, message: str) -> None:
    refused = CliRunner().invoke(main, [*bench_words, "--devices", devices])
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"nescio: devices={devices}")
    assert message in line
