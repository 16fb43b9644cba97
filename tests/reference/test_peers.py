"""Our scores beside those of ``pytorch-ood`` 0.4.0 and ``oodeel`` 0.4.0 on the same features.

Stored by ``make_peer_fixture.py`` and ``make_oodeel_fixture.py``. Scores must be equal to 1e-4, up to the constant
factors below, or rank all images alike where a peer's scale is another function of ours.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from conftest import training
from nescio.core.detector import Detector
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Columns, Features, Head
from nescio.core.needs import Maps
from nescio.methods.score.gram import Gram
from nescio.methods.shape.rankfeat import RankFeat


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name(name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


STORED = load("peers.npz")
SCORES = [
    (peer, name.removeprefix("score "), stored[name])
    for peer, stored in (("pytorch-ood", STORED), ("oodeel", load("oodeel.npz")))
    for name in stored
    if name.startswith("score ")
]

FACTORS = {  # ours = factor × the peer's, where its scale is another
    ("pytorch-ood", "mahalanobis"): 1000,  # it divides the covariance by nothing instead of N = 500, the distance by 2
    ("pytorch-ood", "rmd"): 500,  # the covariances likewise
    ("pytorch-ood", "gen:gamma=0.1"): 6,  # it takes the mean over the C = 6 classes, we the sum, as the paper
    ("pytorch-ood", "gen:gamma=0.3,M=3"): 3,  # likewise over the M = 3 largest
    ("oodeel", "mahalanobis"): 2,  # log-densities: half the squared distance
    ("oodeel", "rmd"): 2,
    ("oodeel", "multimahalanobis"): 2,  # the mean over two layers, we the sum
}
TOLERANCES = {
    ("pytorch-ood", "gen:gamma=0.1"): 1e-2,  # it clamps probabilities at 1e-7, of which the power 0.1 makes 0.2
    ("oodeel", "gen:gamma=0.1"): 1e-2,
    ("pytorch-ood", "openmax:tail=25,alpha=3"): 1e-3,  # its Weibull fit is a search that stops at 1e-4
}
SAME_ORDER = {("oodeel", "knn:k=7")}  # squared distances


def features(h: str, y: str | None = None) -> Features:
    """Stored features with the columns that probes make of them, seen as a feature map of 6 × 2 × 2."""
    values = torch.from_numpy(STORED[h])
    head = Head(torch.from_numpy(STORED["weight"]), torch.from_numpy(STORED["bias"]))
    labels = None if y is None else torch.from_numpy(STORED[y])
    fmap = values.unflatten(1, (6, 2, 2))
    maps = Maps([fmap, fmap.relu()], lambda m: m.flatten(1), head)
    probes = Gram(orders=3).needs.probes | RankFeat().needs.probes | {"mean": lambda _: [fmap.mean((2, 3)), values]}
    columns = {f"{name}.{i}": column for name, probe in probes.items() for i, column in enumerate(probe(maps))}
    return Features(values, head, head.linear(values).argmax(1), labels, Columns.of(columns))


@pytest.mark.parametrize(("peer", "spec", "theirs"), SCORES, ids=[f"{peer} {spec}" for peer, spec, _ in SCORES])
def test_the_peer_agrees(peer: str, spec: str, theirs: np.ndarray) -> None:
    data = training(features("h", "y"))
    detector = Detector(spec).fit(data.with_held_out(data))
    ours, theirs = detector(features("x")).numpy(), theirs * FACTORS.get((peer, spec), 1)
    if (peer, spec) in SAME_ORDER:
        assert spearmanr(ours, theirs).statistic == pytest.approx(1, abs=1e-12)
        return
    tolerance = TOLERANCES.get((peer, spec), 1e-4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=tolerance * np.ptp(theirs))


def test_the_means_of_a_class_without_a_hit_are_of_all_its_images() -> None:
    f = features("h", "y")
    never = dataclasses.replace(f, pred=torch.where(f.labels == 2, 3, f.pred))
    scores = Detector("openmax").fit(FeatureSet.stream(training(never).chunks, f.head))(f)
    assert scores.isfinite().all()
