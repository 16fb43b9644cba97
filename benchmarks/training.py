"""A step of other objectives against a step of cross entropy: time and memory, side by side.

    python benchmarks/training.py [--device cuda --precision bf16] [--rounds N] [--objectives ssod godin] [--case small]

Whole steps of the loop on images held in memory: augmentation, forward, backward, optimiser. They take turns in an
order drawn for each round, each after a step that is not timed; the ratio is the median over rounds. Memory is the peak
of a process of its own for each. With --out the ratios are stored, as JSON. On a GPU the bare network's step (no loop,
a fixed batch) and the chip's rate of a large product are printed too.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from _common import parser, seconds
from nescio.data.formats.torch import DatasetSource
from nescio.data.transform import Transform
from nescio.methods.objective import parse_objective
from nescio.models import Classifier
from nescio.models.load import new_network
from nescio.models.runs import Run
from nescio.training.hardware import Hardware, make_fabric
from nescio.training.images import Images, RunImages
from nescio.training.loop import Loop
from nescio.training.recipe import Recipe
from nescio.training.state import State

CASES = {
    "ResNet-18, 224 px, 1,000 classes": ("timm:resnet18", 224, 1000),
    "CIFAR ResNet-18, 32 px, 10 classes": ("resnet18-cifar", 32, 10),
    "small ResNet, 32 px, 10 classes": ("studies.networks:small_resnet", 32, 10),
}
FIRST = "ce"


class Noise(torch.utils.data.Dataset):
    """Random images with random labels."""

    def __init__(self, n: int, side: int, classes: int) -> None:
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 255, (n, side, side, 3), dtype=np.uint8)
        self.targets = rng.integers(0, classes, n)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[i]), int(self.targets[i])


class Steps:
    """A loop whose steps are taken one by one."""

    def __init__(self, case: str, objective: str, arguments: argparse.Namespace) -> None:
        model, side, classes = CASES[case]
        recipe = Recipe.named("ssod", batch_size=arguments.batch, precision=arguments.precision)
        hardware = Hardware(device=arguments.device, workers=0, hold=True, progress=False)
        fabric = make_fabric(hardware, recipe)
        torch.manual_seed(0)
        made = new_network(model, classes, size=side)
        network = made.network.to(fabric.device).to(memory_format=torch.channels_last)
        classifier, goal = Classifier(network, made.transform, name=made.name), parse_objective(objective)
        classifier.heads.update(goal.heads(classifier))
        goal.after_step(classifier)
        source = DatasetSource(Noise(arguments.batch * 4, side, classes), identity="noise")
        images = Images(source, Transform(crop=side), device=fabric.device, hardware=hardware)
        run = Run(made.name, classes, None, str(made.transform), objective, {"seed": 0})
        self.loop = Loop(
            fabric, run, Path(tempfile.mkdtemp()), State(network, classifier, goal), goal, recipe,
            RunImages(images, images, outliers=images if goal.needs.outliers else None),
        )  # fmt: skip
        self.epoch, self.iterator, self.device = 0, iter(()), fabric.device

    def take(self, n: int) -> float:
        """Seconds per step."""
        self._wait()
        return seconds(lambda: self._steps(n)) / n

    def _steps(self, n: int) -> None:
        for _ in range(n):
            if next(self.iterator, 0) == 0:
                self.iterator = self.loop.steps(self.epoch)
                next(self.iterator)
                self.epoch += 1
        self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def memory(case: str, objective: str, arguments: argparse.Namespace) -> float:
    """Peak of a process that takes a few steps, in GB."""
    options = {**vars(arguments), "alone": [case, objective], "out": None}
    done = subprocess.run(
        [sys.executable, __file__, "--options", json.dumps(options)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def alone(case: str, objective: str, arguments: argparse.Namespace) -> float:
    """The same, within that process."""
    steps = Steps(case, objective, arguments)
    steps.take(4)
    if steps.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()  # the peak of this process; getrusage inherits its parent's
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e9


def bare(case: str, arguments: argparse.Namespace) -> None:
    """On a GPU: images/s of the bare network's step, and the chip's rate."""
    model, side, classes = CASES[case]
    network = new_network(model, classes, size=side).network
    network.cuda().to(memory_format=torch.channels_last).train()
    x = torch.randn(arguments.batch, 3, side, side, device="cuda").to(memory_format=torch.channels_last)
    y = torch.zeros(arguments.batch, dtype=torch.int64, device="cuda")
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    tasks = (("bare step, images/s", step, arguments.batch), ("TFLOP/s", lambda: a @ a, 2 * 8.192**3 / 1e3))
    for name, work, amount in tasks:

        def several(n: int, work: Callable[[], object] = work) -> None:
            for _ in range(n):
                work()
            torch.cuda.synchronize()

        several(5)
        print(f"  {name}: {20 * amount / seconds(lambda: several(20)):,.0f}")


def compare(case: str, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Times taken in turns, and memory; the ratios to cross entropy's, by objective."""
    taken = {objective: Steps(case, objective, arguments) for objective in (FIRST, *arguments.objectives)}
    times: dict[str, list[float]] = {objective: [] for objective in taken}
    rng = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        for objective in rng.permutation(list(taken)):
            taken[objective].take(1)  # after a larger step of another, memory has to be had anew
            times[objective].append(taken[objective].take(arguments.steps))
    used = {objective: memory(case, objective, arguments) for objective in taken}
    print(f"{case}, batches of {arguments.batch}, {arguments.precision}")
    found = {}
    for objective, taken_by in times.items():
        middle = statistics.median(taken_by)
        told = f"  {objective}: {middle * 1e3:.0f} ms a step, {arguments.batch / middle:,.0f} images/s"
        print(f"{told}, {used[objective]:.2f} GB")
        if objective != FIRST:
            ratios = [b / a for a, b in zip(times[FIRST], taken_by, strict=True)]
            ratio, more = statistics.median(ratios), used[objective] / used[FIRST]
            of = f"{ratio:.3f} (of {len(ratios)}: {min(ratios):.3f} to {max(ratios):.3f})"
            print(f"    against {FIRST}: {of} its time, {more:.3f} its memory")
            found[objective] = {"time": round(ratio, 3), "memory": round(more, 3)}
    return found


def main() -> None:
    """Measure."""
    options = parser(__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--precision", default="32")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--steps", type=int, default=1)
    options.add_argument("--objectives", nargs="+", default=["ssod", "logitnorm", "godin"])
    options.add_argument("--case", default="ResNet-18", help="part of the names of the cases")
    options.add_argument("--out", type=Path)
    options.add_argument("--options", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.options:
        given = argparse.Namespace(**json.loads(arguments.options))
        print(alone(*given.alone, given))
        return
    found = {}
    for case in (name for name in CASES if arguments.case in name):
        found[case] = compare(case, arguments)
        if arguments.device.startswith("cuda"):
            bare(case, arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
