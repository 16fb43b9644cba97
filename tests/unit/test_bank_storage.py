"""A bank holds what was written into it, or is written again; disks that are full or closed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import Pictures, read_only, small_disk
from nescio.core.errors import InputError
from nescio.core.needs import Maps
from nescio.models import Classifier
from nescio.run.bank import Bank, DamagedBank
from nescio.run.session import Session

FILES = (
    "checks.npy",
    "h.npy",
    "head.safetensors",
    "label.npy",
    "manifest.json",
    "pred.npy",
    "skipped.csv",
    "status.npy",
)
UNREADABLE = {1: b"", 9: b"no image", 17: b""}
IMAGES = Pictures(20, UNREADABLE)


class Interrupted(BaseException):
    """As Ctrl-C: not an image's fault."""


class Stopping(Pictures):
    def read(self, i: int) -> bytes:
        if i == 18:
            raise Interrupted
        return super().read(i)


def extracted(classifier: Classifier, cache: Path, source: Pictures = IMAGES) -> Bank:
    return Session(classifier, cache=cache, batch_size=4, workers=0, max_bad=0.5).bank(source)


def interrupted(classifier: Classifier, cache: Path) -> Path:
    """A partial bank of 16 images."""
    with pytest.raises(Interrupted):
        extracted(classifier, cache, Stopping(20, UNREADABLE))
    (partial,) = cache.glob("banks/*.partial")
    return partial


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def flip(path: Path, at: float) -> None:
    """Flip a bit, ``at`` in [0, 1) of the way through the file."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1 << (int(at * 80) % 8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_in_a_bank_is_seen(classifier: Classifier, tmp_path: Path, name: str) -> None:
    bank = extracted(classifier, tmp_path)
    before = contents(bank.path)
    assert sorted(before) == list(FILES)
    for at in np.linspace(0, 0.999, 200):
        flip(bank.path / name, at)
        try:
            opened = Bank(bank.path).manifest
        except DamagedBank:
            continue
        finally:
            (bank.path / name).write_bytes(before[name])
        # it is in white space, or in the key, which is compared with the one that is looked for
        assert name == "manifest.json", f"at {at:.1%} of {name}"
        assert opened | {"key": None} == bank.manifest | {"key": None}


@pytest.mark.parametrize("name", [name for name in FILES if name != "skipped.csv"] + ["skipped-0.csv", "skipped-2.csv"])
def test_a_flipped_bit_in_an_interrupted_bank_is_not_sealed(
    classifier: Classifier, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = contents(extracted(classifier, tmp_path / "whole").path)
    partial = interrupted(classifier, tmp_path / "kept")
    for at in (0.3, 0.5, 0.999):
        shutil.copytree(partial, tmp_path / "flipped/banks" / partial.name)
        flip(tmp_path / "flipped/banks" / partial.name / name, at)
        assert contents(extracted(classifier, tmp_path / "flipped").path) == whole, f"at {at:.1%} of {name}"
        shutil.rmtree(tmp_path / "flipped")
    assert "was changed" in caplog.text or "cannot be continued" in caplog.text


def test_only_the_batch_of_a_changed_row_is_computed_again(
    classifier: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    partial = interrupted(classifier, tmp_path)
    h = np.load(partial / "h.npy", mmap_mode="r+")
    h[10] += 1
    h.flush()

    class NotAgain(Pictures):
        def read(self, i: int) -> bytes:
            assert i in (8, 9, 10, 11, 16, 17, 18, 19), f"image {i} is decoded again"
            return super().read(i)

    with caplog.at_level(logging.INFO, logger="nescio"):
        bank = extracted(classifier, tmp_path, NotAgain(20, UNREADABLE))
    assert "was changed: computing 4 images again" in caplog.text
    assert contents(bank.path) == contents(extracted(classifier, tmp_path / "whole").path)
    assert "at image 8 of 20" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"key": 1}', '{"key": {"probes": 1}, "files": {}}', "[" * 100_000, "\udcff"],
    ids=lambda text: text[:20],
)
def test_a_manifest_that_is_none_means_that_the_bank_is_built_again(
    classifier: Classifier, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    bank = extracted(classifier, tmp_path)
    before = contents(bank.path)
    (bank.path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert contents(extracted(classifier, tmp_path).path) == before
    assert "its manifest cannot be read" in caplog.text


def test_a_bank_under_the_name_of_another_is_built_again(
    classifier: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = extracted(classifier, tmp_path), extracted(classifier, tmp_path, Pictures(20))
    before = contents(one.path)
    shutil.rmtree(one.path)
    other.path.rename(one.path)
    assert contents(extracted(classifier, tmp_path).path) == before
    assert "features are not those that its name stands for" in caplog.text


def test_columns_that_nobody_asks_for_are_not_read(classifier: Classifier, tmp_path: Path) -> None:
    def peaks(maps: Maps):
        return [maps.layers[-1].amax((2, 3))]

    both = Session(classifier, cache=tmp_path, workers=0, max_bad=0.5).bank(IMAGES, probes={"peaks": peaks})
    flip(both.path / "peaks.0.npy", 0.999)
    plain = Session(classifier, cache=tmp_path, workers=0, max_bad=0.5).bank(IMAGES)
    assert plain.path == both.path
    assert set(next(plain.chunks()).aux) == set()
    with pytest.raises(DamagedBank, match=r"peaks\.0\.npy has changed"):
        Bank(both.path)


def test_a_bank_that_can_only_be_read_is_read(
    classifier: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank = extracted(classifier, tmp_path)
    with read_only(tmp_path):
        assert extracted(classifier, tmp_path).path == bank.path
        assert caplog.text == ""
        with pytest.raises(InputError, match=r"banks cannot be written: Read-only.*--cache") as refused:
            extracted(classifier, tmp_path, Pictures(5))
    assert "\n" not in str(refused.value)


def test_a_damaged_bank_that_can_only_be_read_is_refused(
    classifier: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank = extracted(classifier, tmp_path)
    flip(bank.path / "h.npy", 0.99)
    with read_only(tmp_path), pytest.raises(InputError, match="--cache"):
        extracted(classifier, tmp_path)
    assert "h.npy has changed" in caplog.text
    assert bank.path.is_dir()


def test_a_disk_too_small_for_a_bank_is_one_line(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 1 << 17):
        with pytest.raises(InputError, match=r"needs 0\.0 GB.*--cache"):
            extracted(classifier, tmp_path / "disk", Pictures(10_000))
        # another program takes the room between that look and the writing
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
        with pytest.raises(InputError, match=r"banks cannot be written: No space left.*--cache"):
            extracted(classifier, tmp_path / "disk", Pictures(10_000))
        assert list((tmp_path / "disk").glob("banks/*.partial")) == []


def test_a_list_of_bad_images_that_fills_the_disk_is_one_line(
    classifier: Classifier, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    class Named(Pictures):
        def name(self, i: int) -> str:
            return f"{i}" * 2000

    with small_disk(tmp_path / "disk", 1 << 17):
        with pytest.raises(InputError, match=r"No space left.*the same command again: it continues"):
            extracted(classifier, tmp_path / "disk", Named(60, dict.fromkeys(range(60), b"")))
        (partial,) = (tmp_path / "disk").glob("banks/*.partial")
        shutil.move(partial.parent, tmp_path / "banks")  # where there is room it goes on
    source = Named(60, dict.fromkeys(range(59), b""))
    bank = Session(classifier, cache=tmp_path, batch_size=4, workers=0, max_bad=1).bank(source)
    assert [row for row, _, _ in bank.skipped] == list(range(59))
