"""What a detector adds to a classifier's time in ONNX Runtime: both as graphs, with the same threads.

The baseline is the network alone, exported by PyTorch as a user would. Its logits cost the same whatever its weights
are, so these are random, and so are the features that the detector is fitted on. The two run in turn, and what counts
is the ratio of their times in each round: other programs slow both.

    python benchmarks/onnx_latency.py [--threads N] [--seconds S] [--detector SPEC]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torchvision.models import resnet18

from nescio import Classifier, Deployed, Detector, Features, TrainingData, Transform, export
from nescio.conformal import Calibration

SIDE, CLASSES, WIDTH = 224, 1000, 512
BATCHES = (1, 32)


def deployed(spec: str) -> Deployed:
    """ResNet-18 with a detector for it, calibrated on 5,000 scores."""
    torch.manual_seed(0)
    classifier = Classifier(resnet18(), Transform(SIDE, 256))
    labels = torch.arange(2 * CLASSES) % CLASSES
    h = torch.randn(len(labels), WIDTH).relu()
    f = Features(h, classifier.head, classifier.head.linear(h).argmax(dim=1).detach(), labels)
    detector = Detector.parse(spec).fit(TrainingData(classifier.head, lambda: iter([f])))
    return Deployed(classifier, detector, Calibration.fit(np.random.default_rng(0).normal(size=5000)))


def sessions(spec: str, threads: int) -> tuple[Any, Any]:
    """The network alone, and the network with the detector."""
    ours = deployed(spec)
    model = resnet18().eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or each would slow the other
    with tempfile.TemporaryDirectory() as folder:
        bare, judged = Path(folder, "bare.onnx"), Path(folder, "judged.onnx")
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            model,
            (torch.randn(2, 3, SIDE, SIDE),),
            bare,
            input_names=["image"],
            dynamic_shapes=({0: batch},),
            external_data=False,
            verbose=False,
        )
        export(ours, judged)
        print(f"{bare.stat().st_size / 1e6:.1f} MB alone, {judged.stat().st_size / 1e6:.1f} MB with {ours.detector}")
        first, second = (onnxruntime.InferenceSession(path, options) for path in (bare, judged))
    return first, second


def timed(session: Any, images: npt.NDArray[np.float32]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    session.run(None, {"image": images})
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each batch size")
    parser.add_argument("--detector", default="fm:p=0.3+react:clip=0.8+ls+energy")
    arguments = parser.parse_args()
    bare, judged = sessions(arguments.detector, arguments.threads)
    for size in BATCHES:
        images = np.random.default_rng(0).normal(size=(size, 3, SIDE, SIDE)).astype(np.float32)
        for session in (bare, judged):
            timed(session, images)
        rounds, end = [], time.perf_counter() + arguments.seconds
        while time.perf_counter() < end or len(rounds) < 5:
            order = (bare, judged) if len(rounds) % 2 else (judged, bare)
            taken = {session: timed(session, images) for session in order}
            rounds.append((taken[bare], taken[judged]))
        alone, both = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        quickest = min(b for _, b in rounds) / min(a for a, _ in rounds)
        print(
            f"batch {size:2}: {alone * 1e3:7.2f} ms alone, {both * 1e3:7.2f} ms with the detector; "
            f"ratio {ratio:.3f} in the median of {len(rounds)} rounds, {quickest:.3f} of the quickest"
        )


if __name__ == "__main__":
    main()
