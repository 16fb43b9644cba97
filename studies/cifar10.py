"""CIFAR-10 and a DenseNet-BC-100-12: every method, beside a reference and the published numbers.

The reference numbers (``cifar10_reference.csv``) come from an independent float64 implementation on the same images and
weights. The published ones (``table1_textures.csv``) are the textures column of Table I of the FM + LS paper: another
network of the same kind, and all 47 classes of textures there, 10 here. With ``--passes`` it takes instead the methods
that need a pass of their own, on 2,000 ID images, textures and scenes. Writes studies/cifar10/tables.md or passes.md.

    python studies/cifar10.py [--passes]
"""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path

from nescio import bench
from nescio.core.detector import Detector
from nescio.core.spec import all_specs
from nescio.evaluation.results import Results

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import DENSENET, data, densenet, parser, stamp, store, tests

SETS = ("textures", "scenes", "mnist", "tiny-imagenet-scenes", "cifar100")
MORE = (
    "react:q=0.9+energy",
    "react:q=0.98+energy",
    "gmm:covariance=tied",
    "typical:lam=2+energy",
    "ls:prototypes=head+energy",
    "temperature:T=1000+msp",
    "mean(fmls,knn:k=50)",
    "max(fmls,knn:k=50)",
    "fisher(fmls,knn:k=50)",
    "fisher(fmls,knn:k=50,multimahalanobis)",
)
PASSES = (
    "msp",
    "energy",
    "odin+msp",
    "odin:per_std=true+msp",
    "odin+react:clip=1.6+msp",
    "fmls-msp",
    "fmls-odin",
    "bats+energy",
    "mcdropout:p=0.5+msp",
    "mahalanobis",
    "perturb+mahalanobis",
)


def read_csv(name: str) -> dict[str, dict[str, str]]:
    """Rows of a table beside this file, by detector."""
    with (Path(__file__).parent / name).open(newline="") as file:
        return {row.pop("detector"): row for row in csv.DictReader(file)}


def table(results: Results, published: dict[str, dict[str, str]] | None = None) -> list[str]:
    """FPR95 / AUROC in percent as Markdown, beside the published column where there is one."""
    sets = [s.name for s in results.ood_sets]
    columns = ["detector", *sets, *(["textures, published"] if published else [])]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---|" * (len(columns) - 1)]
    for detector in results.detectors:
        rows = [results.row(detector, ood) for ood in sets]
        cells = [f"`{detector}`", *(f"{r.fpr95 * 100:.2f} / {r.auroc * 100:.2f}" for r in rows)]
        if published:
            paper = published.get(detector)
            cells.append(f"{paper['fpr95']} / {paper['auroc']} ({paper['row']})" if paper else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def compare(results: Results, reference: dict[str, dict[str, str]]) -> None:
    """Print the largest difference from the reference, and stop where it is too large."""
    worst = {
        metric: max(
            abs(getattr(results.row(detector, ood), metric) * 100 - float(row[f"{ood}_{metric}"]))
            for detector, row in reference.items()
            for ood in ("textures", "mnist", "scenes")
        )
        for metric in ("fpr95", "auroc")
    }
    print(f"\nLargest difference from the reference: FPR95 {worst['fpr95']:.3f}, AUROC {worst['auroc']:.3f} points.")
    if worst["fpr95"] > 0.15 or worst["auroc"] > 0.05:
        raise SystemExit("beyond the tolerance of 0.15 and 0.05 points")
    ranking = ("msp", "energy", "react:clip=1.6+energy", "dice+react", "fmls")
    shares = [results.row(d, "textures").fpr95 for d in ranking]
    if shares != sorted(shares, reverse=True):
        raise SystemExit(f"FPR95 on textures should fall along {' > '.join(ranking)}")


def main() -> None:
    """Write the table as Markdown, and print the largest difference from the reference."""
    arguments = parser(__doc__)
    arguments.add_argument("--passes", action="store_true")
    options = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    reference, published = read_csv("cifar10_reference.csv"), read_csv("table1_textures.csv")
    servable = [s for s in all_specs() if not Detector(s, DENSENET).needs.heads]
    one_pass = [s for s in servable if Detector(s, DENSENET).input_stage is None]
    results = bench(
        densenet(None),
        train=data("cifar10/train"),
        id=data("cifar10/test") + ("[:2000]" if options.passes else ""),
        ood=tests(*(SETS[:2] if options.passes else SETS)),
        detectors=PASSES if options.passes else list(dict.fromkeys([*reference, *one_pass, *MORE])),
    )
    head = f"FPR95 / AUROC in percent; the network is right for {results.rows[0].id_accuracy:.2%} of the ID images."
    lines = table(results, None if options.passes else published)
    store(
        "cifar10/passes.md" if options.passes else "cifar10/tables.md", [head, stamp("studies/cifar10.py"), "", *lines]
    )
    if not options.passes:
        compare(results, reference)
        seconds = sum(results.row(d, SETS[0]).seconds for d in results.detectors)
        print(f"Fitting all {len(results.detectors)} detectors and scoring ID and {SETS[0]}: {seconds:.0f} s.")


if __name__ == "__main__":
    main()
