"""What ``nescio bench`` takes beyond decoding its images and running the network, in fresh processes.

22,100 images of 32 and more pixels, four detectors, no report: from nothing (cold), then with the banks there (warm).
Decoding and the network alone are timed in a process of their own, in turns with the cold runs: the same workers, batch
size and engine, no bank, from the first batch on.

    python benchmarks/overheads.py [--rounds N] [--images N] [--batch-size N] [--workers N] [--engine NAME]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from _common import DENSENET, WEIGHTS, data, densenet, machine, parser, tests

DETECTORS = ("msp", "energy", "fmls", "knn")
_PART = re.compile(r"(\w+) ([\d.,]+)(?:, |$)")


def sets(images: int) -> tuple[str, str, dict[str, str]]:
    """Training, ID and OOD images; ``images`` of the first two each."""
    return f"{data('cifar10/train')}[:{images}]", f"{data('cifar10/test')}[:{images}]", tests("textures", "scenes")


def bench(options: argparse.Namespace, cache: str) -> tuple[float, dict[str, float]]:
    """Seconds of one ``nescio bench`` in a process of its own, and what its last line says of them."""
    train, id_set, ood = sets(options.images)
    command = [sys.executable, "-m", "nescio", "bench", "--model", DENSENET, "--weights", str(WEIGHTS)]
    command += ["--train", train, "--id", id_set, "--cache", cache, *how(options)]
    command += [word for name, path in ood.items() for word in ("--ood", f"{name}={path}")]
    command += [word for detector in DETECTORS for word in ("--detector", detector)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - start
    said = done.stderr.strip().splitlines()[-1]
    parts = {name: float(seconds.replace(",", "")) for name, seconds in _PART.findall(said.partition(" s: ")[2])}
    return wall, {"interpreter": wall - sum(parts.values())} | parts


def how(options: argparse.Namespace) -> list[str]:
    """The options that both processes are run with."""
    return [
        *("--batch-size", str(options.batch_size)),
        *("--workers", str(options.workers)),
        *("--engine", options.engine),
    ]


def alone(options: argparse.Namespace) -> float:
    """Seconds of decoding and the network alone, from the first batch on."""
    import torch

    from nescio import Session, open_source
    from nescio.data.loader import read_batches
    from nescio.run.heap import kept_heap

    session = Session(densenet(), batch_size=options.batch_size, engine=options.engine)
    network, transform = session.network(), session.classifier.transform  # prepared before the clock starts
    train, id_set, ood = sets(options.images)
    sources = [open_source(name) for name in (train, id_set, *ood.values())]
    start = time.perf_counter()
    with torch.no_grad(), kept_heap():
        for source in sources:
            for batch in read_batches(source, transform, 0, options.batch_size, options.workers):
                network(transform.normalise(batch.images))
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--images", type=int, default=10_000, help="of the training and of the ID set")
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--workers", type=int, default=os.cpu_count())
    options.add_argument("--engine", default="torch", help="for both; not auto, whose trial is no part of either")
    options.add_argument("--alone", action="store_true", help="decode and run the network, print the seconds")
    chosen = options.parse_args()
    if chosen.alone:
        print(alone(chosen))
        return
    print(f"{', '.join(DETECTORS)}; batch size {chosen.batch_size}, {chosen.workers} workers; {machine()}")
    same = [sys.executable, __file__, "--alone", "--images", str(chosen.images), *how(chosen)]
    runs: dict[str, list[tuple[float, dict[str, float]]]] = {"cold": [], "warm": []}
    base = []
    for _ in range(chosen.rounds):
        base.append(float(subprocess.run(same, check=True, capture_output=True, text=True).stdout.split()[-1]))
        with tempfile.TemporaryDirectory() as cache:
            for values in runs.values():
                values.append(bench(chosen, cache))
    least = statistics.median(base)
    print(f"decode + network alone: {least:.1f} s")
    for name, values in runs.items():
        wall = statistics.median(wall for wall, _ in values)
        above = wall - (least if name == "cold" else 0)
        print(f"{name}: {wall:.1f} s, {above:.1f} s above decode + network; of the last run:")
        print("  " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in values[-1][1].items()))


if __name__ == "__main__":
    main()
