"""Whether a calibrated threshold keeps what it promises: 1,000 calibration sets of 1,000 CIFAR-10 test images.

    python studies/guarantee.py [RESULTS]

For every detector of a bench run on the CIFAR-10 test images (RESULTS, a folder of `nescio bench --out`; made with all
detectors that read the plain pass where it is left out), 1,000 images are drawn as calibration images, and the other
9,000 are new ones: how many of these are rejected, on average and in how many draws more than promised? Then, for four
detectors, what a threshold that is set on training images rejects. Writes studies/guarantee/tables.md. Images and
weights: $NESCIO_SHARED, or ../shared next to the checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import nescio
from nescio.calibration.conformal import threshold_rank
from nescio.core.detector import score_all
from nescio.core.files import write_whole
from nescio.core.spec import all_specs

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import ROOT, data, densenet, parser, tests

STORED = ROOT / "studies/guarantee/tables.md"
ACCEPT, CONFIDENCE, DRAWS, CALIBRATION = 0.95, 0.9, 1000, 1000
HEAD = """\
1,000 draws of 1,000 calibration images from the 10,000 test images of CIFAR-10; the others are new. DenseNet-BC-100-12;
95 % are to be accepted. In percent of the new images; *above* is the share of the draws that reject more than 5 %.
`python studies/guarantee.py`."""
ON_TRAINING = ("msp", "energy", "fmls", "knn")


def results() -> nescio.Results:
    """Scores of the test images, from a folder or from banks."""
    arguments = parser(__doc__)
    arguments.add_argument("results", nargs="?", type=Path)
    if (stored := arguments.parse_args().results) is not None:
        return nescio.Results.load(stored)
    made = {s: nescio.Detector(s) for s in all_specs()}
    specs = [s for s, d in made.items() if d.input_stage is None and not d.needs.heads]
    return nescio.bench(
        densenet(),
        train=data("cifar10/train"),
        id=data("cifar10/test"),
        ood=tests("textures"),
        detectors=specs,
    )


def drawn(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of the new images that is rejected, by draw: on average, and with confidence."""
    ranks = [threshold_rank(CALIBRATION, ACCEPT, confidence) for confidence in (None, CONFIDENCE)]
    rng = np.random.default_rng(0)
    rejected = np.empty((2, DRAWS))
    for i in range(DRAWS):
        order = rng.permutation(len(scores))
        held, new = np.sort(scores[order[:CALIBRATION]]), scores[order[CALIBRATION:]]
        rejected[:, i] = [(new < held[rank - 1]).mean() for rank in ranks]
    return rejected[0], rejected[1]


def on_training_images() -> list[str]:
    """The share of the test images that a threshold set on 10,000 training images rejects."""
    classifier = densenet()
    banks = [nescio.Session(classifier).bank(nescio.open_source(data(f"cifar10/{s}"))) for s in ("train", "test")]
    training = nescio.FeatureSet.stream(banks[0].chunks, classifier.head)
    detectors = [
        nescio.Detector(spec, classifier.name, classifier.head.n_classes).fit(training) for spec in ON_TRAINING
    ]
    seen, new = (score_all(detectors, bank.chunks())[0] for bank in banks)
    rank = threshold_rank(10_000, ACCEPT)
    lines = ["| detector | rejected of the test images |", "| --- | ---: |"]
    for spec, a, b in zip(ON_TRAINING, seen, new, strict=True):
        threshold = np.sort(a.numpy()[:10_000])[rank - 1]
        lines.append(f"| `{spec}` | {100 * (b.numpy() < threshold).mean():.1f} % |")
    return lines


def main() -> None:
    """Draw, and write the tables."""
    found = results()
    alpha = round(1 - ACCEPT, 12)
    lines = [
        "# What a calibrated threshold rejects",
        "",
        *HEAD.splitlines(),
        "",
        f"| detector | mean | above | worst draw | mean, `--confidence {CONFIDENCE:g}` | above | worst draw |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    means, errors, above = [], [], []
    for detector in found.detectors:
        plain, sure = drawn(found.id_set.scores[detector])
        means.append(plain.mean())
        errors.append(plain.std() / np.sqrt(DRAWS))
        above.append((sure > alpha).mean())
        cells = [f"{100 * v:.2f}" for r in (plain, sure) for v in (r.mean(), (r > alpha).mean(), r.max())]
        lines.append(f"| `{detector}` | {' | '.join(cells)} |")
    lines += [
        "",
        f"The largest mean is {100 * max(means):.2f} % (standard error {100 * max(errors):.2f}).",
        f"With confidence, at most {100 * max(above):.1f} % of the draws reject more than promised, where 10 % may",
        f"(standard error {100 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / DRAWS):.1f}).",
        "",
        "## A threshold that is set on training images",
        "",
        *on_training_images(),
    ]
    STORED.parent.mkdir(exist_ok=True)
    write_whole(STORED, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
