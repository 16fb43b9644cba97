"""Throughput of ``nescio score`` against a plain loop, and a job with corrupt images.

The plain loop decodes, transforms and runs the bare network as a user would write it: a ``DataLoader`` over the same
images with the same workers and batch size, in ``inference_mode``; it judges nothing and writes nothing. Ours does all
of that, and writes the parts. The two take turns, so that a busy moment hits both alike. With ``--ray`` two workers of
a Ray cluster run against two plain processes, each on one core, that share the images.

    python benchmarks/scoring.py [--shared DIR] [--images N] [--rounds N] [--workers N] [--ray]
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from nescio import fit, load_classifier, open_source, score_images
from nescio.data.decode import Raw, decode
from nescio.data.source import Rows, Source
from nescio.deploy import Deployed
from nescio.models.weights import read_weights
from nescio.models.zoo.cifar import densenet_bc_100_12
from nescio.run.session import Session
from one_pass import TRANSFORM, Images

BATCH = 32
CORRUPT = {"empty": lambda _: b"", "cut": lambda data: data[: len(data) // 3], "text": lambda _: b"no image at all"}


def bare(weights: Path) -> nn.Module:
    """The network as its user has it."""
    network = densenet_bc_100_12()
    network.load_state_dict(read_weights(weights))
    return network.eval()


def plain_loop(network: nn.Module, source: Source, workers: int) -> float:
    """Seconds of the plain loop."""
    start = time.perf_counter()
    with torch.inference_mode():
        for x in DataLoader(Images(source), batch_size=BATCH, num_workers=workers):
            network(x)
    return time.perf_counter() - start


def plain_process(weights: Path, spec: str, half: int, ready: object, go: object) -> None:
    """One of two processes on one core each, over every other image; it starts when both are ready."""
    torch.set_num_threads(1)
    network, source = bare(weights), open_source(spec)
    mine = Rows(source, range(half, len(source), 2))
    network(TRANSFORM(decode(mine.read(0)))[None])
    ready.wait()
    go.wait()
    plain_loop(network, mine, 0)


def two_processes(weights: Path, spec: str) -> float:
    """Seconds of two plain processes, from the moment that both have their network."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Barrier(3), context.Event()
    processes = [context.Process(target=plain_process, args=(weights, spec, half, ready, go)) for half in range(2)]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    return time.perf_counter() - start


def against_plain(deployed: Deployed, weights: Path, spec: str, rounds: int, workers: int) -> None:
    """Print the ratio of the local engine."""
    network, source, ratios = bare(weights), open_source(spec), []
    for _ in range(rounds):
        plain = plain_loop(network, source, workers)
        with tempfile.TemporaryDirectory() as out:
            ours = score_images(deployed, spec, Path(out) / "s", workers=workers).seconds
        ratios.append(plain / ours)
        n = len(source)
        print(f"  plain loop {n / plain:6.0f} images/s   nescio score {n / ours:6.0f} images/s   {ratios[-1]:.2f} ×")
    print(f"throughput: {statistics.median(ratios):.2f} × the plain loop (at least 0.95 wanted)")


class Watched(Rows):
    """A source that leaves the time of each process's first image in a folder."""

    def __init__(self, base: Source, folder: Path) -> None:
        super().__init__(base, range(len(base)))
        self.folder = folder

    def read(self, i: int) -> Raw:
        """As the base reads it."""
        mark = self.folder / str(os.getpid())
        if not mark.exists():
            mark.write_text(str(time.time()))
        return super().read(i)


def on_ray(deployed: Deployed, weights: Path, spec: str, rounds: int) -> None:
    """Print the ratio of two Ray workers: from the first image that either reads, since a pool starts but once."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    n, ratios = len(open_source(spec)), []
    for _ in range(rounds):
        plain = two_processes(weights, spec)
        with tempfile.TemporaryDirectory() as folder:
            images, begin = Watched(open_source(spec), Path(folder)), time.time()
            score_images(deployed, images, Path(folder) / "s", part_size=-(-n // 8), batch_size=BATCH, engine="ray")
            firsts = [float(p.read_text()) for p in Path(folder).iterdir() if p.is_file()]
            ours, before = time.time() - min(firsts), min(firsts) - begin
        ratios.append(plain / ours)
        print(
            f"  two processes {n / plain:6.0f} images/s   {len(firsts)} Ray workers {n / ours:6.0f} images/s   "
            f"{ratios[-1]:.2f} × (after {before:.1f} s for the pool)"
        )
    print(f"throughput: {statistics.median(ratios):.2f} × two plain processes (at least 0.85 wanted)")


def with_corrupt_images(deployed: Deployed, spec: str, count: int, workers: int) -> None:
    """Score ``count`` image files of which every hundredth is corrupt, and check what comes out."""
    source = open_source(spec)
    with tempfile.TemporaryDirectory() as folder:
        root, kinds = Path(folder) / "images", list(CORRUPT.values())
        root.mkdir()
        bad = set()
        for i in range(count):
            data, path = source.read(i % len(source)), root / f"{i:06}.png"
            if i % 100 == 50:
                data = kinds[i // 100 % len(kinds)](data)
                bad.add(str(path))
            path.write_bytes(data)
        done = score_images(deployed, root, Path(folder) / "s", workers=workers)
        with (Path(folder) / "s/_errors.csv").open(newline="") as file:
            listed = {row["path"]: row["error"] for row in csv.DictReader(file)}
        scored = done.tally.accepted + done.tally.rejected
        right = set(listed) == bad and all(listed.values()) and scored == count - len(bad)
        print(
            f"{count:,} images, {len(bad):,} corrupt: {scored:,} scored, {len(listed):,} listed with a reason, "
            f"{count / done.seconds:.0f} images/s: {'as it should be' if right else 'WRONG'}"
        )


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("NESCIO_SHARED", "../shared")))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--corrupt", type=int, default=20_000, help="images of the job with corrupt ones; 0 for none")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    weights = options.shared / "models/densenet100_cifar10.safetensors"
    test = f"{options.shared}/data/cifar10/test.parquet"
    spec = f"{test}[:{options.images}]"
    classifier = load_classifier("densenet-bc-100-12", weights=weights)
    deployed = fit(Session(classifier, workers=options.workers), "react:clip=1.6+energy", calibrate=f"{test}[9500:]")
    print(f"{options.images:,} images, {options.workers} workers, {torch.get_num_threads()} threads")
    if options.rounds:
        against_plain(deployed, weights, spec, options.rounds, options.workers)
    if options.ray:
        on_ray(deployed, weights, spec, options.rounds)
    if options.corrupt:
        with_corrupt_images(deployed, test, options.corrupt, options.workers)


if __name__ == "__main__":
    main()
