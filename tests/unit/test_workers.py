"""Images that end the process which decodes them, and bombs: one image is lost, and neither the run nor the machine."""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import signal
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import TINY_TRANSFORM, Pictures, encoded, picture
from nescio.core.errors import InputError
from nescio.data import open_source
from nescio.data.decode import NO_MEMORY
from nescio.data.loader import read_batches
from nescio.data.workers import KILLED, in_order
from nescio.evaluation.suites.check import check_sets
from nescio.models import Classifier
from nescio.run.session import Session
from nescio.training import Hardware
from nescio.training.images import Images, held_side

KILLERS = {3: signal.SIGKILL, 8: signal.SIGSEGV, 21: signal.SIGABRT}


class Deadly(Pictures):
    """Some images end whoever reads them, ``times`` times."""

    def __init__(self, n: int, folder: Path, times: int = 1000) -> None:
        super().__init__(n)
        self.folder, self.times = folder, times
        self.parent = os.getpid()

    def read(self, i: int) -> bytes:
        if i in KILLERS:
            assert os.getpid() != self.parent
            deaths = self.folder / str(i)
            with deaths.open("a") as file:
                file.write(".")
            if deaths.stat().st_size <= self.times:
                faulthandler.disable()  # it would tell of it
                os.kill(os.getpid(), KILLERS[i])
        return super().read(i)


def read(source: Any, workers: int, size: int = 4) -> tuple[list[bytes], dict[int, str]]:
    batches = list(read_batches(source, TINY_TRANSFORM, 0, size, workers))
    assert [b.start for b in batches] == list(range(0, len(source), size))
    pixels = [image.numpy().tobytes() for b in batches if b.images is not None for image in b.images]
    return pixels, {b.start + i: reason for b in batches for i, reason in b.bad}


@pytest.mark.parametrize("workers", [1, 3])
def test_an_image_that_ends_its_process_twice_is_a_bad_one(tmp_path: Path, workers: int) -> None:
    whole, _ = read(Pictures(30), 0)
    pixels, bad = read(Deadly(30, tmp_path), workers)
    assert bad == dict.fromkeys(KILLERS, KILLED)
    assert pixels == [p for i, p in enumerate(whole) if i not in KILLERS]
    assert {(tmp_path / str(i)).stat().st_size for i in KILLERS} == {2}


def test_an_image_whose_process_something_else_ended_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(Deadly(30, tmp_path, times=1), 2) == read(Pictures(30), 0)
    assert "a decoding process ended by signal 9 (Killed); a new one takes over" in caplog.text


def test_processes_killed_at_random_change_nothing() -> None:
    source, rng, killed = Pictures(240, {5: b""}, delay=0.002), np.random.default_rng(0), 0
    expected, got = list(read_batches(source, TINY_TRANSFORM, 0, 4, 0)), []
    for batch in read_batches(source, TINY_TRANSFORM, 0, 4, 2):
        got.append(batch)
        if len(got) % 7 == 0:
            os.kill(rng.choice(psutil.Process().children()).pid, signal.SIGKILL)
            killed += 1
    assert killed == 8
    assert [(b.start, b.good.tolist(), b.bad) for b in got] == [(b.start, b.good.tolist(), b.bad) for b in expected]
    assert all(torch.equal(a.images, b.images) for a, b in zip(got, expected, strict=True))
    assert not multiprocessing.active_children()


def test_a_bank_lists_what_killed_and_never_reads_it_again(classifier: Classifier, tmp_path: Path) -> None:
    source = Deadly(30, tmp_path)
    bank = Session(classifier, cache=tmp_path / "cache", batch_size=4, workers=2, max_bad=0.2, progress=False).bank(
        source
    )
    assert [(row, reason) for row, _, reason in bank.skipped] == [(i, KILLED) for i in KILLERS]
    clean = Session(classifier, cache=tmp_path / "clean", batch_size=4, workers=0, progress=False).bank(Pictures(30))
    rows = [i for i in range(30) if i not in KILLERS]
    torch.testing.assert_close(next(bank.chunks()).h, next(clean.chunks()).h[rows])
    Session(classifier, cache=tmp_path / "cache", workers=2, max_bad=0.2, progress=False).bank(source)
    assert {(tmp_path / str(i)).stat().st_size for i in KILLERS} == {2}


def test_training_loses_two_processes_to_an_image_and_no_more(tmp_path: Path) -> None:
    source, cpu = Deadly(30, tmp_path), torch.device("cpu")
    assert held_side(source, TINY_TRANSFORM, workers=1) == 8
    hardware = Hardware(device="cpu", workers=1, hold=False, max_bad=0.2, progress=False)
    images = Images(source, TINY_TRANSFORM, device=cpu, hardware=hardware)
    parts = [list(range(15)), list(range(15, 30))]
    epochs = [[numbers.tolist() for _, numbers in images.batches(parts)] for _ in range(3)]
    assert epochs == [[[i for i in part if i not in KILLERS] for part in parts]] * 3
    assert {(tmp_path / str(i)).stat().st_size for i in KILLERS} == {4}
    with pytest.raises(InputError, match=f"2 images in a row cannot be read; the first: {KILLED}"):
        list(images.batches([[3, 8]]))


def test_a_check_of_a_set_goes_on(tmp_path: Path) -> None:
    found = check_sets({"id": Deadly(30, tmp_path)}, workers=2, progress=False)[0]
    assert [(name, reason) for name, reason in found.bad] == [(f"picture {i}", KILLED) for i in KILLERS]


class Ends:
    """Ends its process before any image."""

    def __call__(self, *_: object) -> int:
        os._exit(7)


class Broken:
    """Is at fault itself."""

    def __call__(self, *_: object) -> int:
        raise KeyError("here")


def test_processes_that_never_get_to_an_image_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"3 decoding processes ended with code 7 .* \(--workers 0\)"):
        list(in_order(Ends(), 5, 2))
    with pytest.raises(RuntimeError, match="KeyError: 'here'"):
        list(in_order(Broken(), 5, 2))
    assert list(in_order(Ends(), 0, 2)) == []


def _reads_and_waits(folder: Path) -> None:
    for _ in read_batches(Pictures(4000), TINY_TRANSFORM, 0, 4, 2):
        (folder / "begun").touch()
        time.sleep(60)


def test_processes_end_with_the_one_that_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nescio.data.workers._CHECK", 0.2)
    process = multiprocessing.get_context("fork").Process(target=_reads_and_waits, args=(tmp_path,))
    process.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    theirs = psutil.Process(process.pid).children()
    assert len(theirs) == 2
    process.kill()
    process.join()
    assert not psutil.wait_procs(theirs, timeout=15)[1]


# Bombs. Each is made small, and what reads it may take little: the peak is that of a process of its own.

ZEROS = 300_000_000
PIECE = bytes(1 << 20)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("a/bomb.png", "w", force_zip64=True) as member:
            for _ in range(ZEROS // len(PIECE)):
                member.write(PIECE)
        archive.writestr("a/good.png", encoded(picture(0)))


def lying_zip_bomb(path: Path) -> None:
    """Both places that tell the size say 100 bytes."""
    zip_bomb(path)
    data, size = bytearray(path.read_bytes()), ZEROS // len(PIECE) * len(PIECE)
    for told in (struct.pack("<Q", size), struct.pack("<I", size)):
        while (at := data.find(told)) >= 0:
            data[at : at + len(told)] = (100).to_bytes(len(told), "little")
    path.write_bytes(data)


def tar_bomb(path: Path) -> None:
    member = tarfile.TarInfo("a/good.png")
    good = encoded(picture(0))
    member.size = len(good)
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with tarfile.open(path, "w") as archive:
        archive.addfile(member, io.BytesIO(good))
    data = path.read_bytes()[: 512 + (len(good) + 511) // 512 * 512]
    with path.open("wb") as file:
        file.write(data + long_name.tobuf(tarfile.GNU_FORMAT))
        file.truncate(ZEROS)


def dictionary_bomb(path: Path) -> None:
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), pa.array([bytes(5_000_000)]))
    pq.write_table(pa.table({"image": once}), path, compression="zstd", store_schema=False)


def page_bomb(path: Path) -> None:
    table = pa.table({"image": pa.array([bytes(270_000_000), encoded(picture(0))])})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)


def icon_bomb(path: Path) -> None:
    png = encoded(Image.new("L", (12_000, 12_000)))
    path.write_bytes(struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(png), 22) + png)


def canvas_bomb(path: Path) -> None:
    gif = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    at = gif.index(b"\x2c")  # the first frame, far larger than the canvas
    gif[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    path.write_bytes(gif)


def text_bomb(path: Path) -> None:
    """A PNG whose colour profile unpacks to what would fill the memory."""
    png = encoded(picture(0))
    chunk = b"iCCPx\0\0" + zlib.compress(bytes(ZEROS), 1)
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(png[:33] + whole + png[33:])


BOMBS = {
    "set.zip": (zip_bomb, "299,892,736 bytes, above the limit of 268,435,456"),
    "lying.zip": (lying_zip_bomb, "zip member: Bad CRC-32"),
    "dictionary.parquet": (dictionary_bomb, "not an image in a known format"),
    "page.parquet": (page_bomb, "its row group unpacks to more than 20 times its size"),
    "icon.png": (icon_bomb, "not an image in a known format"),
    "canvas.gif": (canvas_bomb, "3600000000 pixels"),
    "text.png": (text_bomb, "Decompressed data too large"),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_bad_images_and_take_little_memory(tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    make(tmp_path / name)
    context = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_read_and_tell, args=(tmp_path / name, theirs))
    process.start()
    theirs.close()
    bad, peak = pipe.recv()
    process.join()
    assert reason in bad[0]
    assert peak < 100 << 20


def _read_and_tell(path: Path, pipe: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins with what this process has now
    before = _peak()
    _, bad = read(open_source(path), workers=0)
    pipe.send((bad, _peak() - before))


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def test_the_good_image_beside_a_bomb_is_read(tmp_path: Path) -> None:
    zip_bomb(tmp_path / "set.zip")
    whole, _ = read(Pictures(1), 0)
    assert read(open_source(tmp_path / "set.zip"), 1)[0] == whole


def test_a_tar_header_cannot_declare_a_name_that_fills_the_memory(tmp_path: Path) -> None:
    tar_bomb(tmp_path / "set.tar")
    with pytest.raises(InputError, match="a header declares 1099511627776 bytes"):
        open_source(tmp_path / "set.tar")


def test_what_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = tarfile.TarInfo("a/bomb.png")
    member.size = 30_000_000
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert len(open_source(tmp_path / "set.tar.gz")) == 1
    monkeypatch.setattr("nescio.data.formats.archive._UNPACKED", 10_000_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with pytest.raises(InputError, match="unpacks to more than 20 times its size"):
        open_source(tmp_path / "set.tar.gz")
    assert not list((tmp_path / "temporary").iterdir())


def test_rows_that_a_parquet_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    columns = {"image": pa.nulls(1_000_000, pa.binary()), "label": pa.array(bytearray(1_000_000), pa.int64())}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="declares 1,000,000 images in "):
        open_source(tmp_path / "a.parquet")


def test_a_process_that_decodes_gets_an_error_where_memory_ends(tmp_path: Path) -> None:
    class Hungry(Pictures):
        def read(self, i: int) -> bytes:
            return bytes(5 << 30) if i == 2 else super().read(i)

    pixels, bad = read(Hungry(6), 1)
    assert bad == {2: NO_MEMORY}
    assert len(pixels) == 5
