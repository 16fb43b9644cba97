"""The guarantee of a calibrated threshold: against the closed form, and by drawing."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from nescio.calibration.conformal import Calibration, images_needed, threshold_rank
from nescio.core.errors import InputError


def tail(n: int, x: Fraction, k: int) -> float:
    return float(sum(comb(n, i) * x**i * (1 - x) ** (n - i) for i in range(k, n + 1)))


@pytest.mark.parametrize("certainty", [0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("n", "accept"), [(19, 0.95), (99, 0.95), (200, 0.86), (60, 0.5), (999, 0.95)])
def test_the_beta_law_is_the_exact_binomial_sum(n: int, accept: float, certainty: float) -> None:
    found = Calibration.fit(np.arange(float(n)), accept=accept)
    share = Fraction(found.rejects_at_most(certainty))
    assert tail(n, share, found.groups[0].rank) == pytest.approx(certainty, abs=1e-12)


def test_the_law_of_a_thousand_images_is_the_one_that_is_known() -> None:
    found = Calibration.fit(np.arange(1000.0))
    assert found.groups[0].rank == 50
    assert found.groups[0].threshold == 49
    assert found.rejects_at_most(0.5) == pytest.approx(0.0496, abs=2e-4)  # about half of the draws exceed 0.05
    assert found.rejects_at_most(0.9) == pytest.approx(0.0589, abs=1e-4)
    assert found.rejects_at_most(0.999) < 0.076  # one draw in thousands is worse
    assert found.rejects_at_most(0.51) < 0.05 < found.rejects_at_most(0.53)


@pytest.mark.parametrize(
    ("n", "accept", "rank"),
    [(999, 0.9, 100), (999, 0.95, 50), (19, 0.95, 1), (18, 0.95, 0), (9, 0.9, 1), (39, 0.975, 1)],
)
def test_a_whole_rank_is_not_lost_to_rounding(n: int, accept: float, rank: int) -> None:
    assert threshold_rank(n, accept) == rank


@given(st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]), st.sampled_from([None, 0.5, 0.9, 0.99]))
def test_the_fewest_images_are_the_fewest(accept: float, confidence: float | None) -> None:
    least = images_needed(accept, confidence)
    assert threshold_rank(least, accept, confidence) == 1
    assert threshold_rank(least - 1, accept, confidence) == 0


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [100, 1000, 20000])
def test_the_rank_of_the_stronger_form_is_the_largest_that_holds(n: int, confidence: float) -> None:
    rank = threshold_rank(n, 0.95, confidence)
    assert binom.sf(rank - 1, n, 0.05) >= confidence > binom.sf(rank, n, 0.05)


def rates(accept: float, confidence: float | None, n: int = 200, draws: int = 4000) -> np.ndarray:
    """Uniform scores: the share of new ones below a threshold is the threshold."""
    rng = np.random.default_rng(0)
    rank = threshold_rank(n, accept, confidence)
    return np.sort(rng.random((draws, n)), axis=1)[:, rank - 1]


def test_on_average_no_more_is_rejected_than_said() -> None:
    found = rates(0.9, None)
    assert found.mean() == pytest.approx(20 / 201, abs=4 * found.std() / 60)
    assert (found > 0.1).mean() > 0.4  # a single draw may well exceed it: that is the weaker form


def test_the_stronger_form_holds_for_the_share_of_draws_that_is_said() -> None:
    exceeding = (rates(0.9, 0.9) > 0.1).mean()
    assert exceeding <= 0.1 + 3 * np.sqrt(0.09 / 4000)
    assert exceeding > 0.05  # and is not more cautious than whole ranks make it


def test_p_values_and_verdicts_say_the_same() -> None:
    rng = np.random.default_rng(1)
    found = Calibration.fit(rng.normal(size=333).round(1), accept=0.9)  # with ties
    scores = np.concatenate([rng.normal(size=2000).round(1), [-np.inf, np.inf]])
    p, accepted = found.p_values(scores, np.zeros(2002, int)), found.accepted(scores, np.zeros(2002, int))
    assert ((p > found.alpha) == accepted).all()
    own = found.groups[0].scores
    assert p[0] == (1 + (own <= scores[0]).sum()) / 334
    assert (p[-2], p[-1]) == (1 / 334, 1)


def test_nan_is_not_accepted() -> None:
    found = Calibration.fit(np.arange(100.0))
    assert not found.accepted(np.array([np.nan]), np.array([0]))[0]
    assert np.isnan(found.p_values(np.array([np.nan]), np.array([0])))[0]


def test_classes_with_few_images_share_a_threshold() -> None:
    pred = np.repeat([0, 1, 2, 3, 4], [300, 100, 30, 10, 0])
    scores = np.concatenate([np.arange(300.0) + 1000, np.arange(100.0), np.arange(30.0), np.arange(10.0)])
    found = Calibration.fit(scores, pred, n_classes=5)
    assert [g.classes for g in found.groups] == [(2, 3, 4), (0,), (1,)]  # three and four have 10 of 19: two joins
    assert sum(len(g.scores) for g in found.groups) == found.n == 440
    assert found.accepted(np.array([500.0, 500.0]), np.array([0, 1])).tolist() == [False, True]
    enough = Calibration.fit(scores[:400], pred[:400], n_classes=2)
    assert [g.classes for g in enough.groups] == [(0,), (1,)]
    assert "each group of predicted classes" in enough.promise()


def test_every_class_falls_into_one_group() -> None:
    rng = np.random.default_rng(0)
    for size, classes in itertools.product((19, 40, 300), (2, 7, 30)):
        pred = rng.integers(classes, size=size)
        found = Calibration.fit(rng.random(size), pred, n_classes=classes)
        listed = [c for g in found.groups for c in g.classes or ()]
        assert sorted(listed) == list(range(classes))
        assert min(len(g.scores) for g in found.groups) >= 19


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accept": 95}, "write 0.95 for 95 %"),
        ({"accept": 1.0}, "between 0 and 1"),
        ({"confidence": 0.0}, "between 0 and 1"),
        ({"accept": 0.999}, "give 999 or more"),
        ({"accept": 0.95, "confidence": 0.999}, "135 or more"),
        ({"n_classes": 3}, "need the predictions"),
    ],
)
def test_what_cannot_be_promised_is_refused(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Calibration.fit(np.arange(100.0), **options)
    with pytest.raises(InputError, match="NaN"):
        Calibration.fit(np.array([np.nan] * 50))


def test_the_promise_says_which_form_holds() -> None:
    scores = np.arange(1000.0)
    assert "on average over calibration sets" in Calibration.fit(scores).promise()
    assert "up to 5.89 % with 90 % certainty" in Calibration.fit(scores).promise()
    assert "for 90 % of the calibration sets" in Calibration.fit(scores, confidence=0.9).promise()


def test_scores_that_differ_by_rounding_alone_count_as_the_same() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=400), np.full(100, -1.5)])  # a fifth of the images are one and the same
    found = Calibration.fit(scores, accept=0.8)
    (group,) = found.groups
    assert group.threshold == -1.5
    scale = np.median(np.abs(scores + 1.5))
    assert group.tolerance == pytest.approx(2e-5 * scale)
    noisy = -1.5 + np.array([0.0, 1e-6, -1e-6, -1e-5]) * scale
    assert found.accepted(noisy, np.zeros(4, int)).all()
    assert len(set(found.p_values(noisy, np.zeros(4, int)))) == 1
    below = np.array([-1.5 - 1e-3 * scale])
    assert not found.accepted(below, np.zeros(1, int)).any()
    assert found.p_values(below, np.zeros(1, int)) <= 0.2


def test_the_tolerance_follows_the_scores_where_all_are_near_one() -> None:
    logits = np.random.default_rng(0).normal(20, 2, size=1000)
    (group,) = Calibration.fit(1 - np.exp(-logits)).groups  # a network that is sure: the threshold is 1 - 6e-8
    assert 0 < group.tolerance < 1e-4 * (1 - group.threshold)
    (constant,) = Calibration.fit(np.full(100, 7.0)).groups
    assert constant.tolerance == pytest.approx(7e-6)
    infinite = Calibration.fit(np.full(100, -np.inf))
    assert infinite.groups[0].tolerance == 0
    assert infinite.accepted(np.array([-np.inf]), np.zeros(1, int)).all()


@given(
    st.lists(st.integers(-30, 30), min_size=20, max_size=80),
    st.lists(st.floats(-40, 40), min_size=1, max_size=20),
    st.floats(0.2, 0.95),
)
def test_a_rejected_image_has_a_small_p_value_and_an_accepted_one_a_large_one(
    held: list[int], scores: list[float], accept: float
) -> None:
    found = Calibration.fit(np.array(held, float) / 7, accept=accept)
    pred = np.zeros(len(scores), int)
    p, rank = found.p_values(np.array(scores), pred), found.groups[0].rank
    assert (found.accepted(np.array(scores), pred) == (p > rank / (len(held) + 1))).all()
