from __future__ import annotations

import csv
import logging
import multiprocessing
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY_TRANSFORM, Pictures, encoded, picture, tiny_net
from nescio.core.errors import BadImage, InputError
from nescio.data import Source, open_source
from nescio.data.decode import decode
from nescio.models import Classifier
from nescio.run.bank import FORMAT, Bank, BankKey
from nescio.run.bank_writer import BankWriter
from nescio.run.heap import kept_heap
from nescio.run.passes import Pass
from nescio.run.session import Session
from nescio.run.transfers import Transfers, one_ahead


def expected(classifier: Classifier, source: Source, rows: Iterator[int]) -> torch.Tensor:
    images = torch.stack([TINY_TRANSFORM.geometry(decode(source.read(i))) for i in rows])
    with torch.no_grad():
        return classifier(TINY_TRANSFORM.normalise(images)).h


def files_of(bank: Bank) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in bank.path.iterdir()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bank_holds_the_features_labels_and_predictions(classifier: Classifier, tmp_path: Path, workers: int) -> None:
    source = Pictures(37)
    bank = Session(classifier, cache=tmp_path, batch_size=8, workers=workers).bank(source)
    h = torch.cat([f.h for f in bank.chunks(size=10)])
    torch.testing.assert_close(h, expected(classifier, source, range(37)), rtol=1e-4, atol=1e-5)
    assert np.array_equal(bank.labels, source.labels)
    assert np.array_equal(bank.pred, classifier.head(h, h).argmax(1).numpy())
    assert bank.accuracy == np.mean(bank.pred == bank.labels)
    assert torch.equal(bank.head.weight, classifier.head.weight)


def test_a_known_bank_runs_neither_network_nor_decoder(classifier: Classifier, tmp_path: Path) -> None:
    first = Session(classifier, cache=tmp_path, workers=0).bank(Pictures(9))

    class Unreadable(Pictures):
        def read(self, i: int) -> bytes:
            raise AssertionError(f"decoded image {i} again")

    again = Session(classifier, cache=tmp_path, workers=0).bank(Unreadable(9))
    assert again.path == first.path


def test_anything_that_changes_the_features_makes_another_bank(classifier: Classifier, tmp_path: Path) -> None:
    changed = tiny_net()
    changed.conv.weight.data += 0.1
    other_transform = Classifier(tiny_net(), TINY_TRANSFORM.parse("crop=8,mean=0.1", TINY_TRANSFORM))
    shift = Pass("shifted", lambda network, x: network(x + 1))
    banks = [
        Session(classifier, cache=tmp_path, workers=0).bank(Pictures(9)),
        Session(Classifier(changed, TINY_TRANSFORM), cache=tmp_path, workers=0).bank(Pictures(9)),
        Session(other_transform, cache=tmp_path, workers=0).bank(Pictures(9)),
        Session(classifier, cache=tmp_path, workers=0).bank(Pictures(10)),
        Session(classifier, cache=tmp_path, workers=0).bank(Pictures(9), network_pass=shift),
        Session(classifier, cache=tmp_path, workers=0, dtype="float16").bank(Pictures(9)),
    ]
    assert len({b.path for b in banks}) == 6
    h = [next(iter(b.chunks())).h for b in banks]
    assert not torch.allclose(h[0], h[4])
    assert h[5].dtype == torch.float32
    torch.testing.assert_close(h[5], h[0], rtol=2e-3, atol=1e-3)


def pieces(done: list[str], n: int) -> Iterator[Callable[[], int]]:
    def result(i: int) -> int:
        done.append(f"result {i}")
        return i

    for i in range(n):
        done.append(f"begin {i}")
        yield lambda i=i: result(i)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_device_is_given_the_next_batch_before_it_is_asked_for_the_last_one(n: int) -> None:
    done: list[str] = []
    assert list(one_ahead(pieces(done, n))) == list(range(n))
    assert [done.index(f"begin {i + 1}") < done.index(f"result {i}") for i in range(n - 1)] == [True] * max(0, n - 1)
    assert len(done) == 2 * n


def test_on_a_cpu_each_batch_is_whole_before_the_next_one_begins() -> None:
    done: list[str] = []
    assert list(Transfers(torch.device("cpu")).results(pieces(done, 2))) == [0, 1]
    assert done == ["begin 0", "result 0", "begin 1", "result 1"]


BAD = {3: b"", 8: encoded(picture(8))[:70], 20: b"not an image"}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_recorded_and_leave_no_row(classifier: Classifier, tmp_path: Path, workers: int) -> None:
    source = Pictures(40, BAD)
    bank = Session(classifier, cache=tmp_path, batch_size=8, workers=workers, max_bad=0.1).bank(source)
    good = [i for i in range(40) if i not in BAD]
    assert bank.positions.tolist() == good
    assert [(row, image) for row, image, _ in bank.skipped] == [(i, f"picture {i}") for i in BAD]
    assert bank.skipped[0][2] == "zero bytes"
    torch.testing.assert_close(
        torch.cat([f.h for f in bank.chunks(7)]), expected(classifier, source, good), rtol=1e-4, atol=1e-5
    )
    with (bank.path / "skipped.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    with pytest.raises(InputError, match=r"3 of 40 .*0\.01.*picture 3: zero bytes.*skipped\.csv"):
        Session(classifier, cache=tmp_path, workers=0).bank(source)


def test_a_bad_image_that_is_called_like_a_formula_is_listed_as_text(classifier: Classifier, tmp_path: Path) -> None:
    source = Pictures(4, {1: b""})
    source.name = lambda i: f"=cmd|'/c calc'!A{i}"
    bank = Session(classifier, cache=tmp_path, workers=0, max_bad=0.5).bank(source)
    assert bank.skipped == [(1, "=cmd|'/c calc'!A1", "zero bytes")]
    with (bank.path / "skipped.csv").open(newline="") as file:
        assert [r["image"] for r in csv.DictReader(file)] == ["'=cmd|'/c calc'!A1"]


def test_a_batch_of_bad_images_alone_and_a_set_of_them(classifier: Classifier, tmp_path: Path) -> None:
    bank = Session(classifier, cache=tmp_path, batch_size=2, workers=0, max_bad=0.5).bank(Pictures(6, {0: b"", 1: b""}))
    assert bank.positions.tolist() == [2, 3, 4, 5]
    with pytest.raises(InputError, match="2 of 2"):
        Session(classifier, cache=tmp_path, workers=0, max_bad=1).bank(Pictures(2, {0: b"", 1: b""}))


def test_features_that_are_not_finite_are_bad_images(tmp_path: Path) -> None:
    classifier = Classifier(tiny_net(), TINY_TRANSFORM)

    def poisoned(network: Classifier, x: torch.Tensor):
        f = network(x)
        f.h[1] = float("nan")
        return f

    bank = Session(classifier, cache=tmp_path, workers=0, max_bad=0.5).bank(
        Pictures(4), network_pass=Pass("poisoned", poisoned)
    )
    assert bank.positions.tolist() == [0, 2, 3]
    assert "not finite" in bank.skipped[0][2]


def test_float16_that_would_overflow_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    def large(network: Classifier, x: torch.Tensor):
        f = network(x)
        return f.with_h(f.h + 1e6)

    with pytest.raises(InputError, match="float32"):
        Session(classifier, cache=tmp_path, workers=0, dtype="float16").bank(
            Pictures(4), network_pass=Pass("large", large)
        )


class Interrupted(BaseException):
    """As Ctrl-C: not an image's fault."""


class StopsAt(Pictures):
    def read(self, i: int) -> bytes:
        if i == self.stop:
            raise Interrupted
        return super().read(i)


@pytest.mark.parametrize("stop", [1, 11, 25, 39])
def test_an_interrupted_pass_continues_to_the_same_bytes(
    classifier: Classifier, tmp_path: Path, stop: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Session(classifier, cache=tmp_path / "whole", batch_size=8, workers=0, max_bad=1).bank(Pictures(40, BAD))
    broken = StopsAt(40, BAD)
    broken.stop = stop
    with pytest.raises(Interrupted):
        Session(classifier, cache=tmp_path / "broken", batch_size=8, workers=0, max_bad=1).bank(broken)
    with caplog.at_level(logging.INFO, logger="nescio"):
        # another batch size now: the one that the pass began with is kept
        bank = Session(classifier, cache=tmp_path / "broken", batch_size=5, workers=0, max_bad=1).bank(
            Pictures(40, BAD)
        )
    assert "continuing" in caplog.text
    assert f"image {stop // 8 * 8} of 40" in caplog.text
    assert files_of(bank) == files_of(whole)


def _extract_in_a_process(cache: Path, delay: float) -> None:
    classifier = Classifier(tiny_net(), TINY_TRANSFORM)
    Session(classifier, cache=cache, batch_size=4, workers=1).bank(Pictures(60, delay=delay))


def test_a_killed_pass_continues_to_the_same_bytes(classifier: Classifier, tmp_path: Path) -> None:
    whole = Session(classifier, cache=tmp_path / "whole", batch_size=4, workers=0).bank(Pictures(60))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_extract_in_a_process, args=(tmp_path / "killed", 0.05))
    process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        partial = list((tmp_path / "killed").glob("banks/*.partial/status.npy"))
        if partial and np.count_nonzero(np.load(partial[0])) >= 12:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list((tmp_path / "killed").glob("banks/*.partial"))
    bank = Session(classifier, cache=tmp_path / "killed", batch_size=4, workers=0).bank(Pictures(60))
    assert files_of(bank) == files_of(whole)


def test_two_processes_at_once_make_one_bank(classifier: Classifier, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_extract_in_a_process, args=(tmp_path / "both", 0.01)) for _ in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(300)
    assert [p.exitcode for p in processes] == [0, 0]
    bank = Session(classifier, cache=tmp_path / "both", workers=0).bank(Pictures(60))
    whole = Session(classifier, cache=tmp_path / "whole", batch_size=4, workers=0).bank(Pictures(60))
    assert files_of(bank) == files_of(whole)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "format"])
def test_a_damaged_or_stale_bank_is_built_again_with_a_line(
    classifier: Classifier, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    bank = Session(classifier, cache=tmp_path, workers=0).bank(Pictures(20))
    before = files_of(bank)
    h, manifest = bank.path / "h.npy", bank.path / "manifest.json"
    if damage == "flip":
        data = bytearray(h.read_bytes())
        data[-5] ^= 1
        h.write_bytes(data)
    elif damage == "truncate":
        h.write_bytes(h.read_bytes()[:-8])
    elif damage == "remove":
        (bank.path / "pred.npy").unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 1'))
    again = Session(classifier, cache=tmp_path, workers=0).bank(Pictures(20))
    assert "computing it again" in caplog.text
    assert files_of(again) == before


def test_a_damaged_partial_bank_starts_again(classifier: Classifier, tmp_path: Path, caplog) -> None:
    broken = StopsAt(40)
    broken.stop = 30
    with pytest.raises(Interrupted):
        Session(classifier, cache=tmp_path, batch_size=8, workers=0).bank(broken)
    (partial,) = tmp_path.glob("banks/*.partial")
    (partial / "h.npy").write_bytes(b"x")
    bank = Session(classifier, cache=tmp_path, batch_size=8, workers=0).bank(Pictures(40))
    assert "starting from the beginning" in caplog.text
    assert len(bank) == 40


def test_another_forward_with_the_same_weights_does_not_get_the_bank(tmp_path: Path, caplog) -> None:
    class MaxPooled(type(tiny_net())):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.norm(self.conv(x))).amax((2, 3)))

    mean, peak = tiny_net(), MaxPooled()
    peak.load_state_dict(mean.state_dict())
    one, other = (Classifier(m.eval(), TINY_TRANSFORM) for m in (mean, peak))
    other.body.__class__.__name__ = "TinyNet"  # so that nothing but its forward tells it from the first
    assert one.fingerprint == other.fingerprint
    a = next(Session(one, cache=tmp_path, workers=0).bank(Pictures(6)).chunks()).h
    b = next(Session(other, cache=tmp_path, workers=0).bank(Pictures(6)).chunks()).h
    assert "another network with the same weights" in caplog.text
    assert (b > a + 0.1).any()


def test_changed_weights_are_seen_at_once(classifier: Classifier) -> None:
    before = classifier.fingerprint
    classifier.body.conv.weight.data.mul_(2)
    assert classifier.fingerprint != before


def test_an_image_too_long_to_resize_is_one_bad_image(classifier: Classifier, tmp_path: Path) -> None:
    thin = encoded(Image.new("L", (3_000_000, 1)))
    bank = Session(classifier, cache=tmp_path, workers=0, max_bad=0.5).bank(Pictures(4, {2: thin}))
    assert bank.positions.tolist() == [0, 1, 3]
    assert "3000000 × 1" in bank.skipped[0][2]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    classifier = Classifier(tiny_net(), TINY_TRANSFORM)
    writer = BankWriter(tmp_path, BankKey("w", "t", "d", "p", "float32"))
    with pytest.raises(InputError, match=r"needs .* GB.*--cache"):
        writer.begin(1000, classifier.head, classifier.reaction(), 8, {"h": 8})
    assert not writer.partial.exists()


def test_a_source_that_raises_bad_image_itself_is_recorded(classifier: Classifier, tmp_path: Path) -> None:
    class Raises(Pictures):
        def read(self, i: int) -> bytes:
            if i == 2:
                raise BadImage("row 2 is torn")
            if i == 3:
                raise PermissionError("no access")
            return super().read(i)

    bank = Session(classifier, cache=tmp_path, workers=2, max_bad=0.5).bank(Raises(8))
    assert [s[2] for s in bank.skipped] == ["row 2 is torn", "PermissionError: no access"]


def test_files_that_vanish_are_bad_images(
    classifier: Classifier, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder("set", per_class=5)
    source = open_source(folder)
    assert source.identity
    (folder / "a" / "1.png").unlink()
    bank = Session(classifier, cache=tmp_path, workers=0, max_bad=0.2).bank(source)
    assert [s[0] for s in bank.skipped] == [1]
    assert bank.skipped[0][1].endswith("a/1.png")


def test_an_unknown_dtype_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'float16'"):
        Session(classifier, cache=tmp_path, dtype="float61").bank(Pictures(2))


def page_faults(times: int) -> int:
    import resource  # Windows has none

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(16 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_not_asked_for_again_within_a_pass() -> None:
    with kept_heap():
        page_faults(4)
        with kept_heap():
            pass
        assert page_faults(10) < 4096  # a page has 4 KiB: of one block of the ten
