"""A head fitted on features, against scikit-learn's, and the classifier that it makes of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import nescio
from conftest import random_features, training
from nescio import Classifier, Detector, InputError, load_classifier
from nescio.core.feature_set import FeatureSet
from nescio.models import fit_probe, probe
from nescio.models.runs import state_of

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
    with pytest.raises(InputError, match="none of these has a label"):
        fit_probe(FeatureSet(h), classes=2)
    with pytest.raises(InputError, match="too few: cat"):
        fit_probe(FeatureSet(h, [0, 0, 0, 0, 0, 1]), classes=["dog", "cat"])
    with pytest.raises(InputError, match="label 3 is no class: there are 2"):
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
    with pytest.raises(InputError, match="has 2 classes, and there are 3 names"):
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
