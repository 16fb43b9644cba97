"""Fetching data sets from a server that breaks off, and looking at what came."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import encoded, picture
from nescio.core.errors import InputError
from nescio.data import open_source
from nescio.evaluation.suites.check import check_sets, warnings
from nescio.evaluation.suites.fetch import fetch
from nescio.evaluation.suites.sets import DataSet, Split


def archive(images: int = 3) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for i in range(images):
            data = encoded(picture(i, (40, 40)))
            info = tarfile.TarInfo(f"set/{i}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one body, ends some answers early, and remembers where it was asked to begin."""

    body: bytes
    etag = '"first"'
    broken = 0
    ranges = True
    if_range = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.asked = body, []


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "bytes=0-") if self.server.ranges else "bytes=0-"
        if self.server.if_range and self.headers.get("If-Range", self.server.etag) != self.server.etag:
            wanted = "bytes=0-"
        begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.server.asked.append(begin)
        if begin >= len(self.server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = self.server.body[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(part)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(self.server.body) - 1}/{len(self.server.body)}")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        if self.server.broken:
            self.server.broken -= 1
            part = part[: len(part) // 2]
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(archive()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def dataset(server: Server, sha256: str = "") -> DataSet:
    address = f"http://127.0.0.1:{server.server_port}/things.tar.gz"
    return DataSet("things", "Things", splits={"test": Split(fetch=address, sha256=sha256)})


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.broken = 1
    data = dataset(server, hashlib.sha256(server.body).hexdigest())
    with pytest.raises(InputError, match=r"ended after .* continues where it stopped"):
        fetch(data, "test", tmp_path, progress=False)
    assert data.find("test", tmp_path) is None  # half a file is not found
    path = fetch(data, "test", tmp_path, progress=False)
    assert server.asked == [0, len(server.body) // 2]
    assert path.read_bytes() == server.body
    assert data.find("test", tmp_path) == str(path)
    assert len(open_source(path)) == 3
    assert (tmp_path / "things/test.tar.gz.sha256").read_text().startswith(hashlib.sha256(server.body).hexdigest())


def test_a_server_that_cannot_go_on_begins_anew(server: Server, tmp_path: Path) -> None:
    server.broken, server.ranges = 1, False
    with pytest.raises(InputError):
        fetch(dataset(server), "test", tmp_path, progress=False)
    assert fetch(dataset(server), "test", tmp_path, progress=False).read_bytes() == server.body


def test_an_archive_that_changed_on_the_server_is_not_joined_to_the_old_part(server: Server, tmp_path: Path) -> None:
    server.broken = 1
    with pytest.raises(InputError):
        fetch(dataset(server), "test", tmp_path, progress=False)
    server.body, server.etag = archive(5), '"second"'
    assert fetch(dataset(server), "test", tmp_path, progress=False).read_bytes() == server.body
    assert {p.name for p in tmp_path.iterdir()} == {"things"}


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize(("etag", "changed"), [("", ""), ('"first"', '"second"')])
def test_no_two_archives_are_joined_whatever_the_server_says(
    server: Server, tmp_path: Path, checksum: bool, etag: str, changed: str
) -> None:
    newer = archive(5)
    server.broken, server.etag, server.if_range = 1, etag, False  # If-Range is not looked at
    data = dataset(server, hashlib.sha256(newer).hexdigest() if checksum else "")
    with pytest.raises(InputError, match="ended after"):
        fetch(data, "test", tmp_path, progress=False)
    server.body, server.etag = newer, changed
    assert fetch(data, "test", tmp_path, progress=False).read_bytes() == newer
    assert server.asked[-1] == 0  # from its beginning


def test_a_checksum_lets_a_transfer_go_on_where_the_server_names_no_version(server: Server, tmp_path: Path) -> None:
    server.broken, server.etag = 1, ""
    data = dataset(server, hashlib.sha256(server.body).hexdigest())
    with pytest.raises(InputError, match="ended after"):
        fetch(data, "test", tmp_path, progress=False)
    assert fetch(data, "test", tmp_path, progress=False).read_bytes() == server.body
    assert server.asked == [0, len(server.body) // 2]


def test_an_archive_of_another_checksum_is_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the expected archive"):
        fetch(dataset(server, "0" * 64), "test", tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_transfer_that_was_killed_after_its_last_byte_is_finished(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".things-test.partial").write_bytes(server.body)
    (tmp_path / ".things-test.partial.version").write_text(server.etag)
    assert fetch(dataset(server), "test", tmp_path, progress=False).read_bytes() == server.body
    assert server.asked == [len(server.body)]


def test_what_no_program_may_fetch_says_where_a_person_can(tmp_path: Path) -> None:
    data = DataSet("shy", "Shy", address="https://example.org/shy", splits={"test": Split()})
    with pytest.raises(InputError, match=r"https://example.org/shy and put it at .*shy/test"):
        fetch(data, "test", tmp_path)


def test_a_torchvision_set_becomes_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the data set's own files, as torchvision leaves them after a download: nothing is fetched here
    rng = np.random.default_rng(0)
    raw = tmp_path / "cache/datasets/MNIST/raw"
    raw.mkdir(parents=True)
    pixels, labels = rng.integers(0, 256, (7, 28, 28), dtype=np.uint8), rng.integers(0, 10, 7).astype(np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    monkeypatch.setenv("NESCIO_CACHE", str(tmp_path / "cache"))
    data = DataSet("mnist", "MNIST", splits={"test": Split(fetch="torchvision:MNIST/test")})
    path = fetch(data, "test", tmp_path / "root", progress=False)
    source = open_source(path)
    assert source.labels.tolist() == labels.tolist()
    assert source.classes[3] == "3 - three"
    assert json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]["image"]["_type"] == "Image"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read(2)))), pixels[2][..., None].repeat(3, axis=2))


def test_a_hugging_face_set_is_moved_in_when_all_of_it_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    table = pa.table({"img": [{"bytes": encoded(picture(i)), "path": None} for i in range(3)], "label": [0, 1, 1]})
    calls = []

    def snapshot_download(repository: str, *, repo_type: str, allow_patterns: str, local_dir: Path) -> str:
        calls.append((repository, repo_type, allow_patterns))
        folder = Path(local_dir) / "plain"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "test-00000-of-00001.parquet")
        if len(calls) == 1:
            raise ConnectionError("the line went down")
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    names = ["plain/test-00000-of-00001.parquet", "plain/train-00000-of-00001.parquet"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: names)
    data = DataSet("hub", "Hub", splits={"test": Split(fetch="hf:owner/name:plain/test-*.parquet")})
    with pytest.raises(InputError, match="the line went down; run the same command again"):
        fetch(data, "test", tmp_path)
    assert data.find("test", tmp_path) is None
    path = fetch(data, "test", tmp_path)
    assert calls[1] == ("owner/name", "dataset", "plain/test-*.parquet")
    assert open_source(path).labels.tolist() == [0, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]


def test_a_page_in_place_of_an_archive_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.body = b"<!doctype html>please log in"
    with pytest.raises(InputError, match="is not an archive"):
        fetch(dataset(server), "test", tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def write(folder: Path, names: range, kind: str = "PNG", size: tuple[int, int] = (40, 40), **options: object) -> Path:
    folder.mkdir()
    for i in names:
        (folder / f"{i:03}.{kind.lower()}").write_bytes(encoded(picture(i, size), kind, **options))
    return folder


def checked(**folders: Path) -> tuple[dict, list[str]]:
    found = check_sets({name: open_source(f) for name, f in folders.items()}, workers=0, progress=False)
    return {c.name: c for c in found}, warnings(found)


def test_equal_sets_raise_no_alarm(tmp_path: Path) -> None:
    found, told = checked(id=write(tmp_path / "a", range(10)), far=write(tmp_path / "b", range(50, 60)))
    assert told == []
    assert found["far"].images == 10
    assert found["far"].short == (40, 40, 40)
    assert found["far"].formats == {"PNG": 1.0}


def test_bad_repeated_and_shared_images_are_counted(tmp_path: Path) -> None:
    ids, far = write(tmp_path / "id", range(10)), write(tmp_path / "far", range(50, 60))
    shutil.copy(far / "050.png", far / "again.png")
    (far / "broken.png").write_bytes(b"not an image")
    (far / "same.bmp").write_bytes(encoded(picture(3, (40, 40)), "BMP"))  # an ID image in another format
    found, told = checked(id=ids, far=far)
    assert found["far"].repeats == 1
    assert [reason for _, reason in found["far"].bad] == ["not an image in a known format"]
    assert found["far"].shared == {"id": 1}
    assert sum(word in line for line in told for word in ("cannot be read", "repeated images", "also in id")) == 3


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"size": (100, 100)}, "sharpness"),
        ({"size": (40, 80)}, "a different shape"),
        ({"kind": "JPEG"}, "compression artefacts"),
    ],
)
def test_what_gives_ood_images_away_is_said(tmp_path: Path, other: dict, said: str) -> None:
    _, told = checked(id=write(tmp_path / "id", range(10)), far=write(tmp_path / "far", range(50, 60), **other))
    assert any(said in line for line in told), told


def test_noise_has_no_file_that_could_give_it_away(tmp_path: Path) -> None:
    sources = {
        "id": open_source(write(tmp_path / "id", range(5))),
        "noise": open_source("noise:uniform:images=5,size=224"),
    }
    found = check_sets(sources, workers=0, progress=False)
    assert [c.images for c in found] == [5, 5]
    assert warnings(found) == []


def test_jpeg_quality_is_read_from_the_tables(tmp_path: Path) -> None:
    found, told = checked(
        id=write(tmp_path / "id", range(5), "JPEG", quality=95),
        far=write(tmp_path / "far", range(9, 14), "JPEG", quality=60),
    )
    assert (found["id"].quality, found["far"].quality) == (95, 60)
    assert "quality 60 and id of 95" in told[0]


def test_a_count_that_is_not_the_published_one_is_said(make_folder: Callable[..., Path]) -> None:
    found = check_sets({"id": open_source(make_folder("some"))}, expected={"id": 10}, workers=0, progress=False)
    assert warnings(found) == ["id has 6 images; expected 10"]
