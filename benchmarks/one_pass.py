"""Extraction and every detector against a plain loop over the same images, in one run.

The baseline decodes, transforms and runs the images as a user would write it: a ``DataLoader`` over the same parquet
files with torchvision transforms, the same workers and batch size, the bare network in ``inference_mode``. Ours does
that too, and writes the bank, fits and scores all detectors but odin, and computes every metric.

    python benchmarks/one_pass.py [--shared DIR] [--batch-size N] [--workers N] [--full]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from nescio import bench, load_classifier, open_source
from nescio.data.decode import decode
from nescio.data.source import Source
from nescio.models.weights import read_weights
from nescio.models.zoo.cifar import densenet_bc_100_12
from nescio.run.session import Session

DETECTORS = (
    "msp",
    "maxlogit",
    "energy",
    "entropy",
    "react:clip=1.6+energy",
    "fm:p=0.6+energy",
    "fm:p=0.6+react:clip=1.6+energy",
    "ls+energy",
    "temperature:T=2+msp",
    "react:q=0.98+ls+energy",
    "fm:p=0.6+react:clip=1.6+ls+energy",
    "cosine",
)
TRANSFORM = v2.Compose(
    [
        v2.Resize(32),
        v2.CenterCrop(32),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ]
)


class Images(Dataset):
    """The plain data set: decode, transform, return."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> torch.Tensor:
        return TRANSFORM(decode(self.source.read(i)))


def plain_loop(network: torch.nn.Module, sources: list[Source], batch_size: int, workers: int) -> float:
    """Seconds of the plain loop over all sources."""
    start = time.perf_counter()
    with torch.inference_mode():
        for source in sources:
            for x in DataLoader(Images(source), batch_size=batch_size, num_workers=workers):
                network(x)
    return time.perf_counter() - start


def gains(batch_size: int, weights: Path) -> None:
    """Images per second of the bare network, step by step to what extraction runs."""
    classifier = load_classifier("densenet-bc-100-12", weights=weights)
    x = torch.randn(batch_size, 3, 32, 32)
    variants = {
        "as the user has it": (classifier.body, torch.contiguous_format),
        "channels last": (load_classifier("densenet-bc-100-12", weights=weights).body, torch.channels_last),
        "and batch norms folded": (classifier.optimised().body, torch.channels_last),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode():
        for _ in range(12):  # interleaved, so that a busy moment hits all alike
            for name, (network, layout) in variants.items():
                network.to(memory_format=layout)
                y = x.contiguous(memory_format=layout)
                start = time.perf_counter()
                for _ in range(2):
                    network(y)
                times[name].append((time.perf_counter() - start) / 2)
    base = statistics.median(times["as the user has it"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:<24} {batch_size / median:7.0f} images/s   {base / median:4.2f} ×")


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("NESCIO_SHARED", "../shared")))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="all images instead of the slice")
    options = parser.parse_args()
    data, weights = options.shared / "data", options.shared / "models/densenet100_cifar10.safetensors"
    cut = ("", "") if options.full else ("[:5000]", "[:2000]")
    sets = {name: f"{data}/{name}/test.parquet" for name in ("textures", "mnist", "scenes")}
    train, test = f"{data}/cifar10/train.parquet{cut[0]}", f"{data}/cifar10/test.parquet{cut[1]}"
    sources = [open_source(s) for s in (train, test, *sets.values())]
    n = sum(map(len, sources))
    print(
        f"{n:,} images, batch size {options.batch_size}, {options.workers} workers, {torch.get_num_threads()} threads"
    )

    network = densenet_bc_100_12()
    network.load_state_dict(read_weights(weights))
    baseline = plain_loop(network.eval(), sources, options.batch_size, options.workers)
    print(f"plain loop: {baseline:.1f} s ({n / baseline:.0f} images/s)")

    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        bench(
            Session(
                load_classifier("densenet-bc-100-12", weights=weights),
                cache=Path(cache),
                batch_size=options.batch_size,
                workers=options.workers,
            ),
            train=train,
            id=test,
            ood=sets,
            detectors=DETECTORS,
        )
        ours = time.perf_counter() - start
    print(f"nescio bench, {len(DETECTORS)} detectors: {ours:.1f} s ({n / ours:.0f} images/s)")
    print(f"ratio: {ours / baseline:.2f} × the plain loop (at most 1.10 allowed)")
    print("where it comes from (the bare network):")
    gains(options.batch_size, weights)


if __name__ == "__main__":
    main()
