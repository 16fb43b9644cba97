"""EfficientNet-Lite0's ImageNet weights on a small sample of ImageNet: what prototypes from one image a class cost.

ID are 911 ImageNet-labelled photos, the training set is one image of each class, OOD are textures and scenes (a smoke
test, not a benchmark: some scenes are ImageNet classes). Takes every detector that needs no more, and logit smoothing
with prototypes from those images and from the head's own rows. Writes studies/imagenet_sample/tables.md.

    python studies/imagenet_sample.py
"""

from __future__ import annotations

from cifar10 import table

from _common import data, parser, stamp, store, tests
from nescio import bench, load_classifier

SETS = ("textures", "scenes")
DETECTORS = (
    "msp",
    "maxlogit",
    "energy",
    "entropy",
    "gen",
    "gradnorm",
    "lts+energy",
    "ashs+energy",
    "scale+energy",
    "react:q=0.98+energy",
    "dice:p=0.7+energy",
    "fm:p=0.3+energy",
    "fm:p=0.3+react:q=0.98+energy",
    "ls+energy",
    "ls:prototypes=head+energy",
    "fm:p=0.3+react:q=0.98+ls+energy",
    "fm:p=0.3+react:q=0.98+ls:prototypes=head+energy",
    "fm:p=0.3+react:q=0.98+ls+msp",
    "fm:p=0.3+react:q=0.98+ls:prototypes=head+msp",
    "cosine",
    "cosine:prototypes=head",
    "line:p_a=0.1,p_w=0.1,clip=0.8+energy",
    "knn:k=1",
    "mahalanobis",
    "rmd",
    "vim",
    "nnguide",
    "fdbd",
    "she",
    "gmm",
    "pnml",
    "klm",
    "openmax",
    "rankfeat+energy",
    "multimahalanobis",
    "gram",
)


def main() -> None:
    """Write the table as Markdown."""
    parser(__doc__).parse_args()
    results = bench(
        load_classifier("efficientnet-lite0"),
        train=data("imagenet-sample/train"),
        id=data("imagenet-sample/test"),
        ood=tests(*SETS),
        detectors=DETECTORS,
    )
    head = f"FPR95 / AUROC in percent; the network is right for {results.rows[0].id_accuracy:.2%} of the ID images."
    store("imagenet_sample/tables.md", [head, stamp("studies/imagenet_sample.py"), "", *table(results)])


if __name__ == "__main__":
    main()
