from __future__ import annotations

import csv
import json
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

from conftest import TINY_TRANSFORM, Pictures, TinyNet, encoded, picture, tiny_net
from nescio.calibration.posterior import ProxyCalibrator
from nescio.core.errors import InputError
from nescio.data import Source, open_source
from nescio.data.decode import decode
from nescio.data.workers import KILLED
from nescio.deploy import Deployed, fit, load, score_images
from nescio.deploy.file import fingerprint
from nescio.deploy.scoring import NOT_FINITE
from nescio.deploy.shards import Tally
from nescio.models import Classifier
from nescio.run.session import Session

COLUMNS = ["path", "label", "probability", "score", "p_value", "accepted", "error"]
BAD = {3: b"", 8: encoded(picture(8))[:70], 20: b"not an image"}


def made(detector: str = "msp", **options: object) -> Deployed:
    classifier = Classifier(tiny_net(), TINY_TRANSFORM, name="tiny", classes=["ant", "bee", "cat", "dog"])
    return fit(
        Session(classifier, workers=0, progress=False), detector, calibrate=Calibrating(40), accept=0.8, **options
    )


class Calibrating(Pictures):
    def read(self, i: int) -> bytes:
        return super().read(i + 5000)


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    return made()


@pytest.fixture(scope="module")
def with_input_stage() -> Deployed:
    return made("odin:eps=0.05,T=10+msp")


def table(folder: Path) -> pa.Table:
    """The folder as anybody opens it."""
    return pq.read_table(folder)


def logits(source: Source, rows: list[int]) -> torch.Tensor:
    images = torch.stack([TINY_TRANSFORM.geometry(decode(source.read(i))) for i in rows])
    with torch.no_grad():
        return tiny_net()(TINY_TRANSFORM.normalise(images))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_holds_the_verdict_or_the_reason(deployed: Deployed, tmp_path: Path, workers: int) -> None:
    source = Pictures(37, BAD)
    done = score_images(deployed, source, tmp_path / "s", part_size=10, batch_size=4, workers=workers, progress=False)
    assert sorted(p.name for p in (tmp_path / "s").glob("*.parquet")) == [
        f"part-0000{k}-of-00004.parquet" for k in range(4)
    ]
    found = table(tmp_path / "s")
    assert found.column_names == COLUMNS
    rows = found.to_pylist()
    assert [r["path"] for r in rows] == [f"picture {i}" for i in range(37)]
    assert {i for i, r in enumerate(rows) if r["error"] is not None} == set(BAD)
    for i in BAD:
        assert [rows[i][name] for name in COLUMNS[1:-1]] == [None] * 5
    assert rows[3]["error"] == "zero bytes"
    good = [i for i in range(37) if i not in BAD]
    probability = logits(source, good).double().softmax(dim=1)
    calibration = np.sort(logits(Calibrating(40), list(range(40))).softmax(dim=1).max(dim=1).values.numpy())
    threshold = calibration[math.floor(0.2 * 41) - 1]
    for i, p in zip(good, probability, strict=True):
        assert rows[i]["label"] == ["ant", "bee", "cat", "dog"][int(p.argmax())]
        assert rows[i]["probability"] == pytest.approx(float(p.max()), abs=1e-5)
        assert rows[i]["score"] == pytest.approx(float(p.max()), abs=1e-5)
        assert rows[i]["p_value"] == pytest.approx((1 + (calibration <= float(p.max())).sum()) / 41, abs=1.5 / 41)
        assert rows[i]["accepted"] == (float(p.max()) >= threshold - 1e-6)
    accepted = sum(rows[i]["accepted"] for i in good)
    assert 0 < accepted < 34
    assert done.tally == Tally(37, accepted, 34 - accepted, 3, 4)
    assert done.images == 37


def test_a_detector_with_an_input_stage_makes_its_own_pass(
    with_input_stage: Deployed, deployed: Deployed, tmp_path: Path
) -> None:
    source = Pictures(11)
    score_images(with_input_stage, source, tmp_path / "odin", part_size=6, workers=0, progress=False)
    score_images(deployed, source, tmp_path / "msp", part_size=6, workers=0, progress=False)
    odin, msp = table(tmp_path / "odin"), table(tmp_path / "msp")
    expected = with_input_stage([source.read(i) for i in range(11)])
    assert odin["score"].to_pylist() == pytest.approx([v.score for v in expected], rel=1e-5)
    assert odin["probability"].to_pylist() == pytest.approx(msp["probability"].to_pylist())
    assert min(abs(a - b) for a, b in zip(odin["score"].to_pylist(), msp["score"].to_pylist(), strict=True)) > 0.01


def test_p_id_has_a_column_where_there_is_one(tmp_path: Path) -> None:
    deployed = made()
    ood = torch.linspace(0.27, 0.29, 20)
    deployed.calibrator = ProxyCalibrator.fit(ood + 0.01, ood, proxy="noise")
    score_images(deployed, Pictures(5), tmp_path / "s", workers=0, progress=False)
    found = table(tmp_path / "s")
    assert found.column_names == [*COLUMNS[:5], "p_id", *COLUMNS[5:]]
    assert found["p_id"].to_pylist() == pytest.approx(
        [v.p_id for v in deployed([Pictures(5).read(i) for i in range(5)])]
    )


def test_features_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    class Overflows(TinyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.where(x.mean(dim=(1, 2, 3), keepdim=True) > 0.15, torch.inf, x))

    deployed, network = made(), Overflows()
    network.load_state_dict(tiny_net().state_dict())
    deployed.session = Session(Classifier(network.eval(), TINY_TRANSFORM, name="tiny"), workers=0, progress=False)
    dark = encoded(picture(1).point(lambda v: v // 8))
    score_images(deployed, Pictures(4, {1: dark}), tmp_path / "s", workers=0, progress=False)
    rows = table(tmp_path / "s").to_pylist()
    assert [r["error"] for r in rows if r["path"] != "picture 1"] == [NOT_FINITE] * 3
    assert rows[1]["error"] is None
    assert rows[1]["score"] is not None
    assert rows[0] == dict.fromkeys(COLUMNS) | {"path": "picture 0", "error": NOT_FINITE}


def test_one_percent_of_corrupt_images_costs_no_other(
    deployed: Deployed, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder("set", per_class=100)
    corrupt = {"a/7.png": b"", "b/50.png": encoded(picture(1))[:90]}
    for name, data in corrupt.items():
        (folder / name).write_bytes(data)
    done = score_images(deployed, folder, tmp_path / "s", part_size=64, workers=2, progress=False)
    assert (done.tally.images, done.tally.unreadable) == (200, 2)
    with (tmp_path / "s/_errors.csv").open(newline="") as file:
        listed = {r["path"]: r["error"] for r in csv.DictReader(file)}
    assert set(listed) == {str(folder / name) for name in corrupt}
    assert all(listed.values())
    found = table(tmp_path / "s")
    assert len(found) - found["score"].null_count == 198
    assert found["path"].to_pylist() == [open_source(folder).name(i) for i in range(200)]


def test_unreadable_images_that_are_called_like_formulas_are_listed_as_text(
    deployed: Deployed, make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder("=1+1")
    (tmp_path / "=1+1/a/0.png").write_bytes(b"")
    score_images(deployed, "=1+1", tmp_path / "s", workers=0, progress=False)
    assert (tmp_path / "s/_errors.csv").read_text() == "path,error\n'=1+1/a/0.png,zero bytes\n"
    assert "=1+1/a/0.png" in table(tmp_path / "s")["path"].to_pylist()  # parquet keeps the name


def _score_in_a_process(deployed: Deployed, out: Path, delay: float, workers: int) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # its decoders begin as those of the command line do
    source = Pictures(72, BAD, delay)
    score_images(deployed, source, out, part_size=6, batch_size=4, workers=workers, progress=False)


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.BaseContext:
    """Processes that begin at once: what they need is imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nescio.deploy.scoring", "torch.fx", "filelock", "pytest", "pandas"])
    return context


@pytest.fixture(scope="module")
def uninterrupted(
    deployed: Deployed, processes: multiprocessing.context.BaseContext, tmp_path_factory: pytest.TempPathFactory
) -> pa.Table:
    out = tmp_path_factory.mktemp("uninterrupted") / "s"
    process = processes.Process(target=_score_in_a_process, args=(deployed, out, 0, 0))
    process.start()
    process.join()
    return table(out)


@pytest.mark.parametrize("draw", range(10))
def test_killed_at_any_moment_no_row_is_lost_or_repeated(
    deployed: Deployed,
    processes: multiprocessing.context.BaseContext,
    uninterrupted: pa.Table,
    tmp_path: Path,
    draw: int,
) -> None:
    """The moment: so many parts are there, and some time more, up to what two parts take."""
    rng, out, workers = np.random.default_rng(draw), tmp_path / "s", int(draw >= 8)
    parts, more = rng.integers(12), rng.uniform(0, 0.12)
    process = processes.Process(target=_score_in_a_process, args=(deployed, out, 0.01, workers))
    process.start()
    while len(list(out.glob("part-*"))) < parts and process.is_alive():
        time.sleep(0.002)
    time.sleep(more)
    with suppress(ProcessLookupError):  # of the last part, some moments lie behind the end
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*")}
    assert len(before) >= parts
    again = processes.Process(target=_score_in_a_process, args=(deployed, out, 0, workers))
    again.start()
    again.join()
    assert again.exitcode == 0
    assert table(out).equals(uninterrupted)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert not list(out.glob(".*.partial"))


def test_a_second_process_waits_for_the_first(
    deployed: Deployed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "s").mkdir()
    done: list[object] = []

    def score() -> None:
        done.append(score_images(deployed, Pictures(4), tmp_path / "s", workers=0, progress=False))

    with caplog.at_level(logging.INFO, logger="nescio"), FileLock(tmp_path / "s/.lock"):
        second = threading.Thread(target=score)
        second.start()
        while "another process is writing to" not in caplog.text and second.is_alive():
            time.sleep(0.01)
        assert not done
    second.join()
    assert len(table(tmp_path / "s")) == 4


@pytest.mark.parametrize("damage", [b"", b"PAR1 but nothing more", None])
def test_a_damaged_part_is_made_again_and_strays_go(
    deployed: Deployed, tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "s"
    first = score_images(deployed, Pictures(12), out, part_size=4, workers=0, progress=False)
    whole, part = table(out), out / "part-00001-of-00003.parquet"
    if damage is None:
        pq.write_table(pq.read_table(part).slice(1), part)
    else:
        part.write_bytes(damage)
    (out / ".part-00002-of-00003.parquet.77.partial").write_bytes(b"half")
    again = score_images(deployed, Pictures(12), out, workers=0, progress=False)
    assert "part-00001-of-00003.parquet is damaged" in caplog.text
    assert (again.images, again.tally) == (4, first.tally)
    assert table(out).equals(whole)
    assert not list(out.glob(".*.partial"))


def test_another_job_is_refused_in_the_same_folder(
    deployed: Deployed, with_input_stage: Deployed, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    images, out = make_folder("set"), tmp_path / "s"

    def score(judge: Deployed = deployed, given: object = images, **options: object) -> int:
        return score_images(judge, given, out, workers=0, progress=False, **options).images

    assert score(part_size=4) == 6
    assert score() == 0
    with pytest.raises(InputError, match="another detector"):
        score(with_input_stage)
    with pytest.raises(InputError, match=rf"other images.*\({images}\); give a new folder"):
        score(given=make_folder("other"))
    with pytest.raises(InputError, match="other images"):
        score(given=[images, images])
    with pytest.raises(InputError, match="another number of images per part"):
        score(part_size=5)
    (images / "a/0.png").write_bytes(encoded(picture(77)))
    with pytest.raises(InputError, match="or some images have changed"):
        score()
    (out / "_manifest.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        score()


def test_folders_that_cannot_take_scores_are_refused(
    deployed: Deployed, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_folder("set")
    before = sorted(other.rglob("*"))
    (tmp_path / "file").write_text("in the way")
    for out, told in (
        (other, "has other files than scores"),
        (tmp_path / "file", "cannot be written"),
        (tmp_path / "file/s", "cannot be written"),
        ("s3://bucket/s", "give a path on this machine"),
    ):
        with pytest.raises(InputError, match=told):
            score_images(deployed, Pictures(3), out, workers=0, progress=False)
    assert sorted(other.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    for images, told in ((tmp_path / "empty", "it is empty"), ([], "no images were given"), ("none", "no such file")):
        with pytest.raises(InputError, match=told):
            score_images(deployed, images, tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()
    with pytest.raises(InputError, match="did you mean 'local'"):
        score_images(deployed, Pictures(3), tmp_path / "s", on="locl")
    with pytest.raises(InputError, match="part_size=0"):
        score_images(deployed, Pictures(3), tmp_path / "s", part_size=0)


def test_a_part_that_cannot_be_written_stops_the_job_with_a_line(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        with pytest.raises(InputError, match=r"No space left.*continues where it stopped"):
            score_images(deployed, Pictures(3), tmp_path / "s", workers=0, progress=False)
    assert score_images(deployed, Pictures(3), tmp_path / "s", workers=0, progress=False).images == 3


class Deadly(Pictures):
    def read(self, i: int) -> bytes:
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i)


def test_an_image_that_ends_its_decoder_costs_no_other(deployed: Deployed, tmp_path: Path) -> None:
    for source, out in ((Pictures(12, {5: b""}), "s"), (Deadly(12), "deadly")):
        score_images(deployed, source, tmp_path / out, part_size=4, batch_size=2, workers=2, progress=False)
    rows, others = table(tmp_path / "deadly").to_pylist(), table(tmp_path / "s").to_pylist()
    assert rows[5] == others[5] | {"error": KILLED}
    assert rows[:5] + rows[6:] == others[:5] + others[6:]


class Away(Pictures):
    def read(self, i: int) -> bytes:
        if i == 9:
            raise InputError("the store does not answer")
        return super().read(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_that_is_away_leaves_no_row_behind(deployed: Deployed, tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError, match=r"^the store does not answer$"):
        score_images(deployed, Away(12), tmp_path / "s", part_size=4, workers=workers, progress=False)
    assert [p.name for p in (tmp_path / "s").glob("*.parquet")] != []
    assert score_images(deployed, Pictures(12), tmp_path / "s", workers=0, progress=False).images == 4


def test_several_inputs_here_and_elsewhere_in_the_order_given(
    deployed: Deployed, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    here = make_folder("here", per_class=2, classes=("x", "y", "z"))
    odd = os.fsdecode(os.fsencode(here / "x") + b"/\xff.png")
    picture(5).save(odd)
    store = fsspec.filesystem("memory")
    store.pipe("/scoring/a/1.png", encoded(picture(1)))
    inputs = [str(here), "memory://scoring", here / "y/0.png"]
    try:
        score_images(deployed, inputs, tmp_path / "s", part_size=4, workers=0, progress=False)
    finally:
        store.rm("/scoring", recursive=True)
    names = [f"{here}/{n}.png" for n in ("x/0", "x/1", r"x/\udcff", "y/0", "y/1", "z/0", "z/1")]
    found = table(tmp_path / "s")
    assert found["path"].to_pylist() == [*names, "memory:///scoring/a/1.png", f"{here}/y/0.png"]
    assert found["score"].to_pylist()[3] == pytest.approx(found["score"].to_pylist()[8], rel=1e-6)
    assert found["error"].null_count == 9
    assert json.loads((tmp_path / "s/_manifest.json").read_text())["inputs"] == [str(i) for i in inputs]


def test_the_fingerprint_is_that_of_what_verdicts_follow_from(deployed: Deployed, tmp_path: Path) -> None:
    prints = []
    for embedded in (True, False):
        deployed.save(tmp_path / "d.nescio", weights=embedded)
        weights = None if embedded else tmp_path / "w.pt"
        torch.save(tiny_net().state_dict(), tmp_path / "w.pt")
        prints.append(fingerprint(load(tmp_path / "d.nescio", model=tiny_net, weights=weights)))
    assert set(prints) == {fingerprint(deployed)}
    looser = made()
    looser.calibration = type(looser.calibration).fit(np.arange(40) / 40, accept=0.9)
    assert fingerprint(looser) not in prints
