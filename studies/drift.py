"""How soon the drift test notices that a tenth of the images are scenes, and how often it is wrong.

    python studies/drift.py RESULTS

RESULTS is a folder of `nescio bench --out` with CIFAR-10's test images as ID and the set `scenes` among the OOD ones.
Half of the ID images calibrate, drawn anew for each of 100 streams; a stream is drawn from the others, and after its
first 1,000 images a share of them is scenes. Prints a table in Markdown.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import nescio
from nescio.calibration.conformal import Calibration
from nescio.calibration.drift import Drift

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import parser

STREAMS, BEFORE, LENGTH = 100, 1000, 4000
DETECTORS = ("fmls", "msp", "knn")
SHARES = (0.0, 0.05, 0.1, 0.2)


def noticed(ids: np.ndarray, oods: np.ndarray, share: float) -> np.ndarray:
    """By stream: images from the change to the first alarm; below 0 for a false one, infinite for none."""
    found = []
    for seed in range(STREAMS):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(ids))
        held, rest = ids[order[: len(ids) // 2]], ids[order[len(ids) // 2 :]]
        stream = rest[:LENGTH].copy()
        other = np.flatnonzero(rng.random(LENGTH - BEFORE) < share) + BEFORE
        stream[other] = rng.choice(oods, len(other))
        alarms = Drift(Calibration.fit(held), seed=seed).update(stream, np.zeros(LENGTH, np.int64))
        found.append(alarms[0].image - BEFORE if alarms else np.inf)
    return np.array(found)


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("results", type=Path)
    results = nescio.Results.load(arguments.parse_args().results)
    scenes = next(s for s in results.ood_sets if s.name == "scenes")
    print("| detector | share of scenes | noticed | images until then: median, 90 % | false alarms |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for detector in (d for d in DETECTORS if d in results.detectors):
        for share in SHARES:
            found = noticed(results.id_set.scores[detector], scenes.scores[detector], share)
            right = found[(found > 0) & np.isfinite(found)]
            soon = f"{np.median(right):,.0f}, {np.quantile(right, 0.9):,.0f}" if len(right) and share else ""
            wrong = (found <= 0).sum() if share else np.isfinite(found).sum()
            print(f"| `{detector}` | {share:.0%} | {len(right) if share else ''} | {soon} | {wrong} |")


if __name__ == "__main__":
    main()
