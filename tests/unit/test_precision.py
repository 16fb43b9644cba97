"""Graphs in float16 and int8: the network alone is lowered, and what is promised holds for what is written."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from PIL import Image
from torch import nn

import tiny_networks
from conftest import Pictures, training
from nescio.calibration.conformal import Calibration
from nescio.calibration.posterior import ProxyCalibrator
from nescio.cli import main
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.data import Transform
from nescio.deploy import Deployed, export, recalibration
from nescio.deploy import onnx as onnx_graph
from nescio.deploy.graph import END, OUTPUTS, Judge
from nescio.deploy.lower import cut_network, put_back
from nescio.deploy.recalibration import Images
from nescio.evaluation.metrics import auroc
from nescio.evaluation.proxies import proxy_source
from nescio.methods.trained.ssod import SSODHead
from nescio.models import Classifier

SIDE, CLASSES = 16, 3
pytestmark = pytest.mark.usefixtures("unrecorded")


class Made(Pictures):
    """A bright square of the class's colour on noise; with ``colour``, of that one."""

    def __init__(self, n: int, seed: int, colour: tuple[int, int, int] | None = None) -> None:
        super().__init__(n)
        self.identity = self.stamp = f"made-{n}-{seed}-{colour}"
        self.labels, rng = np.arange(n) % CLASSES, np.random.default_rng(seed)
        self.pixels = rng.integers(0, 150, (n, SIDE, SIDE, 3), dtype=np.uint8)
        for pixels, c in zip(self.pixels, self.labels, strict=True):
            x, y = rng.integers(0, SIDE // 2, 2)
            pixels[y : y + 8, x : x + 8] = rng.integers(120, 250) * np.array(colour or np.eye(3, dtype=int)[c])

    def read(self, i: int) -> Any:
        return Image.fromarray(self.pixels[i])


HELD, OTHER = Made(300, seed=2), Made(60, seed=3, colour=(1, 1, 0))


@functools.cache
def network() -> Classifier:
    """Trained for a second, with an OOD head that was not."""
    torch.manual_seed(0)
    model, train = tiny_networks.batch_norm_net(), Made(240, seed=1)
    transform = Transform(crop=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    x, y = transform.normalise(torch.from_numpy(train.pixels).permute(0, 3, 1, 2)), torch.from_numpy(train.labels)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return Classifier(model.eval(), transform, name="tiny", heads={"ood": SSODHead(16)})


@functools.cache
def deployed(spec: str, *, heads: bool = False, proxy: str | None = None) -> Deployed:
    classifier, detector = network(), Detector(spec)
    if not heads:
        classifier = Classifier(tiny_model(), classifier.transform, name="tiny")
    x = torch.from_numpy(Made(240, seed=1).pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        f = classifier.probed(detector.needs.probes)(classifier.transform.normalise(x))
    detector.fit(training(type(f)(f.h, f.head, f.pred, torch.arange(240) % CLASSES, f.aux)))
    made = Deployed(classifier, detector, Calibration(0.9, None, ()), about={"data": {"train": "made-240-1-None"}})
    made.calibration = Calibration.fit(np.linspace(-5, 5, 99), np.arange(99) % CLASSES, accept=0.9, n_classes=CLASSES)
    if proxy:
        made.calibrator = ProxyCalibrator(1.0, 2.0, proxy, 0.3)
    return made


@functools.cache
def tiny_model() -> nn.Module:
    model = tiny_networks.batch_norm_net()
    trained = network()
    model.load_state_dict(
        {**trained.body.state_dict(), **{f"fc.{k}": v for k, v in trained.layer.state_dict().items()}}
    )
    return model.eval()


def run(file: Path, source: Any, layout: str | None = None) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    pixels = np.stack([np.asarray(source.read(i).resize((SIDE, SIDE))) for i in range(len(source))])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    given = {None: network().transform.normalise(x).numpy(), "nchw": x.contiguous().numpy(), "nhwc": pixels}[layout]
    names = [o.name for o in session.get_outputs()]
    assert list(json.loads(session.get_modelmeta().custom_metadata_map["outputs"])) == names
    return dict(zip(names, session.run(None, {"image": given}), strict=True))


def types(file: Path) -> dict[str, int]:
    return {t.name: t.data_type for t in onnx.load(file).graph.initializer}


def said(file: Path) -> dict[str, str]:
    return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map


@pytest.mark.parametrize(
    ("precision", "layout", "kind"), [("fp16", "nhwc", TensorProto.FLOAT16), ("int8", None, TensorProto.INT8)]
)
def test_the_promise_is_of_the_graph_that_is_written(
    precision: str, layout: str | None, kind: int, tmp_path: Path
) -> None:
    made = deployed("fm:p=0.6+ls+energy")
    export(made, tmp_path / "full.onnx", preprocess=layout)
    lost = export(
        made,
        tmp_path / "d.onnx",
        preprocess=layout,
        precision=precision,
        calibrate=HELD,
        ood={"yellow": OTHER},
        workers=0,
        progress=False,
    )
    images = Images.of(made, precision, HELD)
    full, found = (run(tmp_path / name, images.held, layout) for name in ("full.onnx", "d.onnx"))
    assert list(found) == list(full) == list(OUTPUTS)[:4]
    assert found["logits"].dtype == np.float32
    assert found["score"].dtype == np.float64
    agreement = (found["logits"].argmax(axis=1) == full["logits"].argmax(axis=1)).mean()
    assert agreement >= (0.99 if precision == "fp16" else 0.95)
    assert lost.same_label == agreement
    assert (lost.ranges, lost.calibration.n) == ((0, 300) if precision == "fp16" else (60, 240))
    assert 1e-6 < np.abs(found["score"] - full["score"]).max() < 0.5 * full["score"].std()

    own = Calibration.fit(found["score"], found["logits"].argmax(axis=1), accept=0.9, n_classes=CLASSES)
    assert len(own.groups) > 1
    groups = json.loads(said(tmp_path / "d.onnx")["thresholds"])
    assert [g["threshold"] for g in groups] == [g.threshold for g in own.groups]
    assert [g["n"] for g in groups] == [len(g.scores) for g in own.groups]
    assert [g["threshold"] for g in groups] != [g.threshold for g in made.calibration.groups]
    assert said(tmp_path / "d.onnx")["promise"] == own.promise() == lost.calibration.promise()
    pred = found["logits"].argmax(axis=1)
    assert (found["accepted"] == own.accepted(found["score"], pred)).all()
    np.testing.assert_allclose(found["p_value"], own.p_values(found["score"], pred), rtol=1e-12)
    assert 0.85 < found["accepted"].mean() < 0.95

    yellow = [run(tmp_path / name, OTHER, layout)["score"] for name in ("full.onnx", "d.onnx")]
    (loss,) = lost.losses
    assert (loss.name, loss.images, lost.stand_ins) == ("yellow", 60, False)
    assert loss.before == pytest.approx(auroc(full["score"], yellow[0]), abs=1e-3)
    assert loss.after == auroc(found["score"], yellow[1])

    assert kind in types(tmp_path / "d.onnx").values()
    assert kind not in types(tmp_path / "full.onnx").values()
    assert said(tmp_path / "d.onnx")["precision"] == precision
    assert said(tmp_path / "full.onnx")["precision"] == "fp32"
    about = json.loads(said(tmp_path / "d.onnx")["about"])
    assert about["data"]["calibrate"] == images.held.identity
    assert about["precision"]["losses"][0]["after"] == loss.after
    sizes = [(tmp_path / name).stat().st_size for name in ("full.onnx", "d.onnx")]
    assert lost.sizes == pytest.approx(sizes, rel=0.3)


def test_what_reads_the_features_stays_in_float32(tmp_path: Path) -> None:
    """Gram's powers would overflow in float16; an OOD head and the last linear layer are scores' own matter."""
    made = deployed("gram", heads=True)
    export(
        made,
        tmp_path / "d.onnx",
        precision="fp16",
        calibrate=HELD,
        ood={"yellow": OTHER},
        workers=0,
        progress=False,
    )
    graph = onnx.load(tmp_path / "d.onnx").graph
    by_output = {name: node for node in graph.node for name in node.output}
    weights = types(tmp_path / "d.onnx")
    head = by_output["logits"]
    assert head.op_type in ("Gemm", "Add")
    assert all(weights[name] == TensorProto.FLOAT for name in head.input if name in weights)
    lowered = {t for n, t in weights.items() if n.startswith("lowered/") and n.endswith("weight")}
    assert lowered == {TensorProto.FLOAT16}
    rest = {t for n, t in weights.items() if not n.startswith("lowered/")}
    assert not rest & {TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8}
    found = run(tmp_path / "d.onnx", HELD)
    wanted = made.judge(torch.from_numpy(HELD.pixels).permute(0, 3, 1, 2).contiguous())
    assert np.corrcoef(found["score"], wanted.score)[0, 1] > 0.95
    np.testing.assert_allclose(found["p_id"], wanted.p_id, atol=0.001)
    assert found["p_id"].std() > 0.01


def test_the_network_put_back_as_it_was_changes_nothing() -> None:
    made = deployed("multimahalanobis")
    graph = onnx_graph._graph(Judge(made, "nchw"), marked=True)
    part = cut_network(graph, "normalised", END)
    assert part.graph.output[0].name == END
    assert len(part.graph.output) > 1  # the map that the detector reads, too
    whole = put_back(graph, part)
    assert [o.name for o in whole.graph.output] == list(OUTPUTS)[:4]
    x = np.random.default_rng(0).integers(0, 256, (7, 3, SIDE, SIDE), dtype=np.uint8)
    before, after = (onnxruntime.InferenceSession(g.SerializeToString()) for g in (graph, whole))
    for a, b in zip(before.run(list(OUTPUTS)[:4], {"image": x}), after.run(None, {"image": x}), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_images_of_the_ranges_calibrate_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    shown: list[np.ndarray] = []

    def watched(part: Any, precision: str, images: Any) -> Any:
        shown.extend(images)
        raise Enough

    monkeypatch.setattr(recalibration, "lowered", watched)
    with pytest.raises(Enough):
        export(deployed("energy"), tmp_path / "d.onnx", precision="int8", calibrate=HELD, workers=0, progress=False)
    images = Images.of(deployed("energy"), "int8", HELD)
    assert set(images.ranges.rows).isdisjoint(images.held.rows)
    assert sorted([*images.ranges.rows, *images.held.rows]) == list(range(300))
    assert len(images.ranges) == 60
    transform = network().transform
    wanted = transform.normalise(torch.from_numpy(HELD.pixels[images.ranges.rows]).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(np.concatenate(shown), wanted.numpy())
    assert Images.of(deployed("energy"), "fp16", HELD).ranges is None


def test_a_probability_is_fitted_again_against_its_proxy(tmp_path: Path) -> None:
    made = deployed("energy", proxy="blur")
    lost = export(made, tmp_path / "d.onnx", precision="fp16", calibrate=HELD, workers=0, progress=False)
    assert [loss.name for loss in lost.losses] == ["noise", "tiles", "pixels", "blur", "corner"]
    assert lost.stand_ins
    found = run(tmp_path / "d.onnx", HELD)
    blurred = run(tmp_path / "d.onnx", proxy_source("blur", HELD, network()))
    scores = [torch.from_numpy(f["score"]) for f in (found, blurred)]
    wanted = ProxyCalibrator.fit(*scores, proxy="blur", prior=0.3)
    assert wanted.a != 1
    np.testing.assert_allclose(found["p_id"], wanted(scores[0]), atol=1e-6)
    about = json.loads(said(tmp_path / "d.onnx")["about"])
    kept = about["calibrator"]
    assert (kept["a"], kept["b"]) == pytest.approx((wanted.a, wanted.b), rel=1e-6)
    assert (kept["proxy"], kept["prior"]) == ("blur", 0.3)
    assert made.calibrator.a == 1  # the caller's is as it was


def test_what_cannot_be_lowered_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "d.onnx"

    def refused(said: str, made: Deployed | None = None, **options: Any) -> None:
        with pytest.raises(InputError, match=said):
            export(made or deployed("energy"), out, **options, progress=False, workers=0)

    refused("precision=bf16 is not one of the choices", precision="bf16")
    refused(r"in int8 gives other scores.*\(--calibrate\)", precision="int8")
    refused("a graph in fp32 keeps its calibration", calibrate=HELD)
    refused("a graph in fp32 keeps its calibration", ood={"yellow": OTHER})
    refused("are those that the detector was fitted on", precision="fp16", calibrate=Made(240, seed=1))
    refused("8 calibration images are too few to accept 0.9", precision="int8", calibrate=Made(10, seed=5))
    bad = Pictures(100, {3: b"none", 4: b"none"})
    refused("2 of 100 calibration images cannot be read; the first: picture 3", precision="fp16", calibrate=bad)

    torch.manual_seed(0)
    large = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    large[0].weight.data *= 60_000
    classifier = Classifier(large, network().transform, name="large")
    detector = Detector("energy").fit(FeatureSet(head=classifier.head))
    overflowing = Deployed(classifier, detector, Calibration.fit(np.arange(99.0)))
    refused(r"fp16 cannot represent the features of \d+ of 300", overflowing, precision="fp16", calibrate=HELD)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_what_is_lost_or_says_what_is_missing(tmp_path: Path) -> None:
    model = "tiny_networks:batch_norm_net"
    classifier = Classifier(tiny_model(), network().transform, name=model)
    detector = Detector("energy").fit(FeatureSet(head=classifier.head))
    Deployed(classifier, detector, Calibration.fit(np.linspace(-1, 3, 99))).save(tmp_path / "d.nescio")
    for source, name in ((HELD, "held"), (OTHER, "other")):
        (tmp_path / name).mkdir()
        for i in range(len(source)):
            source.read(i).save(tmp_path / name / f"{i:03}.png")

    def command(*flags: str) -> Any:
        words = ["-q", "export", str(tmp_path / "d.nescio"), "-o", str(tmp_path / "d.onnx"), "--model", model, *flags]
        return CliRunner().invoke(main, [*words, "--workers", "0"])

    for flags, reason in (
        (("--precision", "int8"), "give held-out ID images, calibrate= (--calibrate)"),
        (("--calibrate", str(tmp_path / "held")), "a graph in fp32 keeps its calibration"),
        (("--precision", "fp16", "--calibrate", "x", "--ood", "other"), "--ood other has no name"),
        (("--precision", "half"), "'half' is not one of"),
    ):
        refused = command(*flags)
        assert refused.exit_code == 2, flags
        assert reason in refused.output
        assert not (tmp_path / "d.onnx").exists()
    sets = ("--calibrate", str(tmp_path / "held"), "--ood", f"other={tmp_path / 'other'}")
    made = command("--precision", "int8", *sets)
    assert made.exit_code == 0, made.output
    for words in (
        "AUROC int8",
        "other",
        "points lost",
        "ranges from 60 images of --calibrate",
        "of 240 held-out images have the same label",
        "promise, of this graph: at most 5 % of new ID images are rejected",
        "wrote ",
    ):
        assert words in made.output
    assert "no OOD images" not in made.output
    assert said(tmp_path / "d.onnx")["precision"] == "int8"
