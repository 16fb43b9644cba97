"""The exported graph in ONNX Runtime against PyTorch: every detector that there is, or a reason why not."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import nescio
import tiny_networks
from conftest import training
from exported import in_onnx_runtime
from nescio.calibration.conformal import Calibration
from nescio.calibration.posterior import ProxyCalibrator
from nescio.cli import main
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.plugins import load_methods
from nescio.core.spec import all_specs, expand
from nescio.core.stage import REGISTRY
from nescio.data import Transform
from nescio.deploy import Deployed, export
from nescio.deploy import onnx as onnx_graph
from nescio.deploy.graph import OUTPUTS, Judge
from nescio.methods.shape import line
from nescio.methods.trained.bal import BALHead
from nescio.methods.trained.csi import CSIHead
from nescio.methods.trained.godin import GODINHead
from nescio.methods.trained.mos import MOSHead
from nescio.methods.trained.neglabel import NegLabelHead
from nescio.methods.trained.ssod import SSODHead
from nescio.methods.trained.vos import VOSHead
from nescio.models import Classifier

CLASSES, WIDTH, SIDE = 5, 16, 16
OWN_PASS, NO_SVD, FAISS = "its own pass", "needs eigenvectors", "uses FAISS"
REFUSED = {
    "bats+msp": OWN_PASS,
    "csi+msp": OWN_PASS,
    "mcdropout+msp": OWN_PASS,
    "odin+msp": OWN_PASS,
    "perturb+msp": OWN_PASS,
    "perturbid+msp": OWN_PASS,
    "fmls-odin": OWN_PASS,
    "rankfeat+energy": NO_SVD,
    "mean(energy,rankfeat+energy)": NO_SVD,
    "knn:index=flat": FAISS,
}
"""Every detector that cannot be exported; whatever is not listed here must be exported, and agree."""
COMBINED = (
    "fm:p=0.6+react:clip=1.6+ls+energy",
    "line:p_a=0.3,p_w=0.3+dice:p=0.2+lts+pnml",
    "mean(fm+ls+energy,knn:k=3)",
    "max(energy,gmm:covariance=full)",
    "fisher(energy,vim)",
    "gmm:covariance=tied",
    "ssod:pool=top",
    "mean(energy,rankfeat+energy)",
    "knn:index=flat",
)
pytestmark = pytest.mark.usefixtures("unrecorded")
SPECS = [*all_specs(), *COMBINED]


class TwoMaps(nn.Module):
    """Feature maps of two sizes, dropout, and features that a ReLU leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.high = nn.Sequential(nn.Conv2d(8, WIDTH, 3, stride=2, padding=1), nn.Dropout(), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.high(self.low(x))).flatten(1))


@functools.cache
def network() -> Classifier:
    """With a linear discriminant for a head: right for most images, by margins of all sizes."""
    torch.manual_seed(0)
    transform = Transform(crop=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    model = TwoMaps().eval()
    model.low[1].running_mean.normal_(std=0.3)
    h = Classifier(model, transform).penultimate(transform.normalise(pixels(300, seed=1))).detach()
    means = torch.stack([h[labels(300) == c].mean(dim=0) for c in range(CLASSES)])
    spread = (h - means[labels(300)]).T.cov()
    model.fc.weight.data = torch.linalg.solve(spread + 0.1 * spread.diagonal().mean() * torch.eye(WIDTH), means.T).T
    model.fc.weight.data *= 2 / (means @ model.fc.weight.data.T).std()
    model.fc.bias.data = -(model.fc.weight.data * means).sum(dim=1) / 2
    names = [f"class {c}" for c in range(CLASSES)]
    heads = {"ood": SSODHead(WIDTH), "godin": GODINHead(WIDTH, "cosine")}
    heads["vos"] = VOSHead(CLASSES)
    heads["mos"] = MOSHead(WIDTH, torch.zeros(CLASSES, dtype=torch.int64))
    heads["neglabel"] = NegLabelHead(torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0)))
    heads["bal"], heads["csi"] = BALHead(WIDTH), CSIHead(WIDTH, CLASSES)
    return Classifier(model, transform, name="two-maps", classes=names, heads=heads)


def labels(n: int) -> torch.Tensor:
    return torch.arange(n) % CLASSES


def pixels(n: int, seed: int) -> torch.Tensor:
    """Uint8 ``(n, 3, SIDE, SIDE)``: a pattern for each class, and noise."""
    g = torch.Generator().manual_seed(0)
    patterns = (torch.rand(CLASSES, 3, 1, 1, generator=g) + torch.rand(CLASSES, 3, SIDE, SIDE, generator=g)) / 2
    noise = torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return ((patterns[labels(n)] + 0.3 * noise).clamp(0, 1) * 255).to(torch.uint8)


@functools.cache
def deployed(spec: str, **changes: Any) -> Deployed:
    classifier, detector = network(), Detector(spec)
    made = Deployed(classifier, detector, Calibration(0.9, None, ()), about={"versions": {"nescio": "0"}})
    probed = classifier.probed(detector.needs.probes)
    with torch.no_grad():
        f = dataclasses.replace(probed(classifier.transform.normalise(pixels(300, seed=1))), labels=labels(300))
    detector.fit(training(f))
    if spec not in REFUSED:
        with torch.no_grad():
            held = probed(classifier.transform.normalise(pixels(200, seed=2)))
            scores = detector(held).numpy()
        made.calibration = Calibration.fit(scores, held.pred.numpy(), accept=0.9, n_classes=CLASSES)
    return made


def images() -> torch.Tensor:
    return pixels(150, seed=3)


def normalised() -> torch.Tensor:
    return network().transform.normalise(images())


def run(file: Path, x: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    told = json.loads(session.get_modelmeta().custom_metadata_map["outputs"])
    assert list(told) == [o.name for o in session.get_outputs()]
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": x.numpy()}), strict=True))


def agrees(found: dict[str, np.ndarray], detector: Deployed) -> np.ndarray:
    """Same label and verdict but at near ties, scores within 1e-3 of their standard deviation: where that was clear."""
    wanted = detector.judge(images())
    spread = wanted.score.std()
    assert spread > 0
    assert len(set(wanted.pred)) == CLASSES
    top = np.sort(found["logits"], axis=1)
    sure = top[:, -1] - top[:, -2] > 1e-4
    assert sure.mean() > 0.9
    assert (found["logits"].argmax(axis=1) == wanted.pred)[sure].all()
    assert found["score"].dtype == np.float64
    assert np.abs(found["score"] - wanted.score)[sure].max() < 1e-3 * spread
    thresholds = np.array([g.threshold for p in wanted.pred for g in detector.calibration.groups if p in g.classes])
    clear = sure & (np.abs(wanted.score - thresholds) > 1e-3 * spread)
    assert (found["accepted"] == wanted.accepted)[clear].all()
    assert (np.abs(found["p_value"] - wanted.p_value) < 1e-12).mean() > 0.9  # scores between two others of a rank
    np.testing.assert_allclose(found["p_id"], wanted.p_id, atol=1e-5)
    return clear


@pytest.fixture(scope="module")
def scores() -> Callable[[torch.Tensor], dict[str, np.ndarray]]:
    """What ONNX Runtime makes of images: the score of every detector that can be exported, and ``logits``."""
    return in_onnx_runtime(network(), {spec: deployed(spec).detector for spec in SPECS if spec not in REFUSED})


@pytest.fixture(scope="module")
def many(scores: Any) -> dict[str, np.ndarray]:
    return scores(normalised())


@pytest.fixture(scope="module")
def one(scores: Any) -> dict[str, np.ndarray]:
    return scores(normalised()[7:8])


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in REFUSED])
def test_a_detector_gives_the_same_in_onnx_runtime(spec: str, many: Any, one: Any) -> None:
    detector = deployed(spec)
    assert detector.detector.unexportable() is None
    score, pred = torch.from_numpy(many[spec]), torch.from_numpy(many["logits"]).argmax(dim=1)
    p_value, accepted = Judge(detector, None).verdict(score, pred)
    p_id = detector.judge(images()).p_id
    found = {"logits": many["logits"], "score": many[spec], "p_value": p_value, "accepted": accepted, "p_id": p_id}
    agrees({name: np.asarray(column) for name, column in found.items()}, detector)
    assert one[spec] == pytest.approx(many[spec][7:8], abs=1e-3 * many[spec].std())


@pytest.mark.parametrize("spec", REFUSED)
def test_what_no_graph_can_hold_is_refused_with_the_reason(spec: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=REFUSED[spec]):
        export(deployed(spec), tmp_path / "d.onnx")
    assert not list(tmp_path.iterdir())


def test_every_stage_is_tried() -> None:
    named = {part for spec in map(expand, SPECS) for part in re.findall(r"[a-z][a-z0-9]*", spec)}
    load_methods()
    assert set(REGISTRY) <= named


def test_the_file_gives_what_the_detector_gives(tmp_path: Path) -> None:
    detector = deployed("fm:p=0.6+react:clip=1.6+ls+energy")
    export(detector, tmp_path / "d.onnx")
    x = normalised()
    x[3, 1, 2, 2], x[4] = torch.nan, torch.inf
    found = run(tmp_path / "d.onnx", x)
    assert list(found) == list(OUTPUTS)
    for i in (3, 4):
        assert np.isnan([found[c][i] for c in ("score", "p_value", "p_id")]).all()
        assert not found["accepted"][i]
    whole = run(tmp_path / "d.onnx", normalised())
    np.testing.assert_array_equal(np.delete(found["score"], [3, 4]), np.delete(whole["score"], [3, 4]))
    clear = agrees(whole, detector)
    assert whole["accepted"][clear].any()
    assert not whole["accepted"][clear].all()
    single = run(tmp_path / "d.onnx", normalised()[:1])
    assert single["p_value"].shape == (1,)
    assert single["p_value"] == pytest.approx(whole["p_value"][:1], abs=0.03)


def test_the_threshold_is_an_input_that_need_not_be_given(tmp_path: Path) -> None:
    detector = deployed("energy")
    export(detector, tmp_path / "d.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx")
    groups = detector.calibration.groups
    (stored,) = session.get_overridable_initializers()
    assert (stored.name, stored.type, stored.shape) == ("threshold", "tensor(double)", [len(groups)])
    assert [value.name for value in session.get_inputs()] == ["image"]
    x = normalised().numpy()
    logits, score, p_value, accepted, _ = session.run(None, {"image": x})
    own = np.array([g.least for g in groups])
    of = np.array([next(i for i, g in enumerate(groups) if c in g.classes) for c in logits.argmax(axis=1)])
    assert len(set(of.tolist())) > 1
    for threshold in (own, own + 1, own[::-1].copy(), np.full(len(groups), -np.inf)):
        given = session.run(["score", "p_value", "accepted"], {"image": x, "threshold": threshold})
        np.testing.assert_array_equal(given[0], score)
        np.testing.assert_array_equal(given[1], p_value)
        np.testing.assert_array_equal(given[2], score >= threshold[of])
    np.testing.assert_array_equal(accepted, score >= own[of])


def test_the_p_value_table_gives_the_threshold_of_any_share(tmp_path: Path) -> None:
    detector = deployed("energy")
    export(detector, tmp_path / "d.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx")
    tables = json.loads(session.get_modelmeta().custom_metadata_map["p_values"])
    logits, score, p_value, *_ = session.run(None, {"image": normalised().numpy()})
    for c, s, p in zip(logits.argmax(axis=1), score, p_value, strict=True):
        (scores,) = [t["scores"] for t in tables if c in t["classes"]]
        assert (1 + np.searchsorted(scores, s, side="right")) / (1 + len(scores)) == pytest.approx(p, abs=1e-12)
    shares = [t["scores"][int(0.2 * (len(t["scores"]) + 1)) - 1] for t in tables]  # rejects 20 %
    (accepted,) = session.run(["accepted"], {"image": normalised().numpy(), "threshold": np.array(shares)})
    np.testing.assert_array_equal(accepted, p_value > 0.2 + 1e-9)


def test_openvino_gives_what_onnx_runtime_gives(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    for spec in ("fm:p=0.6+react:clip=1.6+ls+energy", "knn:k=3", "mahalanobis"):
        detector = deployed(spec)
        export(detector, tmp_path / "d.onnx")
        export(detector, tmp_path / "d.xml")
        given = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(tmp_path / "d.xml", "CPU", given)
        assert [value.any_name for value in compiled.inputs] == ["image"]
        found = {value.any_name: column for value, column in compiled({"image": normalised().numpy()}).items()}
        wanted = run(tmp_path / "d.onnx", normalised())
        assert list(found) == list(wanted)
        spread = wanted["score"].std()
        np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-4)
        np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-3 * spread)
        least = np.array(
            [g.least for p in wanted["logits"].argmax(1) for g in detector.calibration.groups if p in g.classes]
        )
        clear = np.abs(wanted["score"] - least) > 1e-3 * spread
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(found["accepted"][clear], wanted["accepted"][clear])
    told = openvino.Core().read_model(tmp_path / "d.xml")
    assert told.get_rt_info(["nescio", "promise"]).astype(str) == detector.calibration.promise()
    assert list(json.loads(told.get_rt_info(["nescio", "inputs"]).astype(str))) == ["image"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.bin", "d.onnx", "d.xml"]


def test_a_triton_model_has_a_configuration_that_fits_its_graph(tmp_path: Path) -> None:
    detector = deployed("energy")
    export(detector, tmp_path / "models/tiny", preprocess="nhwc")
    folder = tmp_path / "models/tiny"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "1/model.onnx",
        "config.pbtxt",
        "labels.txt",
    ]
    assert (folder / "labels.txt").read_text().splitlines() == detector.classifier.classes
    config = (folder / "config.pbtxt").read_text()
    assert config.startswith('name: "tiny"\nbackend: "onnxruntime"\nmax_batch_size: 64\n')
    lines = re.findall(r'\{ name: "(\w+)", data_type: TYPE_(\w+), dims: (\[[^]]*\])(.*) \}', config)
    session = onnxruntime.InferenceSession(folder / "1/model.onnx")
    assert not session.get_overridable_initializers()  # Triton would not let a client set it
    names = {"FP32": "tensor(float)", "FP64": "tensor(double)", "BOOL": "tensor(bool)", "UINT8": "tensor(uint8)"}
    found = [(name, names[kind], json.loads(dims)) for name, kind, dims, _ in lines]
    wanted = [(v.name, v.type, v.shape[1:] or [1]) for v in (*session.get_inputs(), *session.get_outputs())]
    assert found == wanted
    assert [name for name, *_, rest in lines if "reshape: { shape: [] }" in rest] == [
        n for n, _, d in wanted if d == [1]
    ]
    assert [name for name, *_, rest in lines if 'label_filename: "labels.txt"' in rest] == ["logits"]


def test_the_ending_chooses_the_form(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for name, said in (("d.pb", r"unknown ending; name a file that ends in \.onnx"), ("taken", "it is a file")):
        with pytest.raises(InputError, match=said):
            export(deployed("energy"), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("order", ["nchw", "nhwc"])
def test_pixels_are_normalised_in_the_graph(order: str, tmp_path: Path) -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES)), network().transform)
    detector = Detector("energy")
    detector.fit(FeatureSet(head=classifier.head))
    made = Deployed(classifier, detector, Calibration.fit(np.linspace(1, 3, 99)))
    made.calibrator = ProxyCalibrator(2.0, -3.0, "noise", 0.5)
    export(made, tmp_path / "d.onnx", preprocess=order)
    found = run(tmp_path / "d.onnx", images() if order == "nchw" else images().permute(0, 2, 3, 1).contiguous())
    wanted = made.judge(images())
    np.testing.assert_allclose(found["score"], wanted.score, atol=1e-5)
    np.testing.assert_allclose(found["p_id"], 1 / (1 + np.exp(3 - 2 * wanted.score)), atol=1e-5)
    np.testing.assert_allclose(found["p_value"], wanted.p_value, atol=0.011)
    assert (found["accepted"] == wanted.accepted)[
        np.abs(wanted.score - made.calibration.groups[0].threshold) > 1e-4
    ].all()


def test_outputs_that_the_graph_lacks_are_not_told(tmp_path: Path) -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES)), network().transform)
    detector = Detector("energy").fit(FeatureSet(head=classifier.head))
    export(Deployed(classifier, detector, Calibration.fit(np.linspace(1, 3, 99))), tmp_path / "d.onnx")
    assert list(run(tmp_path / "d.onnx", normalised())) == ["logits", "score", "p_value", "accepted"]


def test_whoever_opens_the_file_learns_what_it_is(tmp_path: Path) -> None:
    detector = deployed("energy")
    export(detector, tmp_path / "d.onnx", preprocess="nhwc")
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx")
    said = session.get_modelmeta().custom_metadata_map
    assert said["format"] == "nescio-onnx/2"
    assert said["detector"] == "energy"
    assert json.loads(said["classes"]) == detector.classifier.classes
    assert said["transform"] == str(detector.classifier.transform)
    assert said["promise"] == detector.calibration.promise()
    groups = json.loads(said["thresholds"])
    assert [g["threshold"] for g in groups] == [g.threshold for g in detector.calibration.groups]
    inputs = json.loads(said["inputs"])
    assert inputs["image"].startswith("uint8 (batch, 16, 16, 3): pixels, RGB, resized")
    assert inputs["threshold"].startswith(f"float64 ({len(groups)},): the least score that is accepted")
    tables = json.loads(said["p_values"])
    assert [t["classes"] for t in tables] == [list(g.classes) for g in detector.calibration.groups]
    assert [t["scores"] for t in tables] == [g.reached.tolist() for g in detector.calibration.groups]
    about = json.loads(said["about"])
    assert about["versions"] == {"nescio": "0"}
    assert about["calibration"]["accept"] == 0.9
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", SIDE, SIDE, 3])
    source = str(Path(nescio.__file__).parent)
    assert source.encode() not in (tmp_path / "d.onnx").read_bytes()


@pytest.mark.parametrize(
    ("spec", "module", "limit", "said"),
    [
        ("knn", onnx_graph, "MOST", "knn' holds 0 MB of what it learned"),
        ("knn", onnx_graph, "LARGEST", "an ONNX file holds 2 GB"),
        ("line+energy", line, "MOST_EXPORTED", "masks of 5 × 16 entries per image, more than 79"),
    ],
)
def test_what_would_be_too_large_is_refused(
    spec: str, module: Any, limit: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, limit, CLASSES * WIDTH - 1)
    with pytest.raises(InputError, match=said):
        export(deployed(spec), tmp_path / "d.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_traced_or_would_differ_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Branching(TwoMaps):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > -1e9 else super().forward(-x)

    class Sized(TwoMaps):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)

    (tmp_path / "d.onnx").write_text("before")
    for model, said in (
        (Branching(), "net cannot be made a graph: "),
        (Sized(), "gives other logits than the network"),
    ):
        classifier = Classifier(model.eval(), network().transform, name="net")
        detector = Detector("energy")
        detector.fit(FeatureSet(head=classifier.head))
        with pytest.raises(InputError, match=said):
            export(Deployed(classifier, detector, Calibration.fit(np.arange(99.0))), tmp_path / "d.onnx")
    with pytest.raises(InputError, match="preprocess=bgr is not one of the choices"):
        export(deployed("energy"), tmp_path / "d.onnx", preprocess="bgr")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs the package onnxruntime: pip install 'nescio\[onnx\]'"):
        export(deployed("energy"), tmp_path / "d.onnx")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


def test_the_command_writes_the_graph_or_says_why_not(tmp_path: Path) -> None:
    model = "tiny_networks:batch_norm_net"
    classifier = Classifier(tiny_networks.batch_norm_net().eval(), Transform(crop=16), name=model)
    for spec in ("energy", "odin+msp"):
        detector = Detector(spec)
        detector.fit(FeatureSet(head=classifier.head))
        Deployed(classifier, detector, Calibration.fit(np.linspace(-1, 3, 99))).save(tmp_path / f"{spec}.nescio")
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def command(spec: str, out: str, *flags: str) -> Any:
        words = ["-q", "export", str(tmp_path / f"{spec}.nescio"), "-o", str(tmp_path / out), *flags]
        return CliRunner().invoke(main, words)

    made = command("energy", "new/d.onnx", "--model", model)
    assert (made.exit_code, made.output.startswith("wrote ")) == (0, True), made.output
    with torch.no_grad():
        wanted = classifier(x).logits.double().logsumexp(dim=1)
    np.testing.assert_allclose(run(tmp_path / "new/d.onnx", x)["score"], wanted, atol=1e-5)
    refused = command("odin+msp", "odin.onnx", "--model", model)
    assert refused.exit_code == 2
    assert "'odin' needs its own pass" in refused.output
    assert not (tmp_path / "odin.onnx").exists()
