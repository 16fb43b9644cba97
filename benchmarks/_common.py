"""What benchmarks and studies share: where images and weights are, the network that most use, and timing in turns.

Images and weights: the folder $NESCIO_SHARED, or ../shared next to the checkout. What studies leave behind:
$NESCIO_STUDY_WORK, or runs/ in the checkout.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the library is imported where it is used: its own import is among what is measured
    from torch import nn

    from nescio import Classifier

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("NESCIO_SHARED", ROOT.parent / "shared"))
WORK = Path(os.environ.get("NESCIO_STUDY_WORK", ROOT / "runs"))
DENSENET = "densenet-bc-100-12"
WEIGHTS = SHARED / "models/densenet100_cifar10.safetensors"

if str(ROOT) not in sys.path:  # studies import each other as studies.NAME, and so do names of their networks
    sys.path.insert(0, str(ROOT))


def parser(about: str | None) -> argparse.ArgumentParser:
    """A command line that prints a file's docstring as its help."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def way_option(options: argparse.ArgumentParser, *usual: str) -> None:
    """``--way ENGINE,PRECISION``: how the network is run, several times for several ways in turns."""
    options.add_argument(
        "--way", action="append", type=_way, metavar="ENGINE,PRECISION", help=f"repeatable; default: {' '.join(usual)}"
    )
    options.set_defaults(usual=[_way(way) for way in usual])


def _way(text: str) -> tuple[str, str]:
    engine, _, precision = text.partition(",")
    return engine, precision or "float32"


def ways(chosen: argparse.Namespace) -> list[tuple[str, str]]:
    """Engine and precision of each way that was asked for."""
    return chosen.way or chosen.usual


def data(name: str) -> str:
    """A shared set, as the command line takes it: ``cifar10/test``, ``textures/test``."""
    return str(SHARED / "data" / f"{name}.parquet")


def tests(*names: str) -> dict[str, str]:
    """The test images of shared sets, by name."""
    return {name: data(f"{name}/test") for name in names}


def densenet(device: str | None = "cpu") -> Classifier:
    """The DenseNet whose weights are at hand: 94.5 % of CIFAR-10."""
    from nescio import load_classifier

    return load_classifier(DENSENET, weights=WEIGHTS, device=device)


def bare_densenet() -> nn.Module:
    """The same network as its user has it."""
    from nescio.models.weights import read_weights
    from nescio.models.zoo.cifar import densenet_bc_100_12

    network = densenet_bc_100_12()
    network.load_state_dict(read_weights(WEIGHTS))
    return network.eval()


def stamp(command: str) -> str:
    """What a stored table was made with, when and where."""
    return f"`python {' '.join([command, *sys.argv[1:]])}`, {time.strftime('%Y-%m-%d')}, {machine()}."


def store(name: str, lines: list[str]) -> None:
    """Write a study's table, ``studies/NAME``, and print it."""
    from nescio.core.files import write_whole

    path = ROOT / "studies" / name
    path.parent.mkdir(exist_ok=True)
    write_whole(path, "\n".join(lines) + "\n")
    print("\n".join(lines))


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each, round by round: every other round in the opposite order, so that a busy moment hits all alike.

    Args:
        runs: what is timed, by name.
        rounds: how often.
        warm: rounds before, which do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(-warm, rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            took = seconds(runs[name])
            if i >= 0:
                times[name].append(took)
    return times


def ratio(times: Mapping[str, list[float]], name: str, to: str) -> float:
    """The median over rounds of one's time over another's."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def spread(values: list[float]) -> str:
    """Mean in percent, ± standard deviation where there are several."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def machine() -> str:
    """What a number was measured on."""
    import torch

    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


class AnonymousMemory(threading.Thread):
    """The peak of RssAnon, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(line.split()[1]) * 1024)
            time.sleep(0.02)
