"""The service as it is run: a process of its own, real images, a browser, hostile uploads, and its end."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

import nescio
from conftest import encoded
from fuzz import Siege, fuzz
from nescio.data import open_source
from nescio.data.source import Rows
from serving import service

CALIBRATION = 60


@pytest.fixture(scope="module")
def file(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with a threshold from real images; its head's rows are the prototypes."""
    held = Rows(open_source(shared / "data/imagenet-sample/test.parquet"), list(range(CALIBRATION)))
    path = tmp_path_factory.mktemp("served") / "lite0.nescio"
    network = nescio.load_classifier("efficientnet-lite0")
    made = nescio.fit(
        nescio.Session(network, progress=False, workers=0), "fm:p=0.3+ls:prototypes=head+energy", calibrate=held
    )
    made.save(path)
    return path


@pytest.fixture(scope="module")
def running(file: Path) -> Iterator[tuple[str, Any]]:
    with service(file) as (url, process):
        yield url, process
    assert process.returncode == 0


@pytest.fixture(scope="module")
def served(running: tuple[str, Any]) -> str:
    return running[0]


@pytest.fixture(scope="module")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    source = open_source(shared / "data/imagenet-sample/test.parquet")
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"photo{i}.jpg" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(source.read(CALIBRATION + i))
    return paths


def test_verdicts_over_http_are_those_of_python(served: str, file: Path, photographs: list[Path]) -> None:
    answer = httpx.post(f"{served}/predict", files=[("images", p.open("rb")) for p in photographs], timeout=60)
    assert answer.status_code == 200
    expected = nescio.load(file, device="cpu")(photographs)
    for said, v in zip(answer.json()["verdicts"], expected, strict=True):
        assert (said["label"], said["accepted"]) == (v.label, v.accepted)
        assert said["score"] == pytest.approx(v.score, rel=1e-4)


@pytest.mark.parametrize(
    ("path", "mode", "examples"),
    [("/predict", "POSITIVE", 60), ("/predict", "NEGATIVE", 100)]
    + [(path, "POSITIVE", 3) for path in ("/drift", "/info", "/metrics", "/health", "/ready")],
)
def test_it_answers_as_its_description_says(served: str, path: str, mode: str, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{served}/openapi.json")
    (operation,) = (o.ok() for o in schema.get_all_operations() if o.ok().path == path)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    def answers(case: Any) -> None:
        # any bytes may be sent by the description; that they are no image is found when they are decoded
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    answers()


def test_hostile_images_get_a_reason_and_change_nothing(served: str) -> None:
    with ThreadPoolExecutor(1) as apart:  # from the browser's event loop
        found = apart.submit(asyncio.run, fuzz(served, 400, clients=4)).result()
    assert not found.wrong
    assert sum(sum(each.values()) for each in found.statuses.values()) == 400
    assert {200, 415, 422} <= {status for each in found.statuses.values() for status in each}


def test_killed_decoders_are_replaced_and_no_request_is_lost(running: tuple[str, Any]) -> None:
    url, process = running
    siege = Siege(psutil.Process(process.pid), encoded(Image.new("RGB", (60, 60), "red")), 12.0)
    with ThreadPoolExecutor(1) as apart:
        apart.submit(asyncio.run, siege.run(url)).result()
    assert not siege.wrong
    assert siege.killed > 5
    assert siege.statuses[200] > 5 * siege.statuses[503]


def test_it_is_reached_by_the_other_address_of_this_machine(file: Path) -> None:
    with service(file, "--host", "::1", "--decoders", "1") as (url, process):
        assert url.startswith("http://[::1]:")
        for path in ("/", "/ready"):
            assert httpx.get(url + path).status_code == 200
        assert httpx.get(f"{url}/ready", headers={"Host": "evil.example"}).status_code == 400
    assert process.returncode == 0


# --- in a browser


def test_the_page_says_class_verdict_and_why(
    browser: Any, served: str, file: Path, photographs: list[Path], tmp_path: Path
) -> None:
    judge = nescio.load(file, device="cpu")
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(noise)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photographs[0].read_bytes()[:500])
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda e: problems.append(str(e)))
    httpx.post(f"{served}/drift/reset")
    page.goto(served)
    page.get_by_text(judge.calibration.promise()).wait_for()
    page.set_input_files("#files", [photographs[0], noise, broken])
    page.get_by_text(re.compile(r"\d images? left")).wait_for(state="detached")
    cards = {name: page.locator(".card", has_text=name) for name in ("photo0.jpg", "noise.png", "broken.jpg")}
    for name, path in (("photo0.jpg", photographs[0]), ("noise.png", noise)):
        (v,) = judge(path)
        cards[name].locator("dd").first.wait_for()
        assert cards[name].locator(".answer").inner_text() == (v.label if v.accepted else "I do not know")
        shown = cards[name].inner_text()
        assert f"{v.p_value:.4f}" in shown
        assert v.label in shown
        assert "nearest class" in shown
    assert not judge(noise)[0].accepted
    assert "broken.jpg: " in cards["broken.jpg"].locator(".answer").inner_text()

    # the patch map darkens the picture where it is asked for, and says what it is
    canvas, wanted = cards["photo0.jpg"].locator("canvas"), cards["photo0.jpg"].get_by_role("checkbox")
    brightness = "c => c.getContext('2d').getImageData(0, 0, 224, 224).data.reduce((a, b) => a + b, 0)"
    bare = canvas.evaluate(brightness)
    assert not cards["photo0.jpg"].get_by_text("Bright:").is_visible()
    wanted.check()
    assert canvas.evaluate(brightness) < bare
    assert cards["photo0.jpg"].get_by_text("Bright:").is_visible()
    wanted.uncheck()
    assert canvas.evaluate(brightness) == bare

    # images of the page are not counted; those of the API are, until the test is restarted
    page.get_by_text("Images on this page do not count").wait_for()
    httpx.post(f"{served}/predict", files=[("images", p.open("rb")) for p in photographs], timeout=60)
    page.reload()
    page.get_by_text("images were rejected").wait_for()
    assert page.locator("#bars li").count() == 10
    assert max(box["height"] for bar in page.locator("#bars li").all() if (box := bar.bounding_box())) > 50
    page.get_by_role("button", name="Restart the test").click()
    page.get_by_text("No image has come in through the API yet").wait_for()
    assert httpx.get(f"{served}/drift").json()["seen"] == 0
    assert not problems
    page.close()


def test_a_phone_shows_it_over_its_whole_width(browser: Any, served: str, photographs: list[Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(served)
    page.set_input_files("#files", photographs[:1])
    page.locator("dd").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    card, told = page.locator(".card").bounding_box(), page.locator("dl").bounding_box()
    assert card["width"] > 360
    assert told["width"] > 0.9 * card["width"]
    page.goto(f"{served}/docs")
    page.get_by_text("POST /predict").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


def test_pasted_images_are_judged(browser: Any, served: str) -> None:
    page = browser.new_page()
    page.goto(served)
    pasted = """() => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 60, height: 60 });
        canvas.getContext("2d").fillRect(0, 0, 30, 60);
        canvas.toBlob((blob) => {
            const data = new DataTransfer();
            data.items.add(new File([blob], "image.png", { type: "image/png" }));
            window.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        });
    }"""
    page.evaluate(pasted)
    page.locator(".card", has_text="pasted 1").locator("dd").first.wait_for()
    page.close()


# --- its end


def test_it_finishes_what_it_has_begun_and_leaves_nothing_behind(file: Path) -> None:
    big = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)), "PNG")
    with service(file) as (url, process):
        children = psutil.Process(process.pid).children(recursive=True)
        answers: list[int] = []
        send = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/predict", files={"images": big}, timeout=60).status_code)
        )
        send.start()
        while httpx.get(f"{url}/metrics").text.find("nescio_requests_running 1.0") < 0:
            assert send.is_alive()
        process.send_signal(signal.SIGTERM)
        send.join()
        assert process.wait(30) == 0
    assert answers == [200]
    assert not psutil.wait_procs(children, timeout=10)[1]
