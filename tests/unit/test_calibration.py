"""Operating points against costs that can be worked out by hand or in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from nescio.calibration.cost import Costs, operating_point
from nescio.core.errors import InputError


def test_a_threshold_by_hand() -> None:
    ids, oods = [1.0, 3.0, 4.0, 5.0], [0.0, 2.0]
    even = operating_point(ids, oods, resamples=50)
    assert (even.reject_id, even.accept_ood) == (0.25, 0.0)  # 1 is given up, 2 is kept out
    assert even.cost == pytest.approx(0.125)
    assert even.threshold == 2.5  # half way between 2 and 3
    careful = operating_point(ids, oods, Costs(reject_id=10), resamples=50)
    assert (careful.reject_id, careful.accept_ood) == (0.0, 0.5)
    assert careful.threshold == 0.5
    assert operating_point([1.0, 1.0], [2.0, 2.0], Costs(share_ood=0.9), resamples=50).threshold == np.inf  # reject all


def test_normal_scores_give_the_threshold_of_theory() -> None:
    rng = np.random.default_rng(0)
    ids, oods = rng.normal(2, 1, 20_000), rng.normal(0, 1, 20_000)
    costs = Costs(accept_ood=3, reject_id=1, share_ood=0.2)

    def expected(t: float) -> float:
        return 0.2 * 3 * norm.sf(t) + 0.8 * norm.cdf(t, 2)

    truth = minimize_scalar(expected, bounds=(-2, 4), method="bounded")
    found = operating_point(ids, oods, costs, resamples=100)
    assert found.threshold == pytest.approx(truth.x, abs=0.15)
    assert found.cost == pytest.approx(truth.fun, abs=0.01)
    assert found.threshold_interval[0] <= truth.x <= found.threshold_interval[1]
    assert found.trivial_cost == pytest.approx(min(0.6, 0.8))


def test_the_cost_of_new_images_is_not_the_optimistic_one() -> None:
    rng = np.random.default_rng(0)
    optimism, honest = [], []
    for seed in range(40):
        ids, oods = rng.normal(1, 1, 25), rng.normal(0, 1, 25)
        point = operating_point(ids, oods, resamples=60, seed=seed)
        true = 0.5 * norm.sf(point.threshold) + 0.5 * norm.cdf(point.threshold, 1)
        optimism.append(true - point.cost)
        honest.append(true - point.new_cost)
    assert np.mean(optimism) > 0.03  # the images it was chosen on flatter it
    assert abs(np.mean(honest)) < np.mean(optimism) / 2


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ({"accept_ood": 0}, "above 0"),
        ({"share_ood": 1.0}, "nothing to decide"),
        ({"share_ood": 20}, "did you mean share_ood=0.2"),
    ],
)
def test_costs_that_decide_nothing_are_refused(costs: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Costs(**costs)
    with pytest.raises(InputError, match="no NaN"):
        operating_point([1.0, float("nan")], [0.0])


def test_extreme_scores_and_costs_do_not_move_the_threshold_into_the_wrong_set() -> None:
    assert operating_point([1.0, 2.0, 3.0], [-np.inf] * 3, resamples=5).cost == 0
    close = operating_point([np.nextafter(1, 2)] * 5, [1.0] * 5, resamples=5)
    assert (close.cost, close.accept_ood) == (0, 0)
    assert operating_point([1.0, 2, 3, 4], [-9.0, -8, -7], Costs(1e-13, 1e-13), resamples=5).reject_id == 0
    with pytest.raises(InputError, match="two OOD images"):
        operating_point([1.0, 2.0], [0.0])
