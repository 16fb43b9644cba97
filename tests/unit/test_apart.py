"""Sets that share images, slices that lose classes, options given twice, and images that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_accuracy import OPTIONS, colours, make

from nescio import bench, fit
from nescio.cli import main
from nescio.core.errors import InputError
from nescio.data import open_source
from nescio.run.session import Session

__all__ = ["make"]  # a fixture


def nescio(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def test_images_that_must_be_apart_are_compared_by_content(make: Callable[..., Path], tmp_path: Path, caplog) -> None:
    train, ids, far = make("train", seed=1), make("id", seed=2), make("far", seed=3)
    options = {"ood": {"far": far}, "detectors": ["energy"], "train": train}
    good = Session(colours(["red", "green", "blue"]), **OPTIONS)
    copied = ids / "blue/from-train.png"
    copied.write_bytes((train / "blue/0.png").read_bytes())
    manifest = bench(good, id=ids, **options).manifest
    told = f"1 of 61 id images are also training images (by content); the first is {copied}"
    assert manifest["warnings"] == [f"{told}: the results are too good"]
    assert manifest["warnings"][0] in caplog.text
    again = tmp_path / "again"
    for i, path in enumerate(sorted(train.rglob("*.png"))[:50]):
        (again / path.parent.name).mkdir(parents=True, exist_ok=True)
        (again / path.parent.name / f"other-name-{i}.png").write_bytes(path.read_bytes())
    with pytest.raises(
        InputError, match=r"50 of 50 id images are also training images.*give other images, id= \(--id\)"
    ):
        bench(good, id=again, **options)
    assert "50 calibration images" not in caplog.text
    manifest = bench(good, id=ids, held_out=ids, **options).manifest
    assert any("61 of 61 id images are also calibration images" in warning for warning in manifest["warnings"])


def test_an_option_that_is_taken_once_is_not_given_twice(make: Callable[..., Path]) -> None:
    result = nescio("fit", "--model", "a", "--calibrate", "b", "-o", "c", "--detector", "msp", "--detector", "energy")
    assert result.exit_code == 2
    assert result.output == "nescio: --detector is given more than once; give it once to fit\n"
    assert "--model is given more than once" in nescio("bench", "--model", "a", "--model=b").output
    assert "more than once" not in nescio("bench", "--ood", "a=b", "--ood", "c=d").output


def test_a_slice_of_the_first_classes_says_so(make: Callable[..., Path], caplog) -> None:
    folder = make("set", each=20)
    open_source(f"{folder}[:20]")
    assert rf"'{folder}[:20]' takes the first images, which are sorted by class: they cover 1 of 3" in caplog.text
    assert f"'{folder}[~20]'" in caplog.text
    caplog.clear()
    for spec in ("[:45]", "[~20]", "[:2]"):  # all classes; drawn; fewer than classes
        open_source(f"{folder}{spec}")
    assert caplog.text == ""


def test_a_named_image_that_cannot_be_read_ends_the_run_with_1(make: Callable[..., Path], tmp_path: Path) -> None:
    held = make("held")
    fit(Session(colours(["red", "green", "blue"]), **OPTIONS), "energy", calibrate=held).save(tmp_path / "my.nescio")
    bad, good, folder = held / "red/bad.png", held / "red/0.png", held / "red"
    bad.write_bytes(b"no image")
    common = ("score", tmp_path / "my.nescio", "--model", "test_accuracy:Colours", "--workers", 0)
    cases = (((good, bad), 1), ((good,), 0), ((folder,), 0), ((f"file://{bad}", good), 1))
    for i, (images, code) in enumerate(cases):
        printed, written = nescio(*common, *images), nescio(*common, *images, "-o", tmp_path / f"scores-{i}")
        assert (printed.exit_code, written.exit_code) == (code, code), printed.output + written.output
        assert ("unreadable:" in printed.output) == (images != (good,))
        assert (tmp_path / f"scores-{i}/_errors.csv").read_text().count("bad.png") == (images != (good,))
