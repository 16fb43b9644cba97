"""The service, without a network between: endpoints, limits, refusals, drift, metrics."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from starlette.testclient import TestClient
from torch import Tensor

from conftest import TINY_TRANSFORM, coloured, encoded, picture, tiny_net
from nescio.calibration.conformal import Calibration
from nescio.cli import main
from nescio.core.errors import BadImage, InputError
from nescio.data import Transform
from nescio.deploy import Deployed, fit
from nescio.models import Classifier
from nescio.run.session import Session
from nescio.serving import Limits, create_app, serve
from nescio.serving.batcher import Batcher
from nescio.serving.connections import possible_connections
from nescio.serving.decoders import Decoders
from nescio.serving.explain import Explainer
from nescio.serving.fair import FairQueue
from nescio.serving.seldom import Seldom

TOKEN = "".join(["sés", "ame"])
LIMITS = Limits(bytes=300_000, pixels=10_000, images=3, seconds=20, requests=2)


def upload(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{i}.png", raw)) for i, raw in enumerate(images)]


@pytest.fixture(scope="module")
def tiny_deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    root = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("train", "held")):
        coloured(root, name, per_class=30, classes=4, side=8, seed=seed)
    classifier = Classifier(tiny_net(), TINY_TRANSFORM, name="tiny", classes=["red", "green", "blue", "dark"])
    session = Session(classifier, workers=0, progress=False)
    return fit(session, "fm:p=0.5+ls+energy", train=root / "train", calibrate=root / "held", accept=0.9)


@pytest.fixture(scope="module")
def client(tiny_deployed: Deployed) -> Iterator[TestClient]:
    with TestClient(create_app(tiny_deployed, limits=LIMITS, decoders=1)) as opened:
        yield opened


def test_verdicts_are_those_of_the_file(client: TestClient, tiny_deployed: Deployed) -> None:
    images = [encoded(picture(i)) for i in range(3)]
    answer = client.post("/predict", files=upload(*images))
    assert answer.status_code == 200
    said = answer.json()["verdicts"]
    for name, one, v in zip(("0.png", "1.png", "2.png"), said, tiny_deployed(images), strict=True):
        assert (one["image"], one["label"], one["index"], one["accepted"]) == (name, v.label, v.index, v.accepted)
        assert one["score"] == pytest.approx(v.score, rel=1e-5)
        assert one["p_value"] == pytest.approx(v.p_value, abs=0.02)
        assert one["explanation"] is None


def test_an_explanation_names_the_nearest_prototype_and_maps_the_patches(
    client: TestClient, tiny_deployed: Deployed
) -> None:
    raw = encoded(picture(1))
    (said,) = client.post("/predict?explain=true", files=upload(raw)).json()["verdicts"]
    crop = tiny_deployed.classifier.transform.geometry(Image.open(io.BytesIO(raw)))
    h = tiny_deployed.features(crop[None])[0].h[0].numpy()
    (centres,) = (s.centres for s in tiny_deployed.detector.modules() if hasattr(s, "centres"))
    cosines = centres.numpy() @ h / np.linalg.norm(centres.numpy(), axis=1) / np.linalg.norm(h)
    explanation = said["explanation"]
    assert explanation["nearest"] == tiny_deployed.class_name(int(cosines.argmax()))
    assert explanation["cosine"] == pytest.approx(cosines.max(), abs=1e-5)
    assert explanation["prototypes"] == "training"
    confidence = np.array(explanation["patch_map"])
    assert confidence.ndim == 2
    assert ((confidence >= 0) & (confidence <= 1)).all()


def test_an_explained_verdict_is_the_same_and_takes_one_forward(client: TestClient, tiny_deployed: Deployed) -> None:
    """A forward of the backbone is counted where its first convolution sees an image; few images are at the edge."""
    seen = Counter[int]()

    def count(module: torch.nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            seen["images"] += len(inputs[0])

    uploads = [upload(*(encoded(picture(i)) for i in range(first, first + 3))) for first in range(0, 30, 3)]
    verdicts, forwards = {}, {}
    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        for path in ("/predict", "/predict?explain=true"):
            seen.clear()
            verdicts[path] = [v for files in uploads for v in client.post(path, files=files).json()["verdicts"]]
            forwards[path] = seen["images"]
    finally:
        hook.remove()
    plain, explained = verdicts.values()
    assert [v.pop("explanation") for v in plain] == [None] * 30
    assert all(v.pop("explanation")["patch_map"] for v in explained)
    for one, other in zip(plain, explained, strict=True):
        assert one == {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in other.items()}
    assert forwards["/predict?explain=true"] == forwards["/predict"] == 30


def test_an_image_at_the_edge_is_judged_once_more_alone_also_when_explained(tiny_deployed: Deployed) -> None:
    crop = tiny_deployed.classifier.transform.crop
    images = torch.randint(0, 256, (4, 3, crop, crop), generator=torch.manual_seed(0), dtype=torch.uint8)
    score = tiny_deployed.judge(images).score[1]
    at_the_edge = copy.copy(tiny_deployed)
    # equal scores have a tolerance of 1e-6 of them, and the least accepted score is that much less
    at_the_edge.calibration = Calibration.fit(np.full(9, score + 1e-6 * abs(score)), accept=0.5)
    explainer, seen = Explainer(at_the_edge), []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda m, x, _: seen.append(len(x[0])) if isinstance(m, torch.nn.Conv2d) and m.in_channels == 3 else None
    )
    try:
        judged, explanations = explainer(images)
    finally:
        hook.remove()
    assert seen == [4, 1]
    assert len(explanations) == 4
    for column, other in zip(vars(judged).values(), vars(at_the_edge.judge(images)).values(), strict=True):
        np.testing.assert_array_equal(column, other)


REFUSED: dict[str, tuple[list[bytes], int, str]] = {
    "no image": ([b"hello"], 415, "0.png: not an image in a known format"),
    "empty": ([b""], 422, "0.png: zero bytes"),
    "cut off": ([encoded(picture(0, (64, 64)))[:200]], 422, "0.png: "),
    "too many pixels": ([encoded(Image.new("1", (200, 200)))], 413, "200 × 200 pixels, above the limit of 10,000"),
    "thin, and judged": ([encoded(Image.new("1", (9_000, 1)))], 200, ""),
    "one of several": ([encoded(picture(0)), b"hello", encoded(picture(1))], 415, "1.png: not an image"),
    "too many": ([encoded(picture(0))] * 4, 413, "4 images in one request: the limit is 3"),
    "too many bytes": ([os.urandom(400_000)], 413, "the limit is 300,000 bytes"),
    "a program for a printer": ([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"], 415, "known format"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_judged_is_refused_with_the_reason(client: TestClient, what: str) -> None:
    images, status, reason = REFUSED[what]
    answer = client.post("/predict", files=upload(*images))
    assert answer.status_code == status, answer.text
    if status != 200:
        assert reason in answer.json()["detail"]
    assert client.post("/predict", files=upload(encoded(picture(0)))).status_code == 200  # it goes on


def test_requests_that_are_none_are_refused(client: TestClient) -> None:
    assert "images: Field required" in client.post("/predict").json()["detail"]
    assert "images" in client.post("/predict", data={"images": "text"}).json()["detail"]
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/predict", content=b"--y\r\nnothing", headers=broken).status_code in (400, 422)
    assert client.post("/predict", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    assert client.get("/predict").status_code == 405
    assert client.get("/nothing").status_code == 404


def test_a_body_of_no_stated_length_is_counted(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield bytes(10_000)

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/predict", content=endless(), headers=kind)
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        "the request is too large: the limit is 300,000 bytes",
    )


def asked(app: Any, messages: list[dict[str, Any]] | None, **scope: Any) -> tuple[int, dict[str, Any]]:
    """What an app answers to a request whose body comes as these messages; None: it never comes."""
    sent: list[dict[str, Any]] = []
    left = iter(messages or [])

    async def receive() -> dict[str, Any]:
        return next(left) if messages is not None else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    full = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b"", **scope}
    asyncio.run(app(full, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


MULTIPART = [(b"content-type", b"multipart/form-data; boundary=x"), (b"host", b"localhost")]


def test_a_body_that_does_not_come_is_not_waited_for(tiny_deployed: Deployed) -> None:
    app = create_app(tiny_deployed, limits=Limits(seconds=0.2))
    status, said = asked(app, None, headers=MULTIPART)
    assert (status, said["detail"]) == (408, "no answer within 0.2 s: the request is incomplete")
    assert app.state.service.metrics.running._value.get() == 0


def test_more_requests_than_may_run_are_told_to_come_again(tiny_deployed: Deployed) -> None:
    app = create_app(tiny_deployed, limits=Limits(seconds=0.3, requests=1))

    async def both() -> list[int]:
        sent: list[int] = []

        async def send(message: dict[str, Any]) -> None:
            sent.extend([message["status"]] if "status" in message else [])

        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": MULTIPART, "query_string": b""}
        await asyncio.gather(*(app(dict(scope), asyncio.Future, send) for _ in range(2)))
        return sent

    assert sorted(asyncio.run(both())) == [408, 503]


def test_a_token_is_asked_for_where_there_is_one(tiny_deployed: Deployed) -> None:
    with TestClient(create_app(tiny_deployed, token=TOKEN, decoders=1)) as client:
        for path in ("/info", "/drift", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 401, path
        for path in ("/", "/page.js", "/health", "/ready"):
            assert client.get(path).status_code == 200, path
        image = upload(encoded(picture(0)))
        for wrong in ({}, {"Authorization": "Bearer no"}, {"Authorization": TOKEN.encode()}):
            answer = client.post("/predict", files=image, headers=wrong)
            assert (answer.status_code, answer.json()["detail"]) == (
                401,
                "this service requires a token: send 'Authorization: Bearer TOKEN'",
            )
        for scheme in ("bearer", "BEARER"):
            small = {"Authorization": f"{scheme} {TOKEN}".encode()}
            assert client.get("/info", headers=small).status_code == 200
        right = {"Authorization": f"Bearer {TOKEN}".encode()}
        assert client.post("/predict", files=image, headers=right).status_code == 200
        described = client.get("/openapi.json", headers=right).json()
        assert described["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}]


def test_names_of_others_do_not_reach_a_service_of_this_machine(tiny_deployed: Deployed) -> None:
    app = create_app(tiny_deployed, hosts=("localhost", "::1"))
    for name in ("localhost", "localhost:8000", "[::1]", "[::1]:8000"):
        status, _ = asked(app, [], method="GET", path="/ready", headers=[(b"host", name.encode())])
        assert status == 503, name  # not started
    for name in ("evil.example", "localhost.evil.example", "[::2]:8000", "::1", ""):
        status, said = asked(app, [], method="GET", path="/ready", headers=[(b"host", name.encode())])
        assert (status, "is not available as" in said["detail"]) == (400, True), name


CROSSING: dict[str, tuple[dict[str, str], int]] = {
    "curl": ({}, 200),
    "its own page": ({"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}, 200),
    "its own page behind a proxy that changes the name": (
        {"Origin": "https://example.org", "Sec-Fetch-Site": "same-origin"},
        200,
    ),
    "an old browser": ({"Origin": "http://testserver"}, 200),
    "a page of another site": ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
    "another port of this machine": ({"Origin": "http://testserver:81", "Sec-Fetch-Site": "same-site"}, 403),
    "an old browser on another site": ({"Origin": "https://evil.example"}, 403),
    "a frame without an origin": ({"Origin": "null"}, 403),
}


@pytest.mark.parametrize("who", CROSSING)
def test_pages_of_other_sites_send_nothing(client: TestClient, who: str) -> None:
    headers, status = CROSSING[who]
    seen = client.get("/drift").json()["seen"]
    answer = client.post("/predict", files=upload(encoded(picture(0))), headers=headers)
    assert answer.status_code == status
    assert client.get("/drift").json()["seen"] == seen + (status == 200)
    assert client.post("/drift/reset", headers=headers).status_code == status
    assert client.get("/drift", headers=headers).status_code == 200
    if status == 403:
        assert "of another site" in answer.json()["detail"]


def test_drift_is_told_by_class_in_metrics_and_to_people(tiny_deployed: Deployed) -> None:
    with TestClient(create_app(tiny_deployed, decoders=1)) as client:
        assert client.get("/drift").json()["window"] == 0
        noise = [
            encoded(Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8))) for i in range(60)
        ]
        said = [
            v
            for at in range(0, 60, 30)
            for v in client.post("/predict", files=upload(*noise[at : at + 30])).json()["verdicts"]
        ]
        p = client.get("/drift").json()
        assert (p["seen"], p["window"], sum(p["p_values"])) == (60, 60, 60)
        assert p["rejected"] == sum(not v["accepted"] for v in said)
        assert {c["label"]: c["images"] for c in p["classes"]} == {
            label: sum(v["label"] == label for v in said) for label in {v["label"] for v in said}
        }
        known = {t.index: t for t in tiny_deployed.calibration.by_class}
        assert sum(t.images for t in known.values()) == tiny_deployed.calibration.n
        for c in p["classes"]:
            assert c["calibration"] is None or c["calibration"]["images"] > 0
        text = client.get("/metrics").text
        values = dict(re.findall(r"^(nescio_\S+) (\S+)$", text, re.MULTILINE))
        assert float(values["nescio_window_images"]) == 60
        assert float(values["nescio_window_rejected"]) == p["rejected"]
        assert float(values["nescio_drift_evidence"]) == pytest.approx(p["evidence"])
        assert float(values['nescio_images_total{said="rejected"}']) == p["rejected"]
        assert float(values['nescio_requests_total{status="200"}']) == 2
        assert float(values["nescio_requests_running"]) == 0
        assert "process_resident_memory_bytes" in text


def test_a_failure_is_told_as_one_and_the_next_image_is_judged(
    tiny_deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(tiny_deployed, decoders=1)
    with TestClient(app, raise_server_exceptions=False) as client:
        with monkeypatch.context() as broken:
            broken.setattr(tiny_deployed, "judge", lambda _: 1 / 0)
            answer = client.post("/predict", files=upload(encoded(picture(0))))
        assert (answer.status_code, list(answer.json())) == (500, ["detail"])
        assert client.post("/predict", files=upload(encoded(picture(0)))).status_code == 200
        assert client.get("/health").status_code == 200


def test_info_says_what_is_served(client: TestClient, tiny_deployed: Deployed) -> None:
    info = client.get("/info").json()
    assert info["calibration"]["promise"] == tiny_deployed.calibration.promise()
    assert info["limits"]["images"] == 3
    assert info["geometry"] == {"crop": 8, "resize": 8}


def test_pages_run_no_scripts_of_others(client: TestClient) -> None:
    for path in ("/", "/docs"):
        assert "default-src 'none'; script-src 'self'" in client.get(path).headers["content-security-policy"]
    parts = [client.get(path).text for path in ("/", "/page.js", "/page.css", "/docs", "/docs.css")]
    assert not [link for link in re.findall(r"https?://[^ <]+", "".join(parts)) if "//127.0.0.1:8000/" not in link]


def test_the_description_says_every_endpoint_and_field(client: TestClient) -> None:
    page, described = client.get("/docs").text, client.get("/openapi.json").json()
    assert "<script" not in page
    for path, operations in described["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in page
    for field in ("images", "explain", "count", *described["components"]["schemas"]["ImageVerdict"]["properties"]):
        assert f"<code>{field}</code>" in page
    assert "list of ImageVerdict" in page
    assert "boolean = true" in page


def test_nothing_is_read_as_what_it_is_not(client: TestClient) -> None:
    for path in ("/", "/docs", "/info", "/drift", "/metrics", "/ready", "/nothing", "/predict"):
        assert client.get(path).headers["x-content-type-options"] == "nosniff", path
    assert client.post("/predict").headers["x-content-type-options"] == "nosniff"


def test_images_that_are_tried_by_hand_are_not_counted_and_the_test_begins_anew(client: TestClient) -> None:
    client.post("/drift/reset")
    image = upload(encoded(picture(0)))
    assert client.post("/predict?count=false", files=image).status_code == 200
    assert client.get("/drift").json()["seen"] == 0
    client.post("/predict", files=image)
    assert client.get("/drift").json()["seen"] == 1
    told = client.post("/drift/reset").json()
    assert (told["seen"], told["window"], told["alarmed"], told["evidence"]) == (0, 0, 0, 0.0)
    assert client.get("/drift").json() == told


def test_one_client_leaves_places_for_others(tiny_deployed: Deployed) -> None:
    app = create_app(tiny_deployed, limits=Limits(seconds=0.5, requests=8))

    async def flood() -> list[tuple[str, int]]:
        sent: list[tuple[str, int]] = []

        async def ask(client: str) -> None:
            async def send(message: dict[str, Any]) -> None:
                sent.extend([(client, message["status"])] if "status" in message else [])

            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": MULTIPART, "query_string": b""}
            await app({**scope, "client": (client, 1)}, asyncio.Future, send)

        await asyncio.gather(*(ask(client) for client in ["10.0.0.1"] * 20 + ["10.0.0.2", "10.0.0.3"]))
        return sent

    found = Counter(asyncio.run(flood()))
    assert found == {("10.0.0.1", 503): 15, ("10.0.0.1", 408): 5, ("10.0.0.2", 408): 1, ("10.0.0.3", 408): 1}


def test_a_failure_has_one_traceback_however_often_it_happens(
    tiny_deployed: Deployed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(create_app(tiny_deployed, decoders=1), raise_server_exceptions=False) as client:
        monkeypatch.setattr(tiny_deployed, "judge", lambda _: 1 / 0)
        answers = [client.post("/predict", files=upload(encoded(picture(0)))) for _ in range(10)]
    assert {a.status_code for a in answers} == {500}
    assert len([r for r in caplog.records if r.exc_info]) == 1


# --- the parts


def test_images_that_come_while_others_are_judged_go_together() -> None:
    sizes, go = [], threading.Event()

    def work(images: Tensor) -> list[float]:
        go.wait(10)
        sizes.append(len(images))
        return [float(image.sum()) for image in images]

    batcher = Batcher(work, 4)
    first = batcher.submit(torch.full((3, 1, 1), 7.0))
    time.sleep(0.1)
    futures: list[Future[Any]] = [batcher.submit(torch.full((3, 1, 1), float(i))) for i in range(9)]
    assert futures[8].cancel()
    go.set()
    batcher.close()  # what has come in is finished first
    assert first.result() == 21
    assert [f.result() for f in futures[:8]] == [3.0 * i for i in range(8)]
    assert sizes == [1, 4, 4]


def test_clients_take_turns() -> None:
    jobs: FairQueue[str] = FairQueue()
    for name in ("a1", "a2", "a3", "b1", "c1", "c2"):
        jobs.put(name[0], name)
    jobs.put("b", "b0", first=True)
    assert list(iter(jobs.get, None)) == ["a1", "b0", "c1", "a2", "b1", "c2", "a3"]
    assert not jobs


def test_an_image_of_another_client_is_in_the_next_batch() -> None:
    batches, go = [], threading.Event()

    def work(images: Tensor) -> list[float]:
        go.wait(10)
        batches.append(images.flatten().tolist())
        return [0.0] * len(images)

    batcher = Batcher(work, 4)
    batcher.submit(torch.full((1, 1, 1), -1.0), "first")
    time.sleep(0.1)
    for i in range(100):
        batcher.submit(torch.full((1, 1, 1), float(i)), "flood")
    batcher.submit(torch.full((1, 1, 1), 1000.0), "other")
    go.set()
    batcher.close()
    assert batches[1] == [0, 1000, 1, 2]


def test_a_cause_is_logged_ever_less_often(caplog: pytest.LogCaptureFixture) -> None:
    now, logger = [0.0], logging.getLogger("nescio.test_seldom")
    logger.addFilter(Seldom(clock=lambda: now[0]))
    for second in range(4_000):
        now[0] = float(second)
        logger.warning("changed at %d", second)
        if second == 50:
            logger.warning("something else")
    lines = [r.getMessage() for r in caplog.records if r.name == logger.name]
    assert lines[:2] == ["changed at 0", "changed at 10 (and 9 more like it since the last line of this kind)"]
    assert "something else" in lines
    assert len(lines) == 10  # at 0, 10, 30, 70, 150, …, 2550 s
    now[0] = 20_000.0  # after a rest it is new
    logger.warning("changed at %d", 5)
    assert caplog.records[-1].getMessage() == "changed at 5"


def test_a_batch_that_fails_is_told_to_its_clients_alone() -> None:
    def work(images: Tensor) -> list[Any]:
        if len(images) == 1 and images.sum() < 0:
            raise RuntimeError("out of memory")
        return [InputError("this one") if image.sum() > 5 else 1 for image in images]

    batcher = Batcher(work, 1)
    bad, odd, good = (batcher.submit(torch.full((1, 1, 1), v)) for v in (-1.0, 9.0, 0.0))
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(10)
    with pytest.raises(InputError, match="this one"):
        odd.result(10)
    assert good.result(10) == 1
    batcher.close()


class Hangs(Transform):
    """Decoding that never ends, ends the process, or wants all memory, by the size of the image."""

    def geometry(self, image: Image.Image) -> Tensor:
        if image.width == 2:
            time.sleep(100)
        if image.width == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if image.width == 6 and sys.platform == "linux":
            bytearray(8 << 30)
        return super().geometry(image)


def test_a_decoder_that_hangs_or_dies_is_replaced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # however long the processes take to start, the same line comes once
    monkeypatch.setattr("nescio.serving.decoders.log.filters", [Seldom(clock=lambda: 0.0)])

    async def each() -> list[Any]:
        decoders = Decoders(Hangs(4), processes=1, most=1000, seconds=1.0)
        await decoders.start()
        raws = [encoded(Image.new("RGB", (width, 8))) for width in (4, 2, 3, 6, 5)]
        found = [await asyncio.gather(decoders(raw), return_exceptions=True) for raw in raws]
        await decoders.close()
        return found

    (fine,), (hung,), (died,), (large,), (again,) = asyncio.run(each())
    if sys.platform == "linux":  # elsewhere a process has no such limit
        assert str(large) == "it needs more memory than a decoder has"
    assert isinstance(hung, BadImage)
    assert str(hung) == "it takes longer than 1 s to decode"
    assert str(died) == "the decoder crashed on it"
    assert fine.shape == again.shape == (3, 4, 4)
    assert [r.getMessage() for r in caplog.records] == ["a decoder has ended; starting another"]


def test_a_decoder_that_is_killed_while_idle_or_busy_loses_no_image() -> None:
    raw = encoded(Image.new("RGB", (8, 8), "red"))

    async def killed() -> list[bool]:
        decoders = Decoders(TINY_TRANSFORM, processes=1, most=1000, seconds=20.0)
        await decoders.start()
        ready = [decoders.ready]
        for busy in (False, True):
            (one,) = decoders.running
            waiting = [asyncio.ensure_future(decoders(raw)) for _ in range(5)] if busy else []
            await asyncio.sleep(0)
            os.kill(one.process.pid, signal.SIGKILL)
            await one.ended
            await asyncio.sleep(0)
            ready.append(decoders.ready)
            for image in await asyncio.gather(*waiting, decoders(raw)):
                assert image[0].eq(255).all()
            ready.append(decoders.ready)
        await decoders.close()
        return [*ready, decoders.ready]

    # it says no while there is none, and yes again
    assert asyncio.run(killed()) == [True, False, True, False, True, False]


def test_few_open_files_mean_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for limits, raised, expected in [
        ((1024, 1024), (1024, 1024), 448),
        ((1024, 4096), (4096, 4096), 1984),
        ((1024, 1_000_000), (8320, 1_000_000), 4096),
        ((100_000, 100_000), None, 4096),
        ((64, 64), (64, 64), 1),
    ]:
        given: list[tuple[int, int]] = []
        monkeypatch.setattr("resource.getrlimit", lambda _, limits=limits: limits)
        monkeypatch.setattr("resource.setrlimit", lambda _, new, given=given: given.append(new))
        assert possible_connections() == expected
        assert given == ([] if raised is None else [raised])


def test_limits_are_numbers_above_zero() -> None:
    with pytest.raises(InputError, match="seconds=0"):
        Limits(seconds=0)


def test_an_address_in_use_is_said(tiny_deployed: Deployed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} is not available: Address already in use"):
            serve(tiny_deployed, port=port)
    with pytest.raises(InputError, match="is not available"):
        serve(tiny_deployed, host="no.such.name.invalid")


def test_the_command_hands_its_options_on(tiny_deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("nescio.deploy.load", lambda *_args, **_options: tiny_deployed)
    monkeypatch.setattr("nescio.serving.serve", lambda deployed, **options: given.update(options, deployed=deployed))
    monkeypatch.setenv("NESCIO_TOKEN", TOKEN)
    options = "--max-bytes 1 --max-pixels 2 --max-images 3 --timeout 4 --concurrency 5 --port 6 --decoders 7"
    result = CliRunner().invoke(main, ["serve", "my.nescio", *options.split()], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert given["deployed"] is tiny_deployed
    assert given["limits"] == Limits(bytes=1, pixels=2, images=3, seconds=4, requests=5)
    assert (given["port"], given["decoders"], given["token"], given["host"]) == (6, 7, TOKEN, "127.0.0.1")
    assert CliRunner().invoke(main, ["serve", "my.nescio", "--timeout", "0"]).exit_code == 2


def test_a_network_that_does_not_run_is_not_served(
    tiny_deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Tensor) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tiny_deployed, "judge", broken)
    # uvicorn closes all handlers of this process; absl's, which TensorBoard brings, would close pytest's own output
    monkeypatch.setattr("logging._handlerList", [])
    with pytest.raises(InputError, match="did not start"):
        serve(tiny_deployed, port=0, decoders=1)
    assert "out of memory" in capsys.readouterr().err
