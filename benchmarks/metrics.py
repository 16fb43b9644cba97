"""AUROC and FPR95 of 5 million ID and 5 million OOD scores: nescio against scikit-learn, in one run."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from _common import parser, seconds
from nescio.evaluation import metrics


def main() -> None:
    """Print the ratio and the largest difference."""
    parser(__doc__).parse_args()
    rng = np.random.default_rng(0)
    ids, oods = rng.normal(1, 1, 5_000_000), rng.normal(0, 1, 5_000_000)
    ours: list[float] = []
    mine = seconds(lambda: ours.extend((metrics.auroc(ids, oods), metrics.fpr_at_tpr(ids, oods))))

    truth, scores = np.repeat([1, 0], 5_000_000), np.concatenate([ids, oods])
    areas: list[float] = []
    curves: list[np.ndarray] = []

    def scikit_learn() -> None:
        areas.append(roc_auc_score(truth, scores))
        curves.extend(roc_curve(truth, scores, drop_intermediate=False))

    theirs = seconds(scikit_learn)
    off = max(abs(ours[0] - areas[0]), abs(ours[1] - curves[0][np.argmax(curves[1] >= 0.95)]))
    print(
        f"nescio {mine:.2f} s, scikit-learn {theirs:.2f} s: {theirs / mine:.1f} × faster (2 × asked), off by {off:.1e}"
    )


if __name__ == "__main__":
    main()
