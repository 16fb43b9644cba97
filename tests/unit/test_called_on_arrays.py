"""Detectors called on arrays with a head, which bring no prediction of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nescio import Detector, Features
from nescio.core.features import Head

RNG = np.random.default_rng(0)
W, B = RNG.normal(size=(5, 12)), RNG.normal(size=5)
LABELS = np.arange(200) % 5
H = np.maximum(RNG.normal(size=(200, 12)) + W[LABELS], 0)
NEW = np.maximum(RNG.normal(size=(40, 12)), 0)


@pytest.mark.parametrize(
    "spec", ["energy", "fm:p=0.6+msp", "fmls", "dice:p=0.5+ls+energy", "line:p_a=0.5,p_w=0.3+ls+msp"]
)
def test_the_prediction_is_that_of_the_raw_head_whatever_stages_change(spec: str) -> None:
    detector = Detector(spec).fit(H, LABELS, head=(W, B))
    pred = torch.from_numpy((NEW @ W.T + B).argmax(axis=1))
    told = Features(torch.from_numpy(NEW), Head(torch.from_numpy(W), torch.from_numpy(B)), pred)
    np.testing.assert_array_equal(detector(NEW), detector(told).numpy())


def test_smoothed_logits_are_those_of_the_predicted_class() -> None:
    detector = Detector("fm:p=0.6+ls+energy").fit(H, LABELS, head=(W, B))
    pred = (NEW @ W.T + B).argmax(axis=1)
    keep = np.argsort(-W, axis=1)[:, : round(12 * 0.4)]
    mask = np.zeros_like(W)
    np.put_along_axis(mask, keep, 1, axis=1)
    v = np.stack([H[c == LABELS].mean(axis=0) for c in range(5)])[pred]
    s = (NEW * v).sum(1) / np.linalg.norm(NEW, axis=1) / np.linalg.norm(v, axis=1)
    f = s[:, None] * ((NEW * mask[pred]) @ W.T + B)
    np.testing.assert_allclose(detector(NEW), np.log(np.exp(f).sum(axis=1)), rtol=1e-12)
