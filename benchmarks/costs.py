"""What each stage costs, for ``nescio methods``: rewrites ``src/nescio/methods/costs.csv``.

On the CIFAR-10 DenseNet's features (50,000 training, 10,000 test, 342 wide; the banks are made first where they are
missing): seconds to fit, microseconds to score an image, the least of three, of the detector with this stage alone, and
energy (or MSP) behind it where it is no score. For probes and passes: time of the network per image, in plain passes,
on 64 images.
Stages that read a head which a network must be trained with have no costs.

    python benchmarks/costs.py
"""

from __future__ import annotations

import csv

import torch
from torch import nn

from _common import ROOT, data, densenet, parser, seconds
from nescio import Detector, FeatureSet, Session, open_source
from nescio.core.detector import score_all
from nescio.core.plugins import load_methods
from nescio.core.stage import REGISTRY, InputStage
from nescio.methods.catalogue import COSTS
from nescio.models import Classifier
from nescio.run.passes import PLAIN, Pass, pass_of

SPECS = {name: f"{name}(energy,knn)" for name in ("mean", "max", "fisher")} | {"mcdropout": "mcdropout+entropy"}
ENDS = {"score": "", "shape": "+energy", "modulate": "+energy", "input": "+msp"}


def main() -> None:
    """Measure and write."""
    parser(__doc__).parse_args()
    classifier = densenet(None)
    probes = {n: p for d in (Detector("gram"), Detector("multimahalanobis")) for n, p in d.needs.probes.items()}
    train = Session(classifier).bank(open_source(data("cifar10/train")), probes=probes, title="train")
    probes |= Detector("rankfeat+energy").needs.probes
    test = Session(classifier).bank(open_source(data("cifar10/test")), probes=probes, title="test")
    features = FeatureSet.stream(train.chunks, train.head)

    images = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    plain = network_seconds(classifier, PLAIN, Detector("energy"), images)
    rows = []
    load_methods()
    for name, stage in sorted(REGISTRY.items()):
        detector = Detector(SPECS.get(name, name + ENDS[stage.place]))
        if detector.needs.heads:  # this network has none
            continue
        row = {"stage": name, "fit": "", "score": "", "network": ""}
        if issubclass(stage, InputStage):
            detector.fit(features)
            detector.input_stage.choose(classifier, detector, [images[:2]])
            # this network has no dropout of its own to be averaged over
            network = classifier.with_body(with_dropout) if name == "mcdropout" else classifier
            row["network"] = f"{network_seconds(network, pass_of(detector), detector, images) / plain:.1f}"
        else:
            tries = [detector, *(Detector(str(detector)) for _ in range(2))]
            fit = min(each.fit(features).fit_seconds for each in tries)
            score = min(s for each in tries for s in score_all([each], test.chunks())[1])
            row |= {"fit": f"{fit:.2f}" if detector.needs.train else "", "score": f"{score / len(test) * 1e6:.1f}"}
            if not stage.takes_members and detector.needs.probes:
                row["network"] = f"{network_seconds(classifier, PLAIN, detector, images) / plain:.1f}"
        rows.append(row)
        print(row, flush=True)
    path = ROOT / "src/nescio/methods" / COSTS
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def with_dropout(body: nn.Module) -> nn.Module:
    """The network behind a dropout on the image."""
    return nn.Sequential(nn.Dropout(0.1), body)


@torch.no_grad()
def network_seconds(classifier: Classifier, network_pass: Pass, detector: Detector, images: torch.Tensor) -> float:
    """The shortest of five passes over the images, 32 at a time."""
    network = classifier.with_body(network_pass.prepare).optimised().probed(detector.needs.probes)
    return min(seconds(lambda: [network_pass.run(network, x) for x in images.split(32)]) for _ in range(5))


if __name__ == "__main__":
    main()
