from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import nescio
from conftest import encoded, picture, tiny_net
from nescio.cli import main
from nescio.evaluation.trial import BAR, EACH, MOST, STAND_INS, trial

MODEL = ["mine:make", "--weights", "w.safetensors", "--transform", "crop=8"]
BEHIND = ["--workers", "0", "--cache", "cache"]


def nescio_try(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["try", *MODEL, *arguments, *BEHIND], catch_exceptions=False)


@pytest.fixture
def pictures(working_folder: Path) -> list[str]:
    names = [f"a<b>{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        Path(name).write_bytes(encoded(picture(i)))
    Path("broken.png").write_bytes(b"no image")
    return [*names, "broken.png"]


def test_pictures_alone_give_verdicts_classes_and_the_next_command(pictures: list[str]) -> None:
    Path("names.txt").write_text("apple\npear\nplum\n<b>\n")
    result = nescio_try(*pictures, "--classes", "names.txt")
    assert result.exit_code == 0, result.output
    assert "unreadable" in result.output
    assert len(re.findall(r"ACCEPTED|I do not know", result.output)) == 3
    assert f"{BAR:.0%} of {EACH * len(STAND_INS)} stand-ins" in result.output.replace("\n", " ")
    command = "nescio fit --model mine:make --weights w.safetensors --classes names.txt --transform crop=8"
    assert f"{command} --train TRAIN --calibrate HELD_OUT -o my.nescio" in result.output
    page = Path("try.html").read_text(encoding="utf-8")
    assert command in page
    assert page.count("data:image/webp") == 3
    assert "a&lt;b&gt;0.png" in page
    assert "<b>0.png" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # it needs nothing else


def test_the_numbers_are_those_of_the_session(pictures: list[str]) -> None:
    session = nescio.Session(tiny_net(), transform=nescio.Transform(crop=8), max_bad=1.0, workers=0, progress=False)
    found = trial(session, pictures, detectors=["msp", "energy"])
    logits = session.features(pictures).record().logits
    read = [look for look in found.looks if not look.error]
    assert [look.error != "" for look in found.looks] == [False, False, False, True]
    for look, row in zip(read, logits, strict=True):
        top = row.softmax(0).sort(descending=True)
        assert [name for name, _ in look.nearest] == [f"class {c}" for c in top.indices[:3].tolist()]
        torch.testing.assert_close(torch.tensor([p for _, p in look.nearest]), top.values[:3])
        assert look.accepted == (look.above["msp"] > BAR)
    order = sorted(range(3), key=lambda i: logits[i].softmax(0).max().item())
    above = [read[i].above["msp"] for i in order]
    assert above == sorted(above)
    assert "energy" in found.serving["nothing more"]
    assert "knn" in found.serving["training images"]
    assert "fmls" in found.serving["training images with labels"]
    assert any("ssod" in specs for specs in found.refused.values())


def test_what_cannot_be_tried_is_said_in_one_line(pictures: list[str]) -> None:
    fitted = nescio_try(pictures[0], "--detector", "knn")
    assert fitted.exit_code == 2
    assert "'knn' is fitted on training images" in fitted.output
    many = nescio_try(*[pictures[0]] * (MOST + 1))
    assert many.exit_code == 2
    assert f"'IMAGES[~{MOST}]'" in many.output
    folder = nescio_try(pictures[0], "-o", "page.txt")
    assert folder.exit_code == 2
    assert ".html" in folder.output


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_the_window(pictures: list[str], browser: Any, width: int, scheme: str) -> None:
    assert nescio_try(*pictures).exit_code == 0
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(Path("try.html").absolute().as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".verdict").count() == 4
    assert all(url.startswith(("file:", "data:")) for url in asked)
    page.close()


def test_nescio_alone_says_where_to_begin() -> None:
    said = CliRunner().invoke(main, []).output
    begin, commands = said.index("nescio try MODEL"), said.index("Commands:")
    assert said.index("nescio bench --model") < said.index("nescio fit --model") < commands
    assert begin < commands


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> str:
        asked = {"_NESCIO_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-c", "from nescio.cli import main; main(prog_name='nescio')"]
        return subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False).stdout

    assert completed("nescio tr").split() == ["plain,train", "plain,try"]
    assert "plain,--calibrate" in completed("nescio fit --cal")
