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
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.conformal import Calibration
from nescio.errors import check_at_least

POWERS = (0.2, 0.4, 0.6, 0.8)
"""κ of the bets κ·p^(κ-1) on low scores and κ·(1-p)^(κ-1) on high ones: the smaller, the more on the very lowest."""
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
        self.alarms: list[Alarm] = []
        self.seen = 0
        self._group_of = {c: i for i, g in enumerate(calibration.groups) for c in g.classes or ()}
        self._rng = np.random.default_rng(seed)
        self._window: deque[tuple[int, bool]] = deque(maxlen=check_at_least("window", window, 1))
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
        accepted = self.calibration.accepted(scores, pred)
        for score, label, taken in zip(scores.tolist(), pred.tolist(), accepted.tolist(), strict=True):
            if math.isnan(score):
                continue
            self.seen += 1
            self._window.append((label, taken))
            self._bet(self._rank(score, label))
            if self.evidence >= 1:
                raised.append(Alarm(self.seen, int(self._began[self._evidence.argmax()]) + 1))
                self._restart()
            elif self.seen - self._start >= self.span:
                self._restart()
        self.alarms += raised
        return raised

    def _rank(self, score: float, label: int) -> float:
        """The share of the known scores that lie below, ties broken by chance: uniform while nothing changes."""
        known = self._known[self._group_of[label]] if self._group_of else self._known[0]
        low, high = bisect_left(known, score), bisect_right(known, score)
        insort(known, score)
        return float((low + self._rng.random() * (high - low + 1)) / len(known))

    def _bet(self, p: float) -> None:
        p = min(max(p, _TINY), 1 - _TINY)
        k = np.array(POWERS)
        won = np.concatenate([k * p ** (k - 1), k * (1 - p) ** (k - 1)])
        fresh = self._evidence * won <= won  # what lay before says nothing of this: a change would begin here
        self._began = np.where(fresh, self.seen - 1, self._began)
        self._evidence = (1 + self._evidence) * won

    def picture(self, names: list[str] | None = None) -> dict[str, Any]:
        """The last ``window`` images, as JSON can say it: how many were rejected, over all and by predicted class."""
        labels = np.array([label for label, _ in self._window], dtype=np.int64)
        taken = np.array([accepted for _, accepted in self._window], dtype=bool)
        classes = [
            {
                "label": names[c] if names else str(c),
                "images": int((labels == c).sum()),
                "rejected": int((~taken[labels == c]).sum()),
            }
            for c in np.unique(labels).tolist()
        ]
        return {
            "seen": self.seen,
            "window": len(labels),
            "rejected": int((~taken).sum()),
            "expected_rejected": self.calibration.alpha * len(labels),
            "evidence": self.evidence,
            "alarms": [vars(a) for a in self.alarms],
            "classes": classes,
        }
