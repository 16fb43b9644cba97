"""Exported graphs against PyTorch on real images: DenseNet-BC-100, CIFAR-10 and textures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from conftest import training
from exported import in_onnx_runtime
from nescio import Classifier, Deployed, Detector, export, load_classifier, open_source
from nescio.calibration.conformal import Calibration
from nescio.core.features import Features
from nescio.core.spec import all_specs
from nescio.data.coerce import pictures
from nescio.run.passes import servable

pytestmark = pytest.mark.usefixtures("unrecorded")


@pytest.fixture(scope="module")
def classifier(shared: Path) -> Classifier:
    return load_classifier(
        "densenet-bc-100-12", weights=shared / "models/densenet100_cifar10.safetensors", device="cpu"
    )


@pytest.fixture(scope="module")
def detectors(classifier: Classifier) -> dict[str, Detector]:
    """Every detector that this network can serve and a graph can hold."""
    found = servable(all_specs(), classifier)
    return {spec: d for spec, d in found.items() if d.input_stage is None and "rankfeat" not in spec}


@pytest.fixture(scope="module")
def pixels(classifier: Classifier, shared: Path) -> dict[str, torch.Tensor]:
    data, geometry = shared / "data", classifier.transform.geometry
    sets = {
        "train": f"{data}/cifar10/train.parquet[:600]",
        "held": f"{data}/cifar10/test.parquet[:200]",
        "seen": [f"{data}/cifar10/test.parquet[200:400]", f"{data}/textures/test.parquet[:100]"],
    }
    return {name: torch.stack([geometry(p) for p in pictures(given)]) for name, given in sets.items()}


@pytest.fixture(scope="module")
def features(classifier: Classifier, detectors: Any, pixels: Any, shared: Path) -> dict[str, Features]:
    """As PyTorch gives them; every detector is fitted on those of training images."""
    probes = {name: probe for d in detectors.values() for name, probe in d.needs.probes.items()}
    run, normalise = classifier.optimised().probed(probes), classifier.transform.normalise
    found = {}
    with torch.no_grad():
        for name, images in pixels.items():
            parts = [run(normalise(part)) for part in images.split(50)]
            aux = {key: torch.cat([p.aux[key] for p in parts]) for key in parts[0].aux}
            h, pred = torch.cat([p.h for p in parts]), torch.cat([p.pred for p in parts])
            found[name] = Features(h, classifier.head, pred, aux=type(parts[0].aux).of(aux))
    labels = torch.from_numpy(open_source(f"{shared}/data/cifar10/train.parquet[:600]").labels)
    found["train"] = dataclasses.replace(found["train"], labels=labels)
    for detector in detectors.values():
        detector.fit(training(found["train"]))
    return found


@pytest.fixture(scope="module")
def exported(classifier: Classifier, detectors: Any, features: Any, pixels: Any) -> dict[str, np.ndarray]:
    """What ONNX Runtime makes of the same images."""
    return in_onnx_runtime(classifier, detectors)(classifier.transform.normalise(pixels["seen"]))


def test_every_method_gives_the_same_labels_scores_and_verdicts(detectors: Any, features: Any, exported: Any) -> None:
    assert len(detectors) > 35
    seen = features["seen"]
    top = seen.logits.topk(2).values
    sure = (top[:, 0] - top[:, 1] > 1e-3).numpy()
    assert sure.mean() > 0.98
    assert (exported["logits"].argmax(axis=1) == seen.pred.numpy())[sure].all()
    for spec, detector in detectors.items():
        wanted, found = detector(seen).detach().numpy(), exported[spec]
        spread = wanted[:200].std()  # of ID images
        assert np.abs(wanted - found)[sure].max() < 1e-3 * spread, spec
        calibration = Calibration.fit(detector(features["held"]).detach().numpy())
        clear = sure & (np.abs(wanted - calibration.groups[0].threshold) > 1e-3 * spread)
        said = [calibration.accepted(s, seen.pred.numpy())[clear] for s in (wanted, found)]
        assert (said[0] == said[1]).all(), spec


def test_the_file_of_the_published_detector_judges_as_pytorch_does(
    classifier: Classifier, detectors: Any, features: Any, pixels: Any, tmp_path: Path
) -> None:
    detector = detectors["fmls"]
    with torch.no_grad():
        calibration = Calibration.fit(detector(features["held"]).numpy())
    deployed = Deployed(classifier, detector, calibration)
    export(deployed, tmp_path / "d.onnx", preprocess="nhwc")
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx")
    rows = pixels["seen"].permute(0, 2, 3, 1).contiguous().numpy()
    logits, score, p_value, accepted = session.run(None, {"image": rows})
    wanted = deployed.judge(pixels["seen"])
    assert (logits.argmax(axis=1) == wanted.pred).mean() > 0.99
    np.testing.assert_allclose(score, wanted.score, atol=1e-3 * wanted.score[:200].std())
    np.testing.assert_allclose(p_value, wanted.p_value, atol=0.01)
    assert (accepted == wanted.accepted).mean() > 0.99
    assert 0.5 < accepted[:200].mean() < 1
    assert accepted[200:].mean() < accepted[:200].mean()
