from __future__ import annotations

import os
import pickle
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData

from conftest import encoded, picture
from nescio.core.errors import BadImage, InputError
from nescio.data import Source, open_source
from nescio.data.decode import decode
from nescio.data.formats.torch import DatasetSource
from nescio.data.hashing import hash_files


def pixels(source: Source) -> list[bytes]:
    return [decode(source.read(i)).tobytes() for i in range(len(source))]


def write_parquet(
    path: Path, n: int = 5, *, names: list[str] | None = None, group: int = 2, **columns: pa.Array
) -> Path:
    images = pa.array([{"bytes": encoded(picture(i)), "path": f"{i}.png"} for i in range(n)])
    table = pa.table({"image": images, "label": pa.array([i % 2 for i in range(n)])} | columns)
    if names:
        meta = '{"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": %s}}}}'
        table = table.replace_schema_metadata({"huggingface": meta % str(names).replace("'", '"')})
    pq.write_table(table, path, row_group_size=group)
    return path


def test_class_folders_give_labels_in_sorted_order(make_folder: Callable[..., Path]) -> None:
    source = open_source(make_folder("set", classes=("zebra", "ant")))
    assert source.classes == ["ant", "zebra"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert pixels(source)[0] == picture(100).tobytes()
    assert source.name(0).endswith("ant/0.png")


def test_a_flat_folder_has_no_labels_and_ignores_what_is_not_an_image(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._a.png").write_text("macOS leaves these")
    source = open_source(tmp_path)
    assert (len(source), source.classes, source.labels.tolist()) == (1, None, [-1])


def test_zip_and_tar_read_as_the_folder_does(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder("set")
    expected = pixels(open_source(folder))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as z:
        for p in sorted(folder.rglob("*.png")):
            z.write(p, p.relative_to(tmp_path))  # the folder itself is in the archive
    for name, mode in (("set.tar", "w"), ("set.tar.gz", "w:gz"), ("set.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as t:
            t.add(folder, ".")
    for name in ("set.zip", "set.tar", "set.tar.gz", "set.tgz"):
        source = open_source(tmp_path / name)
        assert pixels(source) == expected
        assert source.classes == ["a", "b"]
        assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert pixels(pickle.loads(pickle.dumps(source))) == expected  # as a worker process gets it


def test_a_damaged_zip_member_is_one_bad_image(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder("set")
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as z:
        for p in sorted(folder.rglob("*.png")):
            z.write(p, p.relative_to(folder))
    data = bytearray(path.read_bytes())
    data[150] ^= 0xFF  # inside the first member
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(BadImage):
        decode(source.read(0))
    assert decode(source.read(1)).size == (12, 10)


def test_parquet_with_row_groups_names_and_nulls(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", names=["cat", "dog"]))
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1, 0, 1, 0]
    assert pixels(source) == [picture(i).tobytes() for i in range(5)]
    assert decode(pickle.loads(pickle.dumps(source)).read(4)).tobytes() == picture(4).tobytes()
    empty = pa.array([{"bytes": None, "path": "x"}])
    pq.write_table(pa.table({"image": empty}), tmp_path / "b.parquet")
    with pytest.raises(BadImage, match="no image bytes"):
        open_source(tmp_path / "b.parquet").read(0)


def test_slices_globs_and_shards(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    for i in range(2):
        write_parquet(tmp_path / f"part-{i}.parquet", n=3)
    both = open_source(f"{tmp_path}/part-*.parquet")
    assert len(both) == len(open_source(tmp_path)) == 6  # a folder of shards
    assert decode(both.read(4)).tobytes() == picture(1).tobytes()
    first = open_source(f"{tmp_path}/part-*.parquet[1:4]")
    assert first.labels.tolist() == [1, 0, 0]
    assert first.identity != both.identity
    folder = make_folder("set")
    assert len(open_source(f"{folder}/**/*.png")) == 6
    assert len(open_source(f"{folder}[:2]")) == 2


def test_identity_follows_contents_not_places(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    one, same, other = make_folder("one"), make_folder("same"), make_folder("other", seed=7)
    assert open_source(one).identity == open_source(same).identity != open_source(other).identity
    before = hash_files([one / "a" / "0.png"])
    picture(99).save(one / "a" / "0.png")
    assert hash_files([one / "a" / "0.png"]) != before
    assert open_source(one).identity != open_source(same).identity


def test_any_map_style_data_set() -> None:
    source = DatasetSource(FakeData(4, (3, 9, 7), num_classes=3))
    assert decode(source.read(1)).size == (7, 9)
    assert source.identity == DatasetSource(FakeData(4, (3, 9, 7), num_classes=3)).identity
    tensors = DatasetSource(TensorDataset(torch.rand(3, 1, 5, 6), torch.tensor([2, 0, 1])))
    assert tensors.labels.tolist() == [2, 0, 1]
    assert decode(tensors.read(0)).size == (6, 5)
    with pytest.raises(BadImage, match=r"\[0, 1\]"):
        DatasetSource(TensorDataset(torch.full((1, 3, 4, 4), -2.0))).read(0)
    assert tensors.identity != DatasetSource(tensors.items, identity="mine").identity


@pytest.mark.parametrize("targets", [torch.tensor([0.5, 1.0]), torch.eye(2, dtype=torch.int64), ["cat", "dog"]])
def test_targets_that_are_no_class_numbers_are_refused(targets: Any) -> None:
    data = FakeData(2, (3, 9, 7))
    data.targets = targets
    with pytest.raises(InputError, match=r"FakeData.targets has type .* expected one class number per image"):
        _ = DatasetSource(data).labels


def test_torchvision_sets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESCIO_CACHE", str(tmp_path))
    raw = tmp_path / "datasets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, 3, 28, 28) + digits.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 3) + bytes([5, 0, 4]))
    source = open_source("torchvision:MNIST/test")
    assert source.labels.tolist() == [5, 0, 4]
    np.testing.assert_array_equal(np.asarray(decode(source.read(1)))[:, :, 0], digits[1])
    with pytest.raises(InputError, match="did you mean 'MNIST'"):
        open_source("torchvision:MNISTT")
    with pytest.raises(InputError, match="splits train and test"):
        open_source("torchvision:MNIST/val")


def test_links_that_lead_out_are_followed_on_request(
    make_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder("set")
    linked = tmp_path / "linked"
    linked.mkdir()
    for c in ("a", "b"):
        (linked / c).symlink_to(folder / c)
    with pytest.raises(InputError, match=f"2 links lead out of {linked}, such as .*; 'links:{linked}' follows them"):
        open_source(linked)
    assert open_source(f"links:{linked}").labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(open_source(f"links:{linked}[~2]")) == 2
    (linked / "own.png").write_bytes(encoded(picture(0)))
    assert [Path(open_source(linked).name(i)).name for i in range(len(open_source(linked)))] == ["own.png"]
    assert "skipped: 2 links lead out of" in caplog.text
    caplog.clear()
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "c").mkdir()
    (folder / "c" / "0.png").symlink_to(folder / "b" / "0.png")  # within: followed
    (tmp_path / "root").symlink_to(folder)  # named by the user, so followed
    assert open_source(tmp_path / "root").labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert not caplog.text


def test_what_is_no_file_is_skipped_with_a_line(
    make_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder("set", classes=("a",))
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "s.png"))  # a socket's path must be short
    source = open_source(f"links:{folder}")
    assert [Path(source.name(i)).name for i in range(len(source))] == ["0.png", "1.png", "2.png"]
    assert "skipped: 3 pipes, sockets or devices, such as" in caplog.text
    with pytest.raises(InputError, match="is a pipe, socket or device"):
        open_source(folder / "a" / "pipe.png")
    with pytest.raises(BadImage, match="pipe"):  # put there since the folder was listed
        decode(folder / "a" / "pipe.png")


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(InputError, match="splits test, train"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "written",
    [
        {"use_dictionary": False},
        {"use_dictionary": True, "dictionary_pagesize_limit": 1000},  # a dictionary, and then none
        {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}},
    ],
)
def test_large_row_groups_are_read_in_parts_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: dict[str, Any]
) -> None:
    images = [encoded(picture(i)) for i in range(30)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=20, **written)
    monkeypatch.setattr("nescio.data.formats.parquet._AT_ONCE", 2000)
    source = open_source(tmp_path / "a.parquet")
    order = np.random.default_rng(0).permutation(30).tolist()
    for rows in (range(30), order, reversed(range(30))):
        assert all(source.read(i) == images[i] for i in rows)


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint32(), pa.uint64(), pa.int16()])
def test_labels_are_integers_of_any_width(tmp_path: Path, kind: pa.DataType) -> None:
    label = pa.array([1, None, 0, 1, 0], kind)
    assert open_source(write_parquet(tmp_path / "a.parquet", label=label)).labels.tolist() == [1, -1, 0, 1, 0]


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (pa.array([0, 1, 2, 0, 0]), "'label' has an entry that is not a class: 2; expected 0 to 1"),
        (pa.array([0, -7, 0, 0, 0]), "'label' has an entry that is not a class: -7; expected 0 to 1"),
        (
            pa.array([0, 1, 2**64 - 1, 0, 0], pa.uint64()),
            "'label' has an entry that is not a class: Integer value 18446744073709551615",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, label: pa.Array, told: str) -> None:
    with pytest.raises(InputError, match=told):
        open_source(write_parquet(tmp_path / "a.parquet", names=["cat", "dog"], label=label))


def test_labels_that_are_not_integers_count_as_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_parquet(tmp_path / "a.parquet", label=pa.array([0.0, 1.5, float("nan"), 0.0, 1.0]))
    assert open_source(path).labels.tolist() == [-1] * 5
    assert "has type double, not integers" in caplog.text


def test_damaged_metadata_counts_as_none(tmp_path: Path) -> None:
    for i, meta in enumerate(("{nope", "[]", '{"info": {"features": ["image"]}}')):
        path = write_parquet(tmp_path / f"{i}.parquet")
        pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": meta}), path)
        assert open_source(path).labels.tolist() == [0, 1, 0, 1, 0]


def test_what_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    (tmp_path / "bad.parquet").write_text("x")
    (tmp_path / "bad.zip").write_text("x")
    (tmp_path / "bad.tar").write_text("x")
    (tmp_path / "x.csv").write_text("x")
    (tmp_path / "x.txt").write_text("x")
    write_parquet(tmp_path / "few.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "numbers.parquet")
    for spec, told in {
        "gone": "no such file",
        "empty": "it is empty",
        "text": r"end in \.txt",
        "bad.parquet": "cannot be read as parquet",
        "bad.zip": "cannot be read as a zip",
        "bad.tar": "cannot be read as a tar",
        "x.csv": "no column path, file, image; its columns: x",
        "x.txt": "not a folder",
        "*.jpg": "no images match",
        "few.parquet[9:]": "has 5",
        "numbers.parquet": "no image column",
    }.items():
        with pytest.raises(InputError, match=told):
            open_source(f"{tmp_path}/{spec}")
