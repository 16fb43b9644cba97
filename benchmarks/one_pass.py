"""Extraction and every detector against a plain loop over the same images, in one run.

The baseline decodes, transforms and runs the images as a user would write it: a ``DataLoader`` over the same parquet
files with torchvision transforms, the same workers and batch size, the bare network in ``inference_mode``. Ours does
that too, and writes the bank, fits and scores all detectors but odin, and computes every metric. The two take turns,
each round with an empty cache: so ``auto`` pays for its trial.

    python benchmarks/one_pass.py [--way ENGINE,PRECISION ...] [--batch-size N] [--workers N] [--rounds N] [--full]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from _common import bare_densenet, data, densenet, in_turns, machine, parser, seconds, tests, way_option, ways
from nescio import Session, bench, open_source
from nescio.data.decode import decode
from nescio.data.source import Source

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

    @torch.inference_mode()
    def run() -> None:
        for source in sources:
            for x in DataLoader(Images(source), batch_size=batch_size, num_workers=workers):
                network(x)

    return seconds(run)


def gains(batch_size: int) -> None:
    """Images per second of the bare network, step by step to what extraction runs."""
    x = torch.randn(batch_size, 3, 32, 32)
    variants = {
        "as the user has it": (densenet(None).body, torch.contiguous_format),
        "channels last": (densenet(None).body, torch.channels_last),
        "and batch norms folded": (densenet(None).optimised().body, torch.channels_last),
    }
    for network, layout in variants.values():
        network.to(memory_format=layout)

    def run(network: torch.nn.Module, y: torch.Tensor) -> Callable[[], object]:
        return lambda: network(y)

    with torch.inference_mode():
        times = in_turns({n: run(net, x.contiguous(memory_format=form)) for n, (net, form) in variants.items()}, 24)
    base = statistics.median(times["as the user has it"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:<24} {batch_size / median:7.0f} images/s   {base / median:4.2f} ×")


def main() -> None:
    """Print the ratios."""
    options = parser(__doc__)
    way_option(options, "auto,float32")
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--full", action="store_true", help="all images instead of the slice")
    chosen = options.parse_args()
    cut = ("", "") if chosen.full else ("[:5000]", "[:2000]")
    sets = tests("textures", "mnist", "scenes")
    train, test = data("cifar10/train") + cut[0], data("cifar10/test") + cut[1]
    sources = [open_source(s) for s in (train, test, *sets.values())]
    n = sum(map(len, sources))
    print(f"{n:,} images, batch size {chosen.batch_size}, {chosen.workers} workers; {machine()}")
    network = bare_densenet()
    ratios: dict[str, list[float]] = {}

    def ours(engine: str, precision: str) -> str:
        with tempfile.TemporaryDirectory() as cache:
            how = {"batch_size": chosen.batch_size, "workers": chosen.workers, "cache": cache}
            session = Session(densenet(None), engine=engine, precision=precision, **how)
            bench(session, train=train, id=test, ood=sets, detectors=DETECTORS)
            return f"{engine} ({session.running!r}) in {precision}"

    for _ in range(chosen.rounds):
        plain = plain_loop(network, sources, chosen.batch_size, chosen.workers)
        print(f"plain loop: {plain:.1f} s ({n / plain:.0f} images/s)", flush=True)
        for way in ways(chosen):
            begin = time.perf_counter()
            name = ours(*way)
            took = time.perf_counter() - begin
            print(
                f"nescio bench, {len(DETECTORS)} detectors, {name}: {took:.1f} s ({n / took:.0f} images/s)", flush=True
            )
            ratios.setdefault(name, []).append(took / plain)
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.2f} × the plain loop ({min(values):.2f} to {max(values):.2f})")
    print("where it comes from (the bare network):")
    gains(chosen.batch_size)


if __name__ == "__main__":
    main()
