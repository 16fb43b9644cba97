"""Whether the images that come are still like those that the threshold was calibrated on.

Each image's score is ranked among the calibration scores and those of all images since the start. While the stream is
exchangeable with the calibration images, these ranks are independent and uniform (Vovk, Nouretdinov and Gammerman,
"Testing exchangeability on-line", ICML 2003), so that a bet on them wins nothing on average. The bets are added up as
in the Shiryaev-Roberts procedure (Volkhonskiy et al., "Inductive conformal martingales for change-point detection",
COPA 2017), which forgets what lay before a change.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.calibration.conformal import Calibration, ClassTally
from nescio.core.errors import check_at_least

POWERS = (0.2, 0.4, 0.6, 0.8)
"""κ of the bets κ·p^(κ-1) on low scores and κ·(1-p)^(κ-1) on high ones: the smaller, the more on the very lowest."""
MOST_ALARMS = 100
"""The last ones, which are remembered."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of scores, in the picture."""
BINS = 10
"""Of p-values, in the picture."""
_TINY = 1e-12


@dataclass(frozen=True)
class Alarm:
    """That the input has changed: after how many images since the start, and since when, as far as can be told."""

    image: int
    began: int


class Drift:
    """A sequential test of a stream of scores, and a rolling picture of it by predicted class.

    A false alarm comes on average no sooner than after ``every`` images, and within m images with a probability of at
    most m / ``every``. After an alarm, and after ``span`` images without one, the test starts again from the
    calibration images.

    Args:
        calibration: the scores that the stream is compared with.
        every: images to a false alarm, on average, at the least.
        window: images that the rolling picture is over.
        span: images that are remembered, at most.
        seed: of the draws that break ties between scores.
    """

    def __init__(
        self,
        calibration: Calibration,
        *,
        every: int = 1_000_000,
        window: int = 1_000,
        span: int = 100_000,
        seed: int = 0,
    ) -> None:
        self.calibration = calibration
        self.every = check_at_least("every", every, 1)
        self.span = check_at_least("span", span, 1)
        self.alarms: deque[Alarm] = deque(maxlen=MOST_ALARMS)
        self.seen = self.alarmed = 0
        self._group_of = {c: i for i, g in enumerate(calibration.groups) for c in g.classes or ()}
        self._rng = np.random.default_rng(seed)
        self._window: deque[tuple[int, float, float]] = deque(maxlen=check_at_least("window", window, 1))
        self._restart()

    def _restart(self) -> None:
        self._known = [g.scores.tolist() for g in self.calibration.groups]
        self._evidence = np.zeros(2 * len(POWERS))
        self._start, self._began = self.seen, np.full(2 * len(POWERS), self.seen)

    @property
    def evidence(self) -> float:
        """How much speaks for a change: an alarm is raised where it reaches 1."""
        return float(self._evidence.mean() / self.every)

    def update(self, scores: npt.NDArray[np.float64], pred: npt.NDArray[np.int64]) -> list[Alarm]:
        """Take in scores ``(B,)`` and raw predictions ``(B,)``, in the order of the images; NaN scores are left out.

        Returns:
            the alarms that they raise.
        """
        raised = []
        p_values = self.calibration.p_values(scores, pred)
        for score, label, p in zip(scores.tolist(), pred.tolist(), p_values.tolist(), strict=True):
            if math.isnan(score):
                continue
            self.seen += 1
            self._window.append((label, score, p))
            self._bet(self._rank(score, label))
            if self.evidence >= 1:
                raised.append(Alarm(self.seen, int(self._began[self._evidence.argmax()]) + 1))
                self._restart()
            elif self.seen - self._start >= self.span:
                self._restart()
        self.alarms += raised
        self.alarmed += len(raised)
        return raised

    def _rank(self, score: float, label: int) -> float:
        """The share of the known scores that lie below, ties broken by chance: uniform while nothing changes."""
        group = self._group_of[label] if self._group_of else 0
        known, same = self._known[group], self.calibration.groups[group].tolerance
        low, high = bisect_left(known, score - same), bisect_right(known, score + same)
        insort(known, score)
        return float((low + self._rng.random() * (high - low + 1)) / len(known))

    def _bet(self, p: float) -> None:
        p = min(max(p, _TINY), 1 - _TINY)
        k = np.array(POWERS)
        won = np.concatenate([k * p ** (k - 1), k * (1 - p) ** (k - 1)])
        fresh = self._evidence * won <= won  # what lay before says nothing of this: a change would begin here
        self._began = np.where(fresh, self.seen - 1, self._began)
        self._evidence = (1 + self._evidence) * won

    def picture(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """The last ``window`` images beside the calibration images, as JSON can say it.

        Args:
            names: of the classes; their numbers where None.

        Returns:
            ``seen``, ``window`` (images that the picture is over), ``rejected`` of these and ``expected_rejected``;
            ``evidence``, ``alarmed`` (how often), ``alarms`` (the last ones); ``p_values``: how many lie in each tenth
            of [0, 1], which are equally many while nothing changes; ``scores``: quantiles, of the window and of the
            calibration images; ``classes``: by predicted class ``images``, ``rejected`` and ``median`` score, and the
            same of the calibration images where they are known. What is not known is null.
        """
        columns = list(zip(*self._window, strict=True)) or [(), (), ()]
        pred, scores, p = (np.array(c, dtype=t) for c, t in zip(columns, (np.int64, float, float), strict=True))
        known = np.concatenate([g.scores for g in self.calibration.groups])
        tallies = self.calibration.tally(scores, pred)
        before = {t.index: t for t in self.calibration.by_class}
        classes = [
            {
                "label": names[t.index] if names else str(t.index),
                **_tally(t),
                "calibration": _tally(before[t.index]) if t.index in before else None,
            }
            for t in tallies
        ]
        return {
            "seen": self.seen,
            "window": len(scores),
            "rejected": sum(t.rejected for t in tallies),
            "expected_rejected": self.calibration.alpha * len(scores),
            "evidence": self.evidence,
            "alarmed": self.alarmed,
            "alarms": [vars(a) for a in self.alarms],
            "p_values": np.histogram(p, bins=BINS, range=(0, 1))[0].tolist(),
            "scores": {"quantiles": list(QUANTILES), "window": _quantiles(scores), "calibration": _quantiles(known)},
            "classes": classes,
        }


def _tally(t: ClassTally) -> dict[str, Any]:
    return {"images": t.images, "rejected": t.rejected, "median": _number(t.median)}


def _quantiles(scores: npt.NDArray[np.float64]) -> list[float | None] | None:
    return None if not len(scores) else [_number(q) for q in np.quantile(scores, QUANTILES, method="nearest").tolist()]


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
