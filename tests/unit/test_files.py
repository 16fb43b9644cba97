"""Files are written whole, by one who is told in one line where that cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import read_only, small_disk
from nescio.core.errors import InputError
from nescio.core.files import make_folder, whole, write_whole
from nescio.training.state import save_tensors


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "one")
    with pytest.raises(TypeError), whole(tmp_path / "a.txt") as partial, partial.open("w") as file:
        file.writelines(["half", None])
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "one"}


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 16):
        write_whole(disk / "a.txt", "one")
        with pytest.raises(
            InputError, match=r"a\.txt cannot be written: No space left on device; free some space"
        ) as told:
            write_whole(disk / "a.txt", "x" * (1 << 17))
        assert "\n" not in str(told.value)
        with pytest.raises(InputError, match=r"b\.safetensors cannot be written: .*No space left.*--resume"):
            save_tensors(disk / "b.safetensors", {"w": torch.zeros(1 << 15)})
        assert {p.name: p.read_text() for p in disk.iterdir()} == {"a.txt": "one"}


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.txt", "one")
    with read_only(tmp_path):
        for name in ("a.txt", "new.txt"):
            with pytest.raises(InputError, match=r"txt cannot be written: (Read-only|Permission).*give another path"):
                write_whole(tmp_path / name, "two")
        with pytest.raises(InputError, match="folder cannot be written"):
            make_folder(tmp_path / "folder")
    with pytest.raises(InputError, match=r"a\.txt cannot be written: No such file"):
        write_whole(tmp_path / "none/a.txt", "one")


def test_an_error_of_a_network_is_not_one_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), whole(tmp_path / "a.txt"):
        raise ConnectionResetError(104, "reset")


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from nescio.core.files import whole\n"
        "with whole(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=False)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    host = left.name.split("-")[-1]
    # of the first process, of one on another machine, and of another file
    names = (f".a.png.1-{host}", ".a.png.999999-ffffff.partial", ".b.png.2-ffffff.partial")
    living = [tmp_path / name for name in names]
    old = tmp_path / ".a.png.7-ffffff.partial"  # of another machine, and a day old
    for path in (*living, old):
        path.touch()
    os.utime(old, (1e9, 1e9))
    write_whole(tmp_path / "a.png", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.png", *living])
