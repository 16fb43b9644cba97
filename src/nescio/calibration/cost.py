"""Where to put the threshold of a score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nescio.core.errors import InputError, check_at_least, check_positive, check_share

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """What errors cost, in any unit, and how often there is something to get wrong.

    Attributes:
        accept_ood: cost of accepting an OOD image.
        reject_id: cost of rejecting an ID image.
        share_ood: share of OOD images among those that will come.
    """

    accept_ood: float = 1.0
    reject_id: float = 1.0
    share_ood: float = 0.5

    def __post_init__(self) -> None:
        check_positive("accept_ood", self.accept_ood)
        check_positive("reject_id", self.reject_id)
        if not 0 < check_share("share_ood", self.share_ood) < 1:
            raise InputError(
                f"share_ood={self.share_ood:g} must be between 0 and 1: otherwise there is nothing to decide"
            )


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold of least expected cost, and what is to be expected of it.

    Attributes:
        threshold: accept where the score is at least this; ``inf`` rejects all.
        threshold_interval: of it, over bootstrap draws of the images (95 %).
        reject_id: share of the ID images that it rejects.
        accept_ood: share of the OOD images that it accepts.
        cost: expected cost per image, on the very images that it was chosen on.
        new_cost: the same on images that a draw left out: what new ones of the same kind will cost, on average.
        cost_interval: of that, over draws (95 %).
        trivial_cost: of the better of accepting all and rejecting all.
    """

    threshold: float
    threshold_interval: tuple[float, float]
    reject_id: float
    accept_ood: float
    cost: float
    new_cost: float
    cost_interval: tuple[float, float]
    trivial_cost: float


def operating_point(
    id_scores: npt.ArrayLike,
    ood_scores: npt.ArrayLike,
    costs: Costs | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> OperatingPoint:
    """The threshold t of least expected cost.

    It minimises ``share · c_accept · P(score >= t | OOD) + (1 - share) · c_reject · P(score < t | ID)``.
    Its uncertainty comes from the bootstrap: a draw chooses a threshold, and the images that it left out say what that
    costs.

    Args:
        id_scores: ``(N,)``, of ID images that nothing was fitted to.
        ood_scores: ``(M,)``, of OOD images like those that will come.
        costs: 1 for either error, and as many OOD as ID images, where None.
        resamples: draws.
        seed: of the draws.

    Raises:
        InputError: there are no scores, or some are NaN.
    """
    costs = costs or Costs()
    ids, oods = (_finite(name, s) for name, s in (("ID", id_scores), ("OOD", ood_scores)))
    if min(len(ids), len(oods)) < 2:
        raise InputError("an operating point needs at least two ID and two OOD images")
    check_at_least("resamples", resamples, 1)
    threshold = _cheapest(ids, oods, costs)
    reject, accept = float((ids < threshold).mean()), float((oods >= threshold).mean())
    rng = np.random.default_rng(seed)
    chosen, left_out = [], []
    for _ in range(resamples):
        i, j = rng.integers(len(ids), size=len(ids)), rng.integers(len(oods), size=len(oods))
        drawn = _cheapest(ids[i], oods[j], costs)
        chosen.append(drawn)
        rest, rest_too = np.delete(ids, i), np.delete(oods, j)
        if len(rest) and len(rest_too):
            left_out.append(_cost(float((rest < drawn).mean()), float((rest_too >= drawn).mean()), costs))
    spread = np.quantile(left_out, [0.025, 0.975]) if left_out else (np.nan, np.nan)
    ends = np.quantile(chosen, [0.025, 0.975], method="nearest")
    return OperatingPoint(
        threshold,
        (float(ends[0]), float(ends[1])),
        reject,
        accept,
        _cost(reject, accept, costs),
        float(np.mean(left_out)) if left_out else float("nan"),
        (float(spread[0]), float(spread[1])),
        min(_cost(0, 1, costs), _cost(1, 0, costs)),
    )


def _cost(reject_id: float, accept_ood: float, costs: Costs) -> float:
    return costs.share_ood * costs.accept_ood * accept_ood + (1 - costs.share_ood) * costs.reject_id * reject_id


def _cheapest(ids: Scores, oods: Scores, costs: Costs) -> float:
    """Of the thresholds of least cost, the middle one: as far from either kind of error as can be."""
    candidates = np.append(np.unique(np.concatenate([ids, oods])), np.inf)
    reject = np.searchsorted(np.sort(ids), candidates, "left") / len(ids)
    accept = 1 - np.searchsorted(np.sort(oods), candidates, "left") / len(oods)
    cost = costs.share_ood * costs.accept_ood * accept + (1 - costs.share_ood) * costs.reject_id * reject
    best = np.flatnonzero(cost <= cost.min() + 1e-12 * cost.max())
    at = int(best[len(best) // 2])
    if at == 0 or not np.isfinite(candidates[at]):
        return float(candidates[at])
    middle = float((candidates[at - 1] + candidates[at]) / 2)
    return middle if np.isfinite(middle) and middle > candidates[at - 1] else float(candidates[at])


def _finite(name: str, values: npt.ArrayLike) -> Scores:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or np.isnan(scores).any():
        raise InputError(f"expected {name} scores of shape (N,) with N > 0 and no NaN, got shape {scores.shape}")
    return scores
