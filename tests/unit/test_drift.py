"""The sequential test: how often it is wrong, and how soon it is right, by simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nescio.calibration.conformal import Calibration
from nescio.calibration.drift import Drift
from nescio.core.errors import InputError

ZEROS = np.zeros(10_000, np.int64)


def stream(rng: np.random.Generator, n: int, *, share: float = 0.0, after: int = 0, ties: bool = False) -> np.ndarray:
    """Scores of ID images; from image ``after`` on, a share of OOD ones that score lower by two deviations."""
    scores = rng.normal(size=n)
    scores[after:] -= 2 * (rng.random(n - after) < share)
    return scores.round(1) if ties else scores


def first_alarms(n: int, streams: int, *, every: int, calibration: int = 300, **options: object) -> np.ndarray:
    """The image at which each stream raises its first alarm; n + 1 where none does."""
    found = []
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        ties = bool(options.get("ties"))
        drift = Drift(Calibration.fit(stream(rng, calibration, ties=ties)), every=every, seed=seed)
        raised = drift.update(stream(rng, n, **options), ZEROS[:n])
        found.append(raised[0].image if raised else n + 1)
    return np.array(found)


@pytest.mark.parametrize("ties", [False, True])
def test_false_alarms_are_as_rare_as_said(*, ties: bool) -> None:
    streams, n, every = 150, 1000, 4000
    wrong = (first_alarms(n, streams, every=every, ties=ties) <= n).mean()
    assert wrong <= n / every + 3 * np.sqrt(0.25 * 0.75 / streams)


def test_bets_are_fair() -> None:
    p = (np.arange(200_000) + 0.5) / 200_000
    for k in (0.4, 0.8):
        assert (k * p ** (k - 1)).mean() == pytest.approx(1, abs=0.01)


def test_a_change_is_noticed_also_late_and_soon() -> None:
    early = first_alarms(3000, 20, every=1_000_000, share=0.5)
    assert np.median(early) < 300
    late = first_alarms(3000, 20, every=1_000_000, share=0.5, after=1500)
    assert (late > 1500).mean() >= 0.95
    assert np.median(late) - 1500 < 500


def test_an_alarm_says_when_the_change_began() -> None:
    rng = np.random.default_rng(0)
    drift = Drift(Calibration.fit(stream(rng, 1000)), every=100_000)
    (alarm, *_) = drift.update(stream(rng, 2000, share=0.8, after=1000), ZEROS[:2000])
    assert 900 < alarm.began <= 1050 < alarm.image + 50
    assert drift.evidence < 1  # it started again


def test_scores_that_rise_are_a_change_too() -> None:
    rng = np.random.default_rng(0)
    drift = Drift(Calibration.fit(stream(rng, 1000)))
    assert drift.update(stream(rng, 500) + 2, ZEROS[:500])


def test_order_and_batches_do_not_matter_to_what_is_counted() -> None:
    rng = np.random.default_rng(0)
    calibration, scores = Calibration.fit(stream(rng, 100)), stream(rng, 250)
    scores[7] = np.nan
    whole, parts = Drift(calibration, window=50), Drift(calibration, window=50)
    pred = np.arange(250) % 3
    whole.update(scores, pred)
    for at in range(0, 250, 7):
        parts.update(scores[at : at + 7], pred[at : at + 7])
    assert whole.picture() == parts.picture()
    picture = json.loads(json.dumps(whole.picture(["a", "b", "c"])))
    assert (picture["seen"], picture["window"]) == (249, 50)
    assert [c["label"] for c in picture["classes"]] == ["a", "b", "c"]
    assert sum(c["rejected"] for c in picture["classes"]) == picture["rejected"]
    assert picture["rejected"] == (~calibration.accepted(scores[-50:], pred[-50:])).sum()


def test_classes_with_thresholds_of_their_own_are_ranked_among_their_own() -> None:
    rng = np.random.default_rng(0)
    pred = np.repeat([0, 1], 300)
    shift = 50.0 * pred
    calibration = Calibration.fit(rng.normal(size=600) + shift, pred, n_classes=2)
    drift = Drift(calibration)
    new = rng.integers(0, 2, 1000)
    assert not drift.update(rng.normal(size=1000) + 50.0 * new, new)
    assert drift.update(rng.normal(size=100) + 50.0, np.zeros(100, np.int64))


def test_memory_is_bounded() -> None:
    rng = np.random.default_rng(0)
    drift = Drift(Calibration.fit(stream(rng, 100)), span=200)
    drift.update(stream(rng, 1000), ZEROS[:1000])
    assert max(len(known) for known in drift._known) <= 300
    with pytest.raises(InputError, match="every=0"):
        Drift(drift.calibration, every=0)


def test_copies_of_a_calibration_image_are_no_change_when_the_last_bits_differ() -> None:
    """As where a part of the images are the same blank frame, and batches are of another size than then."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=500) + 9, np.zeros(250)])  # these lie lowest
    drift = Drift(Calibration.fit(scores, accept=0.5))
    new = np.concatenate([rng.normal(size=2000) + 9, np.full(1000, -1e-7)])
    assert not drift.update(rng.permutation(new), ZEROS[:3000])
