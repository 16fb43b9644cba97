"""From a folder of 20 images a class to a deployed classifier that knows what it does not know: `--head probe`.

    python studies/probe.py

EfficientNet-Lite0 from its ImageNet weights, whose own head is not used; a linear head is fitted on its features of 20
images of each of the 20 classes of tiny-imagenet-20. As many others calibrate the threshold. Writes
studies/probe/tables.md. Images: $NESCIO_SHARED, or ../shared next to the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import nescio
from nescio.core.files import write_whole
from nescio.data.source import open_source

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import ROOT, data, machine, seconds, tests

MODEL, SET, PER_CLASS = "efficientnet-lite0", "tiny-imagenet-20", 20
DETECTORS = ("msp", "energy", "fmls", "knn", "mahalanobis")
OOD = tests("tiny-imagenet-scenes", "tiny-imagenet-objects", "textures")


def write_folders(root: Path) -> None:
    """The first images of each class as files in class folders: ``train``, then as many others in ``held``."""
    source = open_source(data(f"{SET}/train"))
    for c, name in enumerate(source.classes or ()):
        rows = np.flatnonzero(source.labels == c)
        for folder, some in (("train", rows[:PER_CLASS]), ("held", rows[PER_CLASS : 2 * PER_CLASS])):
            (root / folder / name).mkdir(parents=True)
            for i in some.tolist():
                (root / folder / name / f"{i:05}.jpg").write_bytes(source.read(i))


def fit(root: Path, detector: str) -> float:
    """Seconds of the command, from folders to a file."""
    sets = ["--train", "train", "--calibrate", "held", "--cache", "cache", "--detector", detector, "-o", "my.nescio"]
    command = [sys.executable, "-m", "nescio", "--quiet", "fit", "--model", MODEL, "--head", "probe", *sets]
    return seconds(lambda: subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL))


def report(root: Path) -> str:
    """The table in Markdown, and what it was measured on."""
    once, again = fit(root, "knn"), fit(root, "energy")
    verdicts = nescio.load(root / "my.nescio", device="cpu")
    session = nescio.Session(MODEL, head="probe", cache=root / "cache")
    results = nescio.bench(
        session, train=root / "train", id=data(f"{SET}/test"), ood=OOD, detectors=DETECTORS, resamples=0
    )
    first = results.rows[0]
    lines = [
        "# A classifier from 20 images a class",
        "",
        (
            "EfficientNet-Lite0's features (ImageNet weights, their head unused) and a fitted linear head: "
            f"{PER_CLASS} images of each of the 20 classes of {SET} for training, as many others for "
            f"calibration. It is right for {first.id_accuracy:.1%} of the {first.n_id:,} test images. The network was "
            "trained on ImageNet, whose classes these are, and the OOD sets' too: that says how few images suffice to "
            "read its features, and nothing of new classes. `knn` compares with 50 neighbours by default, more than "
            "the 20 images that a class has here. `python studies/probe.py`; FPR95 ↓ / AUROC ↑ in percent."
        ),
        "",
        f"| detector | {' | '.join(OOD)} |",
        f"| --- |{' ---: |' * len(OOD)}",
    ]
    for d in DETECTORS:
        cells = [f"{results.row(d, o).fpr95:.2%} / {results.row(d, o).auroc:.2%}".replace("%", "") for o in OOD]
        lines.append(f"| `{d}` | {' | '.join(cells)} |")
    promise = verdicts.calibration.promise()
    lines += [
        "",
        (
            f"From the two folders to the file, command and all: {once:.0f} s with `knn`; {again:.0f} s more for a "
            f"file with `energy`, whose features are known by then ({machine()}, one decoding process per core; "
            f"nothing else ran). What the file promises: {promise}."
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write it down."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NESCIO_CACHE"] = folder + "/cache"
        write_folders(Path(folder))
        text = report(Path(folder))
    out = ROOT / "studies/probe/tables.md"
    out.parent.mkdir(exist_ok=True)
    write_whole(out, text)
    print(text)


if __name__ == "__main__":
    main()
