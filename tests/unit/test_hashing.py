"""Files whose contents are remembered: never another file's, and never for nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import read_only
from nescio.data import hashing
from nescio.data.hashing import hash_files
from nescio.data.storage import stamp


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which files are remembered at once: the tests do not wait until their times are past."""
    monkeypatch.setenv("NESCIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "_UNSETTLED", 0)
    return tmp_path / "cache"


@pytest.fixture
def read_again(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read."""
    read: list[Path] = []
    digest = hashing._digest
    monkeypatch.setattr(hashing, "_digest", lambda path: read.append(path) or digest(path))
    return read


def file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1e9, 1e9))  # as an archive unpacks it
    time.sleep(0.02)  # the system's clock for files has steps
    return path


def _overwritten(path: Path) -> None:
    path.write_text("two")


def _another_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("two")
    other.replace(path)


def _another_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    path.write_text("two")


@pytest.mark.parametrize("change", [_overwritten, _another_file, _another_folder])
def test_other_contents_of_the_same_name_size_and_time_are_seen(
    cache: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = file(tmp_path / "set/0.png", "one")
    (before,) = hash_files([path])
    change(path)
    os.utime(path, (1e9, 1e9))
    (after,) = hash_files([path])
    assert after == hash_files([file(tmp_path / "fresh", "two")])[0] != before


@pytest.mark.parametrize("change", [_overwritten, _another_file, _another_folder])
def test_a_scoring_job_sees_them_too(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = file(tmp_path / "set/0.png", "one")
    before = stamp([path])
    assert stamp([path]) == before
    change(path)
    os.utime(path, (1e9, 1e9))
    assert stamp([path]) != before


def test_a_file_that_did_not_change_is_read_once(cache: Path, tmp_path: Path, read_again: list[Path]) -> None:
    path = file(tmp_path / "0.png", "one")
    assert hash_files([path]) == hash_files([path])
    assert read_again == [path]


def test_a_file_just_written_is_read_again(
    cache: Path, tmp_path: Path, read_again: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_UNSETTLED", 60_000_000_000)
    path = file(tmp_path / "0.png", "one")  # written now, whatever its time says
    hash_files([path])
    hash_files([path])
    assert read_again == [path, path]


def _no_database(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _scrambled(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))


def _other_columns(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"hash TEXT", b"hasx TEXT"))


@pytest.mark.parametrize("damage", [_no_database, _torn, _scrambled, _other_columns])
def test_damaged_hashes_are_made_anew(
    cache: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    read_again: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths = [file(tmp_path / f"{i}.png", f"{i}") for i in range(100)]
    before = hash_files(paths)
    damage(cache / "hashes.sqlite")
    assert hash_files(paths) == before
    assert caplog.text.count("hashes.sqlite is damaged") == 1
    read_again.clear()
    assert hash_files(paths) == before  # remembered again
    assert read_again == []


def test_hashes_of_an_earlier_version_are_forgotten(cache: Path, tmp_path: Path, read_again: list[Path]) -> None:
    path = file(tmp_path / "0.png", "one")
    cache.mkdir()
    old = sqlite3.connect(cache / "hashes.sqlite")
    old.execute("CREATE TABLE files (path BLOB, size INTEGER, mtime INTEGER, hash TEXT, PRIMARY KEY (path))")
    row = (os.fsencode(path), 3, path.stat().st_mtime_ns, "another's")
    old.execute("INSERT INTO files VALUES (?, ?, ?, ?)", row)
    old.commit()
    old.close()
    assert hash_files([path]) == hash_files([path]) != ["another's"]
    assert read_again == [path]


def test_hashes_that_cannot_be_written_can_be_read(cache: Path, tmp_path: Path, read_again: list[Path]) -> None:
    old, new = file(tmp_path / "0.png", "one"), file(tmp_path / "1.png", "two")
    before = hash_files([old])
    with read_only(cache):
        read_again.clear()
        assert hash_files([old, new])[:1] == before
        assert read_again == [new]
