from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from nescio.core.errors import InputError
from nescio.evaluation import metrics

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_areas_equal_scikit_learn_with_ties(ids: list[float], oods: list[float]) -> None:
    truth, scores = np.r_[np.ones(len(ids)), np.zeros(len(oods))], np.r_[ids, oods]
    assert metrics.auroc(ids, oods) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert metrics.aupr_in(ids, oods) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert metrics.aupr_out(ids, oods) == pytest.approx(average_precision_score(1 - truth, -scores), abs=1e-12)


@settings(deadline=None)
@given(SCORES, SCORES, st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
def test_fpr_is_the_definition(ids: list[float], oods: list[float], tpr: float) -> None:
    ok = [t for t in ids if np.mean(np.array(ids) >= t) >= tpr - 1e-12]
    assert metrics.threshold_at_tpr(ids, tpr) == max(ok)
    assert metrics.fpr_at_tpr(ids, oods, tpr) == np.mean(np.array(oods) >= max(ok))


@pytest.mark.parametrize("n", [20, 100, 2000, 10_000, 999])
def test_threshold_is_the_sorted_score_at_a_twentieth(n: int) -> None:
    ids = np.random.default_rng(0).permutation(n).astype(float)
    assert metrics.threshold_at_tpr(ids) == np.floor(0.05 * n)


def test_the_other_direction_has_its_own_name() -> None:
    ids, oods = np.arange(10.0), np.arange(10.0) - 5
    # rejecting (score <= t) at least 95 % of OOD means all ten here: t = 4, which rejects ID 0…4
    assert metrics.fpr_at_tpr_ood_positive(ids, oods) == 0.5
    assert metrics.fpr_at_tpr(ids, oods) == 0.5
    assert metrics.fpr_at_tpr(ids, oods, 0.8) != metrics.fpr_at_tpr_ood_positive(ids, oods, 0.9)


def test_large_arrays_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    ids, oods = rng.normal(1, 1, 30_000), rng.normal(0, 1, 20_000)
    truth, scores = np.r_[np.ones(len(ids)), np.zeros(len(oods))], np.r_[ids, oods]
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert metrics.auroc(ids, oods) == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert metrics.fpr_at_tpr(ids, oods) == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-9)
    ours_fpr, ours_tpr = metrics.roc(ids, oods)
    np.testing.assert_allclose(np.trapezoid(ours_tpr, ours_fpr), roc_auc_score(truth, scores), atol=1e-9)


def test_risk_coverage_is_the_mean_over_orders_of_a_tie() -> None:
    scores, correct = [3.0, 2.0, 2.0, 2.0, 1.0], [True, False, True, True, False]
    orders = []
    for tie in itertools.permutations([1, 2, 3]):
        wrong = [not correct[i] for i in (0, *tie, 4)]
        orders.append(np.cumsum(wrong) / np.arange(1, 6))
    coverage, risk = metrics.risk_coverage(scores, correct)
    np.testing.assert_allclose(risk, np.mean(orders, axis=0))
    np.testing.assert_allclose(coverage, [0.2, 0.4, 0.6, 0.8, 1.0])
    assert metrics.aurc(scores, correct) == pytest.approx(np.mean(orders))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3).map(float), st.booleans()), min_size=1, max_size=40))
def test_the_generalised_area_is_that_of_accuracy_and_auroc(rows: list[tuple[float, bool]]) -> None:
    scores, correct = (np.array(column) for column in zip(*rows, strict=True))
    a = correct.mean()
    confused = 0 if a in {0, 1} else a * (1 - a) * (1 - roc_auc_score(correct, scores))
    assert metrics.augrc(scores, correct) == pytest.approx(confused + (1 - a) ** 2 / 2, abs=1e-12)


def test_the_generalised_area_of_four_images_by_hand() -> None:
    # accepted and wrong of four, at coverages 0, 1/4, …, 1: 0, 0, 1, 1, 2; the trapezoids' mean height is 3/4 images
    assert metrics.augrc([4.0, 3.0, 2.0, 1.0], [True, False, True, False]) == pytest.approx(3 / 16)


@settings(deadline=None)
@given(SCORES, SCORES, st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0]))
def test_detection_accuracy_is_that_of_the_best_threshold(ids: list[float], oods: list[float], share: float) -> None:
    every = [
        (1 - share) * np.mean(np.array(ids) >= t) + share * np.mean(np.array(oods) < t) for t in [*ids, *oods, np.inf]
    ]
    assert metrics.detection_accuracy(ids, oods, share) == pytest.approx(max(every), abs=1e-12)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 0.760249938906524  # Phi(1 / sqrt 2)
    hits = 0
    for seed in range(60):
        low, high = metrics.intervals(rng.normal(1, 1, 150), rng.normal(0, 1, 150), resamples=200, seed=seed)["auroc"]
        hits += low <= truth <= high
    assert 51 <= hits <= 60  # 57 expected; 51 is three standard deviations below


def test_resampled_metrics_are_those_of_the_copied_images() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        ids, oods = (
            rng.normal(1, 1, rng.integers(3, 60)).round(1),
            rng.normal(0, 1, rng.integers(2, 50)).round(1),
        )  # ties
        w, v = (np.bincount(rng.integers(len(s), size=len(s)), minlength=len(s)) for s in (ids, oods))
        fpr95, auroc = metrics.Resampled(ids, oods)(w, v)
        copied = np.repeat(ids, w), np.repeat(oods, v)
        assert fpr95 == pytest.approx(metrics.fpr_at_tpr(*copied), abs=1e-12)
        assert auroc == pytest.approx(metrics.auroc(*copied), abs=1e-12)


def test_a_paired_comparison_sees_what_two_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    ids, oods = rng.normal(1, 1, 400), rng.normal(0, 1, 400)
    better = ids + 0.05  # the same images, each a little higher
    one, two = (metrics.intervals(i, oods)["auroc"] for i in (ids, better))
    assert one[1] > two[0]  # the intervals overlap
    found = metrics.paired((ids, oods), (better, oods))["auroc"]
    assert found.value == pytest.approx(metrics.auroc(better, oods) - metrics.auroc(ids, oods))
    assert 0 < found.low < found.value < found.high
    assert found.p < 0.01
    same = metrics.paired((ids, oods), (ids, oods))
    assert all((d.value, d.low, d.high, d.p) == (0, 0, 0, 1) for d in same.values())
    with pytest.raises(InputError, match="cannot be paired"):
        metrics.paired((ids, oods), (ids[:-1], oods))


@pytest.mark.parametrize(
    "metric", [*metrics.METRICS.values(), metrics.fpr_at_tpr_ood_positive, metrics.detection_accuracy]
)
def test_nan_empty_and_wrong_shapes_are_refused(metric) -> None:
    with pytest.raises(InputError, match="NaN"):
        metric([1.0, float("nan")], [0.0])
    with pytest.raises(InputError, match="OOD"):
        metric([1.0], [])
    with pytest.raises(InputError, match="shape"):
        metric([[1.0]], [0.0])
    assert 0 <= metric([1.0, float("inf")], [0.0, -float("inf")]) <= 1


def test_percent_are_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match=r"tpr=0\.95"):
        metrics.fpr_at_tpr([1.0], [0.0], 95)
