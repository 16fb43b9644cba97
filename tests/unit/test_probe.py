"""A head fitted on features, against scikit-learn's, and the classifier that it makes of an encoder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import nescio
from conftest import TINY_TRANSFORM, coloured, random_features, tiny_net, training
from nescio import Classifier, Detector, InputError, Session, load_classifier
from nescio.cli import main
from nescio.core.feature_set import FeatureSet
from nescio.data.source import Rows, open_source
from nescio.deploy import Deployed, export
from nescio.models import fit_probe, probe
from nescio.models.runs import state_of
from nescio.serving import create_app

linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_weights_are_those_of_scikit_learn(strength: float) -> None:
    f = random_features(150, 9, 4)
    z, labels = f.h.double(), f.labels
    theirs = linear_model.LogisticRegression(C=1 / (len(z) * strength), tol=1e-10, max_iter=10_000)
    theirs.fit(z.numpy(), labels.numpy())
    weight, bias = probe.fit_weights(z, labels, 4, strength)
    np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=1e-5)
    found = torch.addmm(bias, z, weight.T).softmax(1).numpy()
    np.testing.assert_allclose(found, theirs.predict_proba(z.numpy()), atol=1e-5)


@pytest.mark.parametrize(("n", "width"), [(150, 9), (40, 60)], ids=["more rows", "more columns"])
def test_the_head_is_that_of_standardised_features_folded_back(
    n: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = random_features(n, width, 4)
    h = f.h * 7 + 3
    h[:, 0] = 5  # a feature that is always the same says nothing
    monkeypatch.setattr(probe, "STRENGTHS", (0.01,))
    head = fit_probe(FeatureSet(h, f.labels), classes=4)
    spread = h.std(0, correction=0)
    z = (h - h.mean(0))[:, 1:] / spread[1:]
    theirs = linear_model.LogisticRegression(C=1 / (n * 0.01), tol=1e-10, max_iter=10_000).fit(z.numpy(), f.labels)
    np.testing.assert_allclose(head.linear(h).softmax(1).numpy(), theirs.predict_proba(z.numpy()), atol=1e-4)
    assert head.weight[:, 0].abs().max() < 1e-12


def test_the_strength_is_that_of_the_lowest_loss_on_left_out_images() -> None:
    clear, noise = random_features(100, 12, 5), torch.randn(100, 12, generator=torch.Generator().manual_seed(0))
    strong, weak = (
        float(fit_probe(FeatureSet(h, clear.labels), classes=5).weight.mul(h.std(0)).norm()) for h in (noise, clear.h)
    )
    assert strong < 0.5 < weak  # of noise nothing is learnt


def test_rows_come_in_chunks_and_a_part_is_drawn_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    f = random_features(400, 12, 5)
    whole = fit_probe(FeatureSet(f.h, f.labels), classes=5)
    parts = fit_probe(training(f), classes=5)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(probe, "MOST_ENTRIES", 12 * 200)
    some = fit_probe(training(f), classes=5)
    assert (some.linear(f.h).argmax(1) == f.labels).float().mean() > 0.9
    assert not torch.allclose(some.weight, whole.weight, rtol=1e-3)


def test_features_that_no_head_can_be_fitted_on_are_named() -> None:
    h = torch.randn(6, 3)
    with pytest.raises(InputError, match="there are no labels"):
        fit_probe(FeatureSet(h), classes=2)
    with pytest.raises(InputError, match="too few: cat"):
        fit_probe(FeatureSet(h, [0, 0, 0, 0, 0, 1]), classes=["dog", "cat"])
    with pytest.raises(InputError, match="label 3 is not a class: there are 2"):
        fit_probe(FeatureSet(h, [0, 0, 1, 1, 3, 3]), classes=2)


@pytest.fixture
def encoder() -> Classifier:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    name = "timm:test_resnet:num_classes=0"
    return load_classifier(name, weights=network.state_dict(), head="probe", transform="crop=32", device="cpu")


def test_an_encoder_with_a_fitted_head_is_a_classifier_like_any_other(encoder: Classifier) -> None:
    assert encoder.awaits_probe
    x = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        h = encoder(x).h
    head = fit_probe(FeatureSet(h, torch.arange(40) % 2), classes=["a", "b"])
    c = encoder.with_head(head, ["a", "b"])
    assert not c.awaits_probe
    assert not encoder.has_head
    with torch.no_grad():
        f = c(x)
    torch.testing.assert_close(f.logits, head.linear(h))
    assert Detector("energy").fit(FeatureSet(head=c.head))(f).shape == (40,)
    again = load_classifier(c.name, weights=state_of(c), classes=["a", "b"], transform="crop=32", device="cpu")
    assert again.fingerprint == c.fingerprint
    assert again.classes == ["a", "b"]
    with pytest.raises(InputError, match="has 2 classes, but there are 3 names"):
        encoder.with_head(head, ["a", "b", "c"])


def test_it_is_stored_and_opened_again(encoder: Classifier, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    c = encoder.with_head(nescio.core.features.Head(torch.randn(2, 96), torch.randn(2)), ["a", "b"])
    session = nescio.Session(c, workers=0, progress=False)
    fitted = nescio.fit(session, "energy", calibrate=make_folder("held", 10), accept=0.8)
    fitted.save(tmp_path / "my.nescio")
    again = nescio.load(tmp_path / "my.nescio", device="cpu")
    assert again.classifier.fingerprint == c.fingerprint
    assert again.classifier.classes == ["a", "b"]
    with pytest.raises(InputError, match="save it with the weights"):
        fitted.save(tmp_path / "hash.nescio", weights=False)


CLASSES = ["class0", "class1", "class2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of coloured squares, and weights of an encoder."""
    root = tmp_path_factory.mktemp("images")
    for seed, (name, per_class) in enumerate({"train": 15, "held": 12, "test": 10, "held2": 12}.items()):
        coloured(root, name, per_class, seed=seed)
    noise = np.random.default_rng(9).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    (root / "noise").mkdir()
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(root / "noise" / f"{i}.png")
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), root / "w.safetensors")
    return root


def opened(images: Path, head: str, cache: Path | None = None) -> Session:
    name, weights = "timm:test_resnet:num_classes=0", images / "w.safetensors"
    network = load_classifier(name, weights=weights, head=head, transform="resize=32,crop=32", device="cpu")
    return Session(network, workers=0, progress=False, cache=cache)


@pytest.fixture(scope="module")
def deployed(images: Path) -> Deployed:
    session = opened(images, "probe")
    return nescio.fit(session, "knn:k=3", train=images / "train", calibrate=images / "held", accept=0.9)


def test_a_folder_of_images_becomes_a_classifier_that_knows_its_classes(deployed: Deployed, images: Path) -> None:
    assert deployed.classifier.classes == CLASSES
    found = open_source(images / "test")
    verdicts = deployed(images / "test")
    assert np.mean([v.index == label for v, label in zip(verdicts, found.labels, strict=True)]) > 0.9
    assert {v.label for v in verdicts} == set(CLASSES)
    assert np.mean([v.accepted for v in verdicts]) > 0.6
    assert not any(v.accepted for v in deployed(images / "noise"))


def test_its_file_says_the_same_and_so_does_the_service(deployed: Deployed, images: Path, tmp_path: Path) -> None:
    deployed.save(tmp_path / "my.nescio")
    again = nescio.load(tmp_path / "my.nescio", device="cpu")
    assert again(images / "test") == deployed(images / "test")
    source = open_source(images / "test")
    picture = (images / "test" / source.name(0)).read_bytes()
    with TestClient(create_app(again, decoders=1)) as client:
        answer = client.post("/predict", files=[("images", ("0.png", picture))]).json()
    (expected,) = deployed(Rows(source, [0]))
    said = answer["verdicts"][0]
    assert (said["label"], said["accepted"]) == (expected.label, expected.accepted)
    assert said["score"] == pytest.approx(expected.score, rel=1e-5)


def test_its_graph_gives_the_same_numbers(deployed: Deployed, images: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra nescio[onnx]")
    export(deployed, tmp_path / "my.onnx", preprocess="nchw")
    source = open_source(images / "test")
    pictures = [Image.open(images / "test" / source.name(i)).convert("RGB") for i in range(6)]
    x = torch.stack([deployed.classifier.transform.geometry(p) for p in pictures])
    graph = onnxruntime.InferenceSession(tmp_path / "my.onnx")
    logits, score, p_value, accepted = graph.run(None, {"image": x.numpy()})
    judged = deployed.judge(x)
    np.testing.assert_array_equal(logits.argmax(1), judged.pred)
    np.testing.assert_allclose(score, judged.score, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(p_value, judged.p_value)
    np.testing.assert_array_equal(accepted, judged.accepted)


def test_a_table_of_a_fitted_head_reads_each_image_once(images: Path, tmp_path: Path) -> None:
    session = opened(images, "probe", tmp_path)
    sets = {"id": images / "test", "ood": {"noise": images / "noise"}}
    results = nescio.bench(session, train=images / "train", detectors=["energy", "knn:k=3"], **sets)
    assert results.row("energy", "noise").id_accuracy > 0.9
    assert results.row("knn:k=3", "noise").auroc > 0.9
    assert len([p for p in (tmp_path / "banks").iterdir() if p.is_dir()]) == 3
    other = nescio.bench(session, train=images / "held", detectors=["energy"], **sets)
    assert len([p for p in (tmp_path / "banks").iterdir() if p.is_dir()]) == 4  # another head, the same features
    assert other.row("energy", "noise").auroc != results.row("energy", "noise").auroc
    again = session.ready(images / "train")
    alone = Session(again.classifier, workers=0, progress=False, cache=tmp_path / "apart")
    scores = [s.scores(Detector("energy"), images / "test")["energy"] for s in (again, alone)]
    np.testing.assert_allclose(*scores, rtol=1e-6)


def test_an_encoder_serves_what_reads_features_alone(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nescio")
    session = opened(images, "none", tmp_path)
    sets: dict[str, Any] = {"train": images / "train", "id": images / "test", "ood": {"noise": images / "noise"}}
    with pytest.raises(InputError, match=r"detector 'fmls': .*is an encoder without a .* head.*--head probe"):
        nescio.bench(session, detectors=["knn", "fmls"], **sets)
    assert not (tmp_path / "banks").exists()
    results = nescio.bench(session, detectors=["knn:k=3", "mahalanobis", "all"], **sets)
    assert "energy" not in results.detectors
    assert {"gmm", "rmd"} < set(results.detectors)
    (told,) = [line for line in caplog.messages if "leaving out" in line and ", energy, " in line]
    assert "is an encoder without a classification head; fit one" in told
    assert results.row("knn:k=3", "noise").auroc > 0.9
    assert np.isnan(results.row("mahalanobis", "noise").id_accuracy)
    results.save(tmp_path / "results")
    assert nescio.load(tmp_path / "results").row("knn:k=3", "noise").auroc == results.row("knn:k=3", "noise").auroc
    choice = nescio.recommend(session, val=images / "test", train=images / "train", proxy="noise")
    assert choice.accuracy is None
    with pytest.raises(InputError, match=r"is an encoder, but verdicts need classes: fit a head .*--head probe"):
        nescio.fit(session, "knn", train=images / "train", calibrate=images / "held")


def test_a_fitted_head_needs_its_training_images(images: Path, tmp_path: Path) -> None:
    session = opened(images, "probe", tmp_path)
    with pytest.raises(InputError, match=r"fits a linear head on labelled training images: give train= \(--train\)"):
        nescio.fit(session, "energy", calibrate=images / "held")
    with pytest.raises(InputError, match="calibration images are training images"):
        nescio.fit(session, "energy", train=images / "train", calibrate=images / "train")
    with pytest.raises(InputError, match=r"'energy' reads a head that is not fitted yet: call session\.ready\(train\)"):
        session.fit(["knn", "energy"], images / "train")
    assert not (tmp_path / "banks").exists()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def test_the_command_line_goes_from_folders_to_verdicts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    monkeypatch.setenv("NESCIO_CACHE", str(tmp_path / "cache"))
    network = ("--model", "timm:test_resnet", "--weights", "w.safetensors", "--transform", "crop=32", "--workers", "0")
    head = ("--head", "probe", "--train", "train")
    told = run("fit", *network, *head, "--calibrate", "held", "--detector", "knn:k=3", "-o", tmp_path / "my.nescio")
    assert told.exit_code == 0, told.output
    assert "timm:test_resnet, 3 classes" in " ".join(told.output.split())
    assert "right for" in told.output
    scored = run("score", tmp_path / "my.nescio", "test", "-o", tmp_path / "out.csv", "--workers", "0")
    assert scored.exit_code == 0, scored.output
    assert "class2" in (tmp_path / "out.csv").read_text()
    judge = ("--id", "test", "--ood", "noise=noise", "--detector")
    results = run("bench", *network, *head, *judge, "energy", "-o", tmp_path / "r", "--report")
    assert results.exit_code == 0, results.output
    results = run(
        "bench", *network, "--head", "none", "--train", "train", *judge, "knn", "-o", tmp_path / "e", "--report"
    )
    assert results.exit_code == 0, results.output
    chosen = run("recommend", *network, *head, "--val", "held", "--proxy", "noise")
    assert chosen.exit_code == 0, chosen.output
    hashed = run("fit", *network, *head, "--calibrate", "held", "--no-weights", "-o", tmp_path / "h.nescio")
    assert hashed.exit_code == 2
    assert "drop --no-weights" in " ".join(hashed.output.split())


def mine(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32)).permute(2, 0, 1) / 300


def test_images_that_code_prepares_are_judged_but_stand_in_no_file(images: Path, tmp_path: Path) -> None:
    own = nescio.data.as_transform(mine, key="mine-1")
    session = Session(tiny_net(3), transform=own, workers=0, progress=False)
    assert session.classifier.size == (3, 8, 8)
    session.classifier.untrained = True
    fitted = nescio.fit(session, "energy", calibrate=images / "held", accept=0.9)
    assert len(fitted(images / "test")) == 30
    for write in (fitted.save, lambda path: export(fitted, path)):
        with pytest.raises(InputError, match=r"prepared by code \(mine-1\), which cannot be saved: give a nescio"):
            write(tmp_path / "no.onnx")
    assert nescio.Classifier(tiny_net(), TINY_TRANSFORM).transform is TINY_TRANSFORM
