"""What a detector adds to a classifier's time in ONNX Runtime: both as graphs, with the same threads.

The baseline is the network alone, exported by PyTorch as a user would. Its logits cost the same whatever its weights
are, so these are random, and so are the features that the detector is fitted on. The two run in turn, and what counts
is the ratio of their times in each round: other programs slow both.

    python benchmarks/onnx_latency.py [--threads N] [--rounds N] [--detector SPEC] [--precision fp16|int8]

With a precision the baseline is the same detector in float32. Images are noise: their values change no time.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torchvision.models import resnet18

from _common import in_turns, parser, ratio
from nescio import Classifier, Deployed, Detector, Features, FeatureSet, Transform, export
from nescio.calibration.conformal import Calibration
from nescio.deploy.lower import PRECISIONS

SIDE, CLASSES, WIDTH = 224, 1000, 512
BATCHES = (1, 32)
NOISE = f"noise:gaussian:images=100,size={SIDE}"


def deployed(spec: str) -> Deployed:
    """ResNet-18 with a detector for it, calibrated on 5,000 scores."""
    torch.manual_seed(0)
    classifier = Classifier(resnet18(), Transform(SIDE, 256))
    labels = torch.arange(2 * CLASSES) % CLASSES
    h = torch.randn(len(labels), WIDTH).relu()
    f = Features(h, classifier.head, classifier.head.linear(h).argmax(dim=1).detach(), labels)
    detector = Detector(spec).fit(FeatureSet.stream(lambda: iter([f]), classifier.head))
    return Deployed(classifier, detector, Calibration.fit(np.random.default_rng(0).normal(size=5000)))


def sessions(spec: str, threads: int, precision: str) -> tuple[Any, Any]:
    """The network alone (or, for a lowered one, float32 with the detector), and the network with the detector."""
    ours = deployed(spec)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or each would slow the other
    with tempfile.TemporaryDirectory() as folder:
        bare, judged = Path(folder, "bare.onnx"), Path(folder, "judged.onnx")
        if precision == "fp32":
            alone(bare)
            export(ours, judged)
        else:
            export(ours, bare)
            export(ours, judged, precision=precision, calibrate=NOISE, ood={"noise": NOISE}, workers=0, progress=False)
        sizes = [f"{file.stat().st_size / 1e6:.1f} MB" for file in (bare, judged)]
        print(f"{sizes[0]} {baseline(precision)}, {sizes[1]} with {ours.detector} in {precision}")
        first, second = (onnxruntime.InferenceSession(path, options) for path in (bare, judged))
    return first, second


def alone(file: Path) -> None:
    """The network without a detector, as a user would export it."""
    torch.onnx.export(
        resnet18().eval(),
        (torch.randn(2, 3, SIDE, SIDE),),
        file,
        input_names=["image"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )


def baseline(precision: str) -> str:
    """What the time is compared with."""
    return "alone" if precision == "fp32" else "in fp32"


def once(session: Any, images: npt.NDArray[np.float32]) -> Callable[[], object]:
    """One run."""
    return lambda: session.run(None, {"image": images})


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=200, help="for each batch size")
    options.add_argument("--detector", default="fm:p=0.3+react:clip=0.8+ls+energy")
    options.add_argument("--precision", default="fp32", choices=PRECISIONS)
    arguments = options.parse_args()
    bare, judged = sessions(arguments.detector, arguments.threads, arguments.precision)
    for size in BATCHES:
        images = np.random.default_rng(0).normal(size=(size, 3, SIDE, SIDE)).astype(np.float32)
        runs = {"bare": once(bare, images), "judged": once(judged, images)}
        times = in_turns(runs, max(5, arguments.rounds // size))
        first, both = (statistics.median(t) for t in times.values())
        quickest = min(times["judged"]) / min(times["bare"])
        print(
            f"batch {size:2}: {first * 1e3:7.2f} ms {baseline(arguments.precision)}, {both * 1e3:7.2f} ms with the "
            f"detector in {arguments.precision}; "
            f"ratio {ratio(times, 'judged', 'bare'):.3f} in the median of {len(times['bare'])} rounds, "
            f"{quickest:.3f} of the quickest"
        )


if __name__ == "__main__":
    main()
