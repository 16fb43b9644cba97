"""What a network in float16 or int8 costs in AUROC and saves in bytes and time, in ONNX Runtime on one thread.

    python studies/precision.py [--images N]

Two networks, three detectors, ID images against textures and scenes. The three graphs of a network see each batch in
turn, and what counts is the ratio of their times: other programs slow all of them. Writes studies/precision/tables.md:
AUROC in float32, points lost in the others.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import nescio
from nescio.data.loader import read_batches
from nescio.data.source import draw, open_source
from nescio.deploy.graph import END, Judge
from nescio.deploy.lower import FP32, PRECISIONS, cut_network, lowered
from nescio.deploy.onnx import _graph
from nescio.deploy.recalibration import RANGES
from nescio.evaluation.metrics import auroc

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import DENSENET, WEIGHTS, data, parser, seconds, stamp, store

DETECTORS = ("fmls", "msp", "knn")
NETWORKS = {
    "DenseNet, CIFAR-10": (DENSENET, WEIGHTS, "cifar10", "[:5000]"),
    "EfficientNet-Lite0, ImageNet": ("efficientnet-lite0", None, "imagenet-sample", ""),
}


def pixels(classifier: nescio.Classifier, source: Any, size: int) -> list[np.ndarray]:
    """Normalised batches."""
    batches = read_batches(source, classifier.transform, 0, size, 0)
    return [classifier.transform.normalise(batch.images).numpy() for batch in batches]


def session(graph: Any) -> Any:
    """On one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.SerializeToString(), options)


def points(share: float) -> float:
    """In percent, without a negative zero."""
    return round(100 * share, 2) + 0.0


def study(name: str, images: int) -> Iterator[str]:
    """The rows of a network."""
    model, weights, folder, some = NETWORKS[name]
    classifier = nescio.load_classifier(model, weights=weights, device="cpu")
    held, train = (data(f"{folder}/{split}") for split in ("test", "train"))
    ids = f"{held}[{RANGES}:{RANGES + images}]"
    fitted = [nescio.fit(classifier, d, calibrate=ids, train=train + some) for d in DETECTORS]
    part = cut_network(_graph(Judge(fitted[0], None), marked=True), "image", END)
    ranges = pixels(classifier, open_source(f"{held}[:{RANGES}]"), 32)
    graphs = {p: part if p == FP32 else lowered(part, p, ranges) for p in PRECISIONS}
    sessions = {p: session(graph) for p, graph in graphs.items()}
    sets = {"id": open_source(ids)}
    sets |= {n: draw(open_source(data(f"{n}/test")), images) for n in ("textures", "scenes")}
    h, times = defaultdict(list), defaultdict(list)
    for of, source in sets.items():
        for batch in pixels(classifier, source, 32):
            for p, run in sessions.items():
                into = h[p, of]
                times[p].append(seconds(lambda into=into, run=run, x=batch: into.extend(run.run([END], {"image": x}))))
    head, scores, labels = classifier.head, {}, {}
    for (p, of), parts in h.items():
        features = torch.from_numpy(np.concatenate(parts))
        labels[p, of] = head.linear(features).argmax(dim=1)
        for d in fitted:
            with torch.no_grad():
                scored = d.detector(nescio.Features(features, head, labels[p, of]))
            scores[p, of, repr(d.detector)] = scored.numpy()
    for p in PRECISIONS:
        area = {
            (d, of): [auroc(scores[q, "id", repr(d.detector)], scores[q, of, repr(d.detector)]) for q in (FP32, p)]
            for d in fitted
            for of in ("textures", "scenes")
        }
        cells = [
            " / ".join(f"{points(a[1] if p == FP32 else a[0] - a[1]):.2f}" for (of, _), a in area.items() if of is d)
            for d in fitted
        ]
        alike = (labels[p, "id"] == labels[FP32, "id"]).float().mean().item()
        ratio = np.median(np.divide(times[p], times[FP32]))
        size = graphs[p].ByteSize() / 1e6
        yield f"| {name} | {p} | {size:.1f} MB | {ratio:.2f} × | {alike:.1%} | {' | '.join(cells)} |"


def main() -> None:
    """Write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=800, help="of each set, where it has as many")
    options = arguments.parse_args()
    lines = [
        f"{options.images} ID and OOD images a set. AUROC on textures / scenes in percent; for fp16, int8 points lost.",
        stamp("studies/precision.py"),
        "",
        f"| network | precision | its file | time | same label | {' | '.join(f'`{d}`' for d in DETECTORS)} |",
        f"| --- | --- | ---: | ---: | ---: |{' ---: |' * len(DETECTORS)}",
    ]
    store("precision/tables.md", lines + [row for name in NETWORKS for row in study(name, options.images)])


if __name__ == "__main__":
    main()
