"""``nescio score`` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from conftest import TINY_TRANSFORM, Pictures, encoded, picture, tiny_net
from nescio.cli import main
from nescio.core.errors import InputError
from nescio.core.features import Features
from nescio.core.stage import Network
from nescio.deploy import Deployed, ScoringDone, fit, load, score_images, scoring
from nescio.models import Classifier
from nescio.run.passes import Pass
from nescio.run.session import Session

TESTS = Path(__file__).parents[1]


@pytest.fixture
def deployed(working_folder: Path, make_folder: Callable[..., Path]) -> Deployed:
    """A working folder with a detector in a file, new images, and the user's module."""
    classifier = Classifier(tiny_net(), TINY_TRANSFORM, name="mine:make", classes=["ant", "bee", "cat", "dog"])
    calibrate = make_folder("calibrate", per_class=20, seed=5000)
    made = fit(Session(classifier, workers=0, progress=False), "energy", calibrate=calibrate, accept=0.5)
    made.save(working_folder / "my.nescio")
    make_folder("new", per_class=6)
    return made


def score(*arguments: str, model: str | None = "mine:make") -> Result:
    named = ["--model", model] if model else []
    return CliRunner().invoke(main, ["score", *arguments, *named], catch_exceptions=False)


def test_a_few_images_are_printed(deployed: Deployed) -> None:
    Path("new/a/[bold]0.png").write_bytes(encoded(picture(3)))
    Path("new/b/2.png").write_bytes(b"")
    result = score("my.nescio", "new/a", "new/b/2.png")
    assert result.exit_code == 1, result.output  # one of the files that were named cannot be read
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
    assert "12 of 12 images have scores already" in again.output
    assert "images/s" not in again.output
    deployed.save("other.nescio", weights=False)
    save_file(tiny_net().state_dict(), "w.safetensors")
    same = score("other.nescio", *arguments[1:], "--weights", "w.safetensors")
    assert "12 of 12 images have scores already" in same.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["my.nescio", *["new"] * 9], "too many to print"),
        (["my.nescio", "nowhere"], "no such file or folder: nowhere"),
        (["none.nescio", "new"], "no such file: none.nescio"),
        (
            ["my.nescio", "new", "-o", "my.nescio"],
            "results cannot be written to my.nescio: it is a file",
        ),
        (["my.nescio", "new", "-o", "new"], "new has other files than scores"),
        (["my.nescio", "new", "-o", "s", "--on", "spark"], "on=spark is not one of the choices"),
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
    assert "its network is 'mine:make'" in result.output
    assert "name the network yourself: model= (--model)" in result.output


def test_a_proxy_adds_p_id(deployed: Deployed) -> None:
    from nescio.calibration.posterior import ProxyCalibrator

    ood = torch.linspace(0, 1, 20)
    deployed.calibrator = ProxyCalibrator.fit(ood + 1, ood, proxy="noise")
    deployed.save("my.nescio")
    result = score("my.nescio", "new/a/0.png")
    (verdict,) = deployed("new/a/0.png")
    assert "P(ID | image)" in result.output
    assert f"{verdict.p_id:.3f}" in result.output


class Slow:
    """Images that take their time. Nobody gets one before so many processes ask for some."""

    classes = None

    def __init__(self, n: int, traces: Path, together: int = 1, delay: float = 0.0) -> None:
        self.n, self.traces, self.together, self.delay = n, traces, together, delay
        self.labels = np.full(n, -1)
        self.identity = self.stamp = str(n)

    def __len__(self) -> int:
        return self.n

    def name(self, i: int) -> str:
        return f"picture {i}"

    def read(self, i: int) -> bytes:
        (self.traces / str(os.getpid())).touch()
        deadline = time.monotonic() + 600
        while len(list(self.traces.iterdir())) < self.together:
            if time.monotonic() > deadline:
                raise InputError("one process is left alone with the work")
            time.sleep(0.01)
        time.sleep(self.delay)
        return b"" if i == 7 else encoded(picture(i))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of this machine with two CPUs, which outlives those who use it."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'nescio[ray]'")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield context.address_info["address"]
        ray.shutdown()


def on_ray(deployed: Deployed, images: Slow, out: Path) -> ScoringDone:
    return score_images(deployed, images, out, part_size=6, batch_size=4, on="ray", progress=False)


KILLED = """
import sys, ray
from pathlib import Path
from nescio.deploy import load
from nescio.run.session import Session
from conftest import tiny_net
from test_score import Slow, on_ray
ray.init(sys.argv[1], log_to_driver=False)
images = Slow(60, Path("traces").absolute(), together=2, delay=0.1)
on_ray(load("my.nescio", model=tiny_net), images, Path("ray").absolute())
"""


def test_two_ray_workers_share_a_job_that_goes_on_when_it_was_killed(cluster: str, deployed: Deployed) -> None:
    deployed = load("my.nescio", model=tiny_net)
    traces, out = Path("traces").absolute(), Path("ray").absolute()
    traces.mkdir()
    score_images(deployed, Slow(60, traces), "local", part_size=6, batch_size=4, workers=0, progress=False)
    (traces / str(os.getpid())).unlink()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "e2e"), *sys.path])}
    driver = subprocess.Popen([sys.executable, "-c", KILLED, cluster], env=environment)
    while len(list(out.glob("part-*"))) < 3 and driver.poll() is None:
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert len(list(traces.iterdir())) == 2
    done = on_ray(deployed, Slow(60, traces), out)
    assert done.images <= 42
    assert done.tally.unreadable == 1
    assert_same(pq.read_table(out), pq.read_table("local"))


def test_ray_workers_write_the_bank_of_one_device(cluster: str, deployed: Deployed) -> None:
    bad = {3: b"", 57: b"no image"}
    banks = []
    for devices in (1, "ray"):
        classifier = Classifier(tiny_net(), TINY_TRANSFORM)
        session = Session(classifier, cache=f"{devices}", devices=devices, batch_size=8, workers=0, max_bad=0.5)
        bank = session.bank(Pictures(90, bad))
        banks.append({path.name: path.read_bytes() for path in bank.path.iterdir()})
        session.dtype = "float16"
        with pytest.raises(InputError, match="the largest float16"):
            session.bank(Pictures(40), Pass("large", _large))
    assert banks[1] == banks[0]


def _large(network: Network, x: torch.Tensor) -> Features:
    f = network(x)
    return f.with_h(f.h + 1e6)


def test_what_stops_a_ray_worker_is_said_by_the_driver(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cluster: the worker as Ray runs it."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'nescio[ray]'")
    from nescio.deploy.on_ray import _Worker

    class Away:
        def make(self, parts: list[int]) -> None:
            if parts == [3]:
                raise InputError("the store does not answer")

    monkeypatch.setattr(ray, "get", lambda packed: packed)
    buffer = io.BytesIO()
    torch.save(Away(), buffer, pickle_module=ray.cloudpickle)
    worker = _Worker(buffer.getvalue(), "cpu", [])
    assert worker({"item": 2}) == {"item": 2, "error": ""}
    assert worker({"item": 3}) == {"item": 3, "error": "the store does not answer"}
    Path("gone.py").write_text("class Network: pass\n")
    monkeypatch.syspath_prepend(".")
    import gone

    buffer = io.BytesIO()
    torch.save(gone.Network(), buffer)
    monkeypatch.delitem(sys.modules, "gone")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != "."])
    Path("gone.py").unlink()
    assert "No module named 'gone'" in _Worker(buffer.getvalue(), "cpu", [])({"item": 0})["error"]


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    """Up to what the number of threads does to the last bits."""
    assert found.schema == expected.schema
    for name in found.column_names:
        values = found[name].to_pylist()
        if pa.types.is_floating(found.schema.field(name).type):
            assert [v if v is None else pytest.approx(v, rel=1e-4) for v in values] == expected[name].to_pylist()
        else:
            assert values == expected[name].to_pylist()


def test_one_file_holds_the_rows_that_a_folder_would(deployed: Deployed) -> None:
    Path("new/b/2.png").write_bytes(b"")
    Path("new/b/=1+1.png").write_bytes(encoded(picture(9)))
    result = score("my.nescio", "new/**/*.png", "-o", "folder", "--workers", "0")
    assert result.exit_code == 0, result.output
    rows = pq.read_table("folder").to_pylist()
    assert len(rows) == 13
    for name in ("sub/s.parquet", "s.csv", "s.JSON"):
        result = score("my.nescio", "new/**/*.png", "-o", name, "--batch-size", "5", "--workers", "0")
        assert result.exit_code == 0, result.output
        assert f"1 unreadable (listed in {name})" in result.output
        assert f"wrote {name}" in result.output
    assert [list(r) for r in pq.read_table("sub/s.parquet").to_pylist()] == [list(r) for r in rows]
    kept = json.loads(Path("s.JSON").read_text())
    with Path("s.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for row, in_json, line in zip(rows, kept, lines, strict=True):
        assert [row[k] for k in ("path", "label", "accepted", "error")] == [
            in_json[k] for k in ("path", "label", "accepted", "error")
        ]
        assert line["path"] == row["path"]
        assert line["accepted"] == {True: "true", False: "false", None: ""}[row["accepted"]]
        if row["score"] is not None:
            assert float(line["score"]) == in_json["score"] == pytest.approx(row["score"], rel=1e-5)
    assert not list(Path().rglob("*.partial"))


def test_one_file_is_whole_or_not_there(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("s.csv").write_text("as it was")
    monkeypatch.setattr(scoring, "MOST_IN_ONE_FILE", 11)
    result = score("my.nescio", "new", "-o", "s.csv")
    assert result.exit_code == 2
    assert "12 images are too many for one file" in result.output
    monkeypatch.setattr(scoring, "MOST_IN_ONE_FILE", 12)
    result = score("my.nescio", "new", "-o", "s.csv", "--part-size", "3")
    assert result.exit_code == 2
    assert "drop on= (--on) and part_size= (--part-size)" in result.output
    rows = scoring.verdict_rows

    def interrupted(*arguments: object) -> Iterator[pa.RecordBatch]:
        yield next(rows(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "verdict_rows", interrupted)
    assert score("my.nescio", "new", "-o", "s.csv", "--batch-size", "5", "--workers", "0").exit_code == 130
    assert Path("s.csv").read_text() == "as it was"
    assert not list(Path().glob(".*partial"))
