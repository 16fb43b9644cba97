"""The example in a browser: verdicts as in Python, and images that stay where they are."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny_networks
from nescio import Classifier, Deployed, Detector, export
from nescio.calibration.conformal import Calibration
from nescio.core.feature_set import FeatureSet
from nescio.data import Transform

EXAMPLE = Path(__file__).parents[2] / "examples/browser"
SIZES = {"as-it-is.png": (20, 20), "wide.png": (301, 120), "high.jpg": (64, 97), "small.png": (11, 9)}


class _Recorded(SimpleHTTPRequestHandler):
    seen: list[tuple[str, str]]

    def log_message(self, *_: Any) -> None:
        pass

    def parse_request(self) -> bool:
        read = super().parse_request()
        self.seen.append((self.command, self.path))
        return read


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, list[tuple[str, str]]]]:
    """The example and a folder for models, behind a plain file server that notes every request."""
    if not (EXAMPLE / "node_modules/onnxruntime-web").is_dir():
        pytest.skip("needs onnxruntime-web: make browser-example")
    root = tmp_path_factory.mktemp("site")
    for path in EXAMPLE.iterdir():
        (root / path.name).symlink_to(path)
    seen: list[tuple[str, str]] = []
    handler = functools.partial(type("Recorded", (_Recorded,), {"seen": seen}), directory=str(root))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root, seen
    server.shutdown()
    server.server_close()


def pictures(folder: Path) -> list[Path]:
    paths = []
    for seed, (name, size) in enumerate(SIZES.items()):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        paths.append(folder / name)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=95)
    return paths


@pytest.mark.parametrize(("interpolation", "per_class"), [("bilinear", False), ("bicubic", True)])
def test_verdicts_are_pythons_and_no_image_is_sent(
    browser: Any, site: Any, tmp_path: Path, interpolation: str, per_class: bool, unrecorded: None
) -> None:
    url, root, seen = site
    transform = Transform(crop=16, resize=20, interpolation=interpolation)
    classifier = Classifier(tiny_networks.batch_norm_net().eval(), transform, classes=["bird", "fish", "ünß"])
    detector = Detector("energy").fit(FeatureSet(head=classifier.head))
    files = pictures(tmp_path)
    scores = np.array([v.score for v in Deployed(classifier, detector, Calibration.fit(np.arange(99.0)))(files)])
    middle = np.sort(scores)[1:3].mean()
    spread = scores.std()
    held, pred = middle + spread * np.linspace(-0.04, 2, 99), np.arange(99) % 3
    calibration = Calibration.fit(held, pred, accept=0.95, n_classes=3 if per_class else None)
    deployed = Deployed(classifier, detector, calibration)
    export(deployed, root / f"{interpolation}.onnx", preprocess="nhwc")
    wanted = deployed(files)

    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{url}/index.html?model={interpolation}.onnx")
    page.locator("#status", has_text="Ready.").wait_for()
    assert page.inner_text("#promise") == calibration.promise()
    before = len(seen)
    page.set_input_files("#picker", [str(f) for f in files])
    page.locator("li[data-verdict]").nth(len(files) - 1).wait_for()
    assert seen[before:] == []
    assert {method for method, _ in seen} == {"GET"}
    found = [json.loads(text) for text in page.eval_on_selector_all("li", "all => all.map(li => li.dataset.verdict)")]
    for there, here in zip(found, wanted, strict=True):
        assert (there["label"], there["accepted"]) == (here.label, here.accepted)
        assert there["score"] == pytest.approx(here.score, abs=0.01 * spread)
        assert there["pValue"] == pytest.approx(here.p_value, abs=0.02)
    said = page.eval_on_selector_all("li .verdict", "all => all.map(v => v.textContent)")
    assert said == [v.label if v.accepted else "I do not know" for v in wanted]
    assert len({v.accepted for v in wanted}) == 2

    for share in (0.0, 0.5):  # another threshold, from the table in the file
        page.eval_on_selector(
            "#slider", f"s => {{ s.value = {share}; s.dispatchEvent(new Event('input', {{bubbles: true}})); }}"
        )
        said = page.eval_on_selector_all("li .verdict", "all => all.map(v => v.textContent)")
        assert said == [v.label if v.p_value > share + 1e-9 else "I do not know" for v in wanted]
    assert problems == []
    page.close()
