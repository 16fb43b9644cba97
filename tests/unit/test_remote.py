"""Images behind URLs, in fsspec's memory and on a real web server on this machine."""

from __future__ import annotations

import functools
import http.server
import io
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from conftest import TINY_TRANSFORM, encoded, picture
from nescio.core.errors import InputError
from nescio.data import open_source, storage
from nescio.data.decode import decode
from nescio.data.formats.parquet import write_parquet
from nescio.data.loader import read_batches


def pixels(source: object) -> list[bytes]:
    return [decode(source.read(i)).tobytes() for i in range(len(source))]


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder("set")


@pytest.fixture
def memory(folder: Path, tmp_path: Path) -> Iterator[str]:
    """The folder, archives of it and parquet shards, in memory."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as z:
        for p in sorted(folder.rglob("*.png")):
            z.write(p, p.relative_to(folder))
    for name, mode in (("set.tar", "w"), ("set.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as t:
            t.add(folder, ".")
    (tmp_path / "shards").mkdir()
    images = [picture(seed) for seed in (0, 1, 2, 100, 101, 102)]
    write_parquet(tmp_path / "shards/0.parquet", images[:4])
    write_parquet(tmp_path / "shards/1.parquet", images[4:])
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/bucket", recursive=True)
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["set", "set/*/*.png", "set.zip", "set.tar", "set.tar.gz", "shards", "shards/*"])
def test_an_object_store_reads_as_the_folder_does(memory: str, folder: Path, name: str) -> None:
    here, there = open_source(folder), open_source(f"{memory}/{name}")
    assert pixels(there) == pixels(here)
    assert pixels(pickle.loads(pickle.dumps(there))) == pixels(here)
    assert there.name(0).startswith("memory://")
    labelled = name in ("set", "set.zip", "set.tar", "set.tar.gz")
    assert there.classes == (["a", "b"] if labelled else None)
    assert pixels(open_source(f"{memory}/{name}[1:3]")) == pixels(here)[1:3]


def test_a_copy_that_another_machine_lacks_is_made_there(memory: str, folder: Path) -> None:
    source = open_source(f"{memory}/set.tar.gz")
    packed = pickle.dumps(source)
    expected, copy = pixels(source), source.file
    del source
    assert not copy.exists()
    assert pixels(pickle.loads(packed)) == expected == pixels(open_source(folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_read_from_a_store(memory: str, workers: int) -> None:
    fsspec.filesystem("memory").pipe("/bucket/set/a/1.png", encoded(picture(1))[:60])
    batches = list(read_batches(open_source(f"{memory}/set"), TINY_TRANSFORM, 0, 4, workers))
    assert [b.images.shape[0] for b in batches] == [3, 2]
    assert [i for i, _ in batches[0].bad] == [1]


def test_the_identity_is_that_of_the_contents_the_stamp_that_of_the_listing(memory: str, folder: Path) -> None:
    source = open_source(f"{memory}/set")
    assert source.identity == open_source(folder).identity
    assert source.stamp == open_source(f"{memory}/set").stamp
    fsspec.filesystem("memory").pipe("/bucket/set/a/1.png", encoded(picture(50)))
    again = open_source(f"{memory}/set")
    assert again.stamp != source.stamp
    assert again.identity != source.identity


def test_file_urls_are_paths(folder: Path) -> None:
    assert open_source(f"file://{folder}").name(0) == str(folder / "a/0.png")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://bucket/none", "contains no images"),
        ("memory://bucket/none.png", "FileNotFoundError"),
        ("memory://bucket/none/*.png", "no images match"),
        ("memory://bucket/broken.parquet", "cannot be read as parquet"),
        ("memory://bucket/broken.tar", "cannot be read as a tar file"),
        ("s4://bucket/x", "cannot be opened"),
        ("http://127.0.0.1:9/none/", "cannot be opened"),
    ],
)
def test_what_cannot_be_opened_is_said(memory: str, url: str, told: str) -> None:
    for name in ("broken.parquet", "broken.tar"):
        fsspec.filesystem("memory").pipe(f"/bucket/{name}", b"nothing of the kind")
    with pytest.raises(InputError, match=told):
        open_source(url)


@pytest.mark.parametrize(("failures", "works"), [(2, True), (3, False)])
def test_a_store_is_asked_again_before_the_run_stops(
    memory: str, monkeypatch: pytest.MonkeyPatch, failures: int, works: bool
) -> None:
    monkeypatch.setattr(storage, "_WAITS", (0, 0))
    left = [failures]
    system = type(fsspec.filesystem("memory"))
    answer = system.cat_file

    def flaky(self: object, *arguments: object, **options: object) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError("reset by peer")
        return answer(self, *arguments, **options)

    monkeypatch.setattr(system, "cat_file", flaky)
    batches = read_batches(open_source(f"{memory}/set"), TINY_TRANSFORM, 0, 10, 0)
    if works:
        assert next(batches).bad == []
    else:
        with pytest.raises(InputError, match=r"a/0\.png cannot be fetched .*reset by peer"):
            next(batches)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_web_server_reads_as_the_folder_does(server: http.server.ThreadingHTTPServer, folder: Path) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    (folder / "b/with space.png").write_bytes(encoded(picture(7)))
    source = open_source(f"{url}/")
    assert pixels(source) == pixels(open_source(folder))
    assert source.classes == ["a", "b"]
    assert source.name(0) == f"{url}/a/0.png"
    assert pixels(open_source(f"{url}/a/0.png?size=full")) == [picture(0).tobytes()]
    (batch,) = read_batches(source, TINY_TRANSFORM, 0, 10, 1)
    assert (len(batch.good), batch.bad) == (7, [])


def test_an_image_that_is_gone_is_one_bad_image_a_server_that_is_gone_stops_the_run(
    server: http.server.ThreadingHTTPServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_WAITS", (0, 0))
    source = open_source(f"http://127.0.0.1:{server.server_port}/")
    (folder / "a/1.png").unlink()
    (batch,) = read_batches(source, TINY_TRANSFORM, 0, 10, 0)
    assert [i for i, _ in batch.bad] == [1]
    assert "FileNotFoundError" in batch.bad[0][1]
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=r"a/0\.png cannot be fetched"):
        list(read_batches(source, TINY_TRANSFORM, 0, 10, 0))


def test_the_images_of_a_remote_parquet_file_are_not_bad_because_the_store_is_away(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(f"{memory}/shards/0.parquet")

    class Gone(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise TimeoutError("no answer")

    source._file = source._opened()
    monkeypatch.setattr(type(fsspec.filesystem("memory").open("/bucket/shards/0.parquet")), "read", Gone.read)
    with pytest.raises(InputError, match=r"0\.parquet cannot be fetched .*no answer"):
        list(read_batches(source, TINY_TRANSFORM, 0, 10, 0))
