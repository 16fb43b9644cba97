"""What every detector promises of arrays: what they must be, and what is said of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nescio
from conftest import random_features
from nescio import Detector, FeatureSet, InputError

F, NEW = random_features(), random_features(n=30, seed=5)
H, Y, HEAD = F.h.numpy(), F.labels.numpy(), (F.head.weight.numpy(), F.head.bias.numpy())
LEARNED = ["knn:k=3", "mahalanobis", "rmd", "gmm", "vim", "she", "fm+react:q=0.9+ls+energy"]


def test_lists_are_arrays() -> None:
    detector = Detector("knn:k=3").fit(H.tolist())
    scores = detector(NEW.h.tolist())
    assert isinstance(scores, np.ndarray)
    np.testing.assert_array_equal(scores, Detector("knn:k=3").fit(H.astype(float))(NEW.h.double().numpy()))
    np.testing.assert_array_equal(nescio.energy([[0.0, 0.0], [1.0, 0.0]]), np.log([2, np.e + 1]))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, ">f4"])
def test_numbers_of_any_type_are_taken(kind: str) -> None:
    h, new = np.round(H).astype(kind), np.round(NEW.h.numpy()).astype(kind)
    scores = Detector("knn:k=3").fit(h)(new)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, nescio.knn(new, h, k=3), rtol=1e-6)
    np.testing.assert_allclose(scores, nescio.knn(new.astype(np.float32), h.astype(np.float32), k=3), atol=1e-6)


@pytest.mark.parametrize("spec", LEARNED)
def test_labels_in_tensors_lists_and_floats_are_the_same_labels(spec: str) -> None:
    expected = Detector(spec).fit(H, Y, head=HEAD)(NEW.h.numpy())
    for labels in (Y.tolist(), torch.from_numpy(Y), Y.astype(np.float32), Y.astype(np.uint8)):
        np.testing.assert_array_equal(Detector(spec).fit(H, labels, head=HEAD)(NEW.h.numpy()), expected)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (Y[:-1], r"labels: expected one for each of 200 rows, \(N,\), got \(199,\)"),
        (Y[:, None], r"labels: expected one for each of 200 rows"),
        (Y.astype(str), r"labels: expected whole numbers from 0 on, got <U21"),
        (Y + 0.5, r"labels: expected whole numbers from 0 on, -1 where unknown, got torch.float"),
        (Y == 1, r"labels: expected whole numbers from 0 on, -1 where unknown, got torch.bool"),
        (Y + 1, r"stage 'mahalanobis' needs images with labels in 0…4"),
        (
            np.where(Y == 2, 3, Y),
            r"stage 'mahalanobis' needs training images of each of 5 classes.*none of class 2;",
        ),
        (None, r"stage 'mahalanobis' is fitted on labelled features, but there are no labels"),
    ],
)
def test_labels_that_do_not_match_are_refused(labels: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Detector("mahalanobis").fit(H, labels, head=HEAD)


def test_without_a_head_the_labels_say_how_many_classes_there_are() -> None:
    detector = Detector("mahalanobis").fit(H, Y)
    np.testing.assert_array_equal(detector(NEW.h.numpy()), Detector("mahalanobis").fit(H, Y, head=HEAD)(NEW.h.numpy()))
    with pytest.raises(InputError, match=r"stage 'mahalanobis' needs training images of each of 5 classes.*class 3;"):
        Detector("mahalanobis").fit(H[Y != 3], Y[Y != 3])
    with pytest.raises(InputError, match="'mahalanobis' is fitted on labelled features, but there are no labels"):
        Detector("mahalanobis").fit(H)


@pytest.mark.parametrize(
    "spec", ["knn:k=3", "react:q=0.9+knn:k=3", "ashs+knn:k=3", "typical+mahalanobis", "rmd", "gmm"]
)
def test_an_encoders_features_are_enough_for_what_reads_features_alone(spec: str) -> None:
    scores = Detector(spec).fit(H, Y)(NEW.h.numpy())
    np.testing.assert_array_equal(scores, Detector(spec).fit(H, Y, head=HEAD)(NEW.h.numpy()))


def test_a_prediction_stands_for_the_logits_where_only_it_is_read() -> None:
    new = FeatureSet(NEW.h, pred=NEW.pred)
    with_head = Detector("cosine").fit(H, Y, head=HEAD)(NEW)
    assert torch.equal(Detector("cosine").fit(H, Y)(new), with_head)
    with pytest.raises(InputError, match="stage 'energy' reads logits"):
        Detector("energy").fit()(FeatureSet(NEW.h))


def test_the_prediction_is_the_raw_one_where_arrays_give_none() -> None:
    # clipping at 0.3 makes another class the largest for many of these
    detector = Detector("react:clip=0.3+she").fit(H, Y, head=HEAD)
    assert (detector.pipeline(NEW).logits.argmax(1) != NEW.pred).any()
    np.testing.assert_array_equal(detector(NEW.h.numpy()), detector(NEW))


@pytest.mark.parametrize(("spec", "stage"), [("fm+energy", "fm"), ("vim", "vim"), ("knn+x", "x"), ("energy", "energy")])
def test_what_lacks_a_head_is_named(spec: str, stage: str) -> None:
    with pytest.raises(InputError, match=f"'{stage}'"):
        Detector(spec).fit(H, Y)(NEW.h.numpy())


@pytest.mark.parametrize("spec", LEARNED)
def test_features_of_another_width_are_refused(spec: str) -> None:
    detector = Detector(spec).fit(H, Y, head=HEAD)
    with pytest.raises(InputError, match="12"):
        detector(NEW.h.numpy()[:, :7])
    with pytest.raises(InputError, match="one row per image"):
        detector(NEW.h.numpy()[0])
    with pytest.raises(InputError, match="expected an array or tensor of numbers"):
        detector(np.array([["a", "b"]]))


@pytest.mark.parametrize("spec", LEARNED)
def test_rows_with_nan_score_nan(spec: str) -> None:
    detector, h = Detector(spec).fit(H, Y, head=HEAD), NEW.h.numpy().copy()
    expected = detector(h)
    h[3, 1] = np.nan
    expected[3] = np.nan
    np.testing.assert_allclose(detector(h), expected, rtol=1e-12)  # products round by their shape
    with pytest.raises(InputError, match="1 of 30 training features have NaN"):
        Detector("knn").fit(h)


@pytest.mark.parametrize("spec", ["msp", "energy", "maxlogit", "entropy", "gen", "klm", "openmax", "temperature+msp"])
def test_logits_are_enough_for_what_reads_logits_alone(spec: str) -> None:
    train = FeatureSet(logits=F.logits.numpy(), labels=Y)
    with_features = Detector(spec).fit(H, Y, head=HEAD)(NEW)
    scores = Detector(spec).fit(train)(logits=NEW.logits.numpy())
    np.testing.assert_array_equal(scores, with_features)
    assert torch.equal(Detector(spec).fit(train)(logits=NEW.logits), with_features)
    with pytest.raises(InputError, match="stage 'knn': there are only logits"):
        Detector("knn").fit(train)
    with pytest.raises(InputError, match="stage 'knn' reads penultimate features, but there are only logits"):
        Detector("knn").fit(H)(logits=NEW.logits)
