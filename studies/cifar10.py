"""CIFAR-10 and a DenseNet-BC-100-12: every detector of the reference table, checked against it.

The reference numbers (``cifar10_reference.csv``) come from an independent float64 implementation on the same images and
weights. With ``--odin`` it prints rows of ODIN instead, on 2,000 ID images, textures and scenes: ODIN differentiates
through the network for every image it scores.

    python studies/cifar10.py [--shared DIR] [--odin]
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
from pathlib import Path

from nescio import bench, load_classifier

SETS = ("textures", "mnist", "scenes")
MORE = (
    "react:q=0.9+energy",
    "react:q=0.98+energy",
    "dice+energy",
    "react:clip=1.6+dice+energy",
    "ashp+energy",
    "ashb+energy",
    "ashs+energy",
    "scale+energy",
    "lts+energy",
    "vra+energy",
    "gen",
    "klm",
    "gradnorm",
    "mahalanobis",
    "rmd",
    "knn",
    "vim",
    "residual",
    "she",
    "nnguide",
    "fdbd",
    "nci",
)
ODIN = (
    "msp",
    "odin:eps=0+msp",
    "odin:eps=0.0014+msp",
    "odin:eps=0.0014,per_std=true+msp",
    "fm:p=0.6+react:clip=1.6+ls+msp",
    "odin:eps=0.0014+fm:p=0.6+react:clip=1.6+ls+msp",
)


def main() -> None:
    """Print the table as Markdown, and the largest difference from the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("NESCIO_SHARED", "../shared")))
    parser.add_argument("--odin", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = options.shared / "data"
    with (Path(__file__).parent / "cifar10_reference.csv").open(newline="") as file:
        reference = {row.pop("detector"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}
    results = bench(
        load_classifier("densenet-bc-100-12", weights=options.shared / "models/densenet100_cifar10.safetensors"),
        train=data / "cifar10/train.parquet",
        id=f"{data}/cifar10/test.parquet{'[:2000]' if options.odin else ''}",
        ood={name: data / name / "test.parquet" for name in SETS if not (options.odin and name == "mnist")},
        detectors=ODIN if options.odin else [*reference, *MORE],
    )
    sets = [s.name for s in results.ood_sets]
    print(f"ID accuracy {results.rows[0].id_accuracy:.2%}. FPR95 / AUROC in %.\n")
    print("| detector | " + " | ".join(sets) + " |\n|---|" + "---|" * len(sets))
    worst = {"fpr95": 0.0, "auroc": 0.0}
    for detector in results.detectors:
        cells = []
        for ood in sets:
            row = results.row(detector, ood)
            cells.append(f"{row.fpr95 * 100:.2f} / {row.auroc * 100:.2f}")
            if detector in reference and not options.odin:
                off = {m: abs(getattr(row, m) * 100 - reference[detector][f"{ood}_{m}"]) for m in worst}
                worst = {m: max(worst[m], off[m]) for m in worst}
        print(f"| `{detector}` | " + " | ".join(cells) + " |")
    if options.odin:
        return
    print(f"\nLargest difference from the reference: FPR95 {worst['fpr95']:.3f}, AUROC {worst['auroc']:.3f} points.")
    if worst["fpr95"] > 0.15 or worst["auroc"] > 0.05:
        raise SystemExit("beyond the tolerance of 0.15 and 0.05 points")


if __name__ == "__main__":
    main()
