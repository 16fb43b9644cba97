"""Throughput of ``nescio score`` against a plain loop, by several engines, and a job with corrupt images.

The plain loop decodes, transforms and runs the bare network as a user would write it: a ``DataLoader`` over the same
images with the same workers and batch size, in ``inference_mode``; it judges nothing and writes nothing. Ours does all
of that, and writes the parts, with files of several engines (``--way openvino,bf16``). All take turns, so that a busy
moment hits all alike. With ``--ray`` two workers of a Ray cluster run against two plain processes, each on one core,
that share the images.

    python benchmarks/scoring.py [--images N] [--rounds N] [--workers N] [--way ENGINE,PRECISION ...] [--ray]
"""

from __future__ import annotations

import csv
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from _common import bare_densenet, data, densenet, in_turns, machine, parser, ratio, way_option, ways
from nescio import Session, fit, open_source, score_images
from nescio.data.decode import Raw, decode
from nescio.data.source import Rows, Source
from nescio.deploy import Deployed
from one_pass import TRANSFORM, plain_loop

BATCH = 32
CORRUPT = {"empty": lambda _: b"", "cut": lambda data: data[: len(data) // 3], "text": lambda _: b"no image at all"}


def plain_process(spec: str, half: int, ready: object, go: object) -> None:
    """One of two processes on one core each, over every other image; it starts when both are ready."""
    torch.set_num_threads(1)
    network, source = bare_densenet(), open_source(spec)
    mine = Rows(source, range(half, len(source), 2))
    network(TRANSFORM(decode(mine.read(0)))[None])
    ready.wait()
    go.wait()
    plain_loop(network, [mine], BATCH, 0)


def two_processes(spec: str) -> float:
    """Seconds of two plain processes, from the moment that both have their network."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Barrier(3), context.Event()
    processes = [context.Process(target=plain_process, args=(spec, half, ready, go)) for half in range(2)]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    return time.perf_counter() - start


def against_plain(files: Mapping[str, Deployed], spec: str, rounds: int, workers: int) -> None:
    """Print how fast files with several engines are, against the plain loop and against the first of them."""
    network, source, plain = bare_densenet(), open_source(spec), "plain loop"

    def score(deployed: Deployed) -> object:
        with tempfile.TemporaryDirectory() as out:
            return score_images(deployed, spec, Path(out) / "s", workers=workers)

    runs: dict[str, Callable[[], object]] = {plain: lambda: plain_loop(network, [source], BATCH, workers)}
    runs |= {name: functools.partial(score, deployed) for name, deployed in files.items()}
    times, (first, *_) = in_turns(runs, rounds), files
    for name, values in times.items():
        rates = ", ".join(f"{len(source) / s:.0f}" for s in values)
        said = f"{1 / ratio(times, name, plain):.2f} × the plain loop, {1 / ratio(times, name, first):.2f} × {first}"
        print(f"  {name:<24} {rates} images/s: {said}", flush=True)


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


def on_ray(deployed: Deployed, spec: str, rounds: int) -> None:
    """Print the ratio of two Ray workers: from the first image that either reads, since a pool starts but once."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    n, ratios = len(open_source(spec)), []
    for _ in range(rounds):
        plain = two_processes(spec)
        with tempfile.TemporaryDirectory() as folder:
            images, begin = Watched(open_source(spec), Path(folder)), time.time()
            score_images(deployed, images, Path(folder) / "s", part_size=-(-n // 8), batch_size=BATCH, on="ray")
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
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--workers", type=int, default=2)
    way_option(options, "torch,float32", "openvino,float32", "openvino,bf16")
    options.add_argument("--corrupt", type=int, default=20_000, help="images of the job with corrupt ones; 0 for none")
    options.add_argument("--ray", action="store_true")
    chosen = options.parse_args()
    test = data("cifar10/test")
    spec = f"{test}[:{chosen.images}]"
    classifier = densenet(None)
    deployed = fit(
        Session(classifier, workers=chosen.workers, engine="torch"), "react:clip=1.6+energy", calibrate=f"{test}[9500:]"
    )
    print(f"{chosen.images:,} images, {chosen.workers} workers, {machine()}")
    if chosen.rounds:
        files = {
            f"{engine}, {precision}": fit(
                Session(classifier, workers=chosen.workers, engine=engine, precision=precision),
                "react:clip=1.6+energy",
                calibrate=f"{test}[9500:]",
            )
            for engine, precision in ways(chosen)
        }
        against_plain(files, spec, chosen.rounds, chosen.workers)
    if chosen.ray:
        on_ray(deployed, spec, chosen.rounds)
    if chosen.corrupt:
        with_corrupt_images(deployed, test, chosen.corrupt, chosen.workers)


if __name__ == "__main__":
    main()
