"""Devices, processes and the signals that stop them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from nescio.core.errors import InputError
from nescio.training.recipe import PRECISIONS, Recipe


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and everything is stored. ``signal`` is what asked."""

    hint = "run the same command with --resume: it continues where it stopped"

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@dataclass(frozen=True)
class Hardware:
    """Where training runs; results do not depend on it but for rounding.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        devices: processes on this machine, one per device; on several machines, those that ``torchrun`` starts.
        workers: decoding processes; one per core where None.
        hold: keep the decoded images in memory; by default where they fit.
        max_bad: share of the images, in [0, 1], that may be unreadable.
        progress: show bars on a terminal.
    """

    device: str = "auto"
    devices: int = 1
    workers: int | None = None
    hold: bool | None = None
    max_bad: float = 0.01
    progress: bool = True


def make_fabric(hardware: Hardware, recipe: Recipe) -> Any:
    """The library that knows about devices, processes and precision; launches the other processes."""
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError:
        raise InputError("training needs an extra: pip install 'nescio[train]'") from None
    devices: Any = hardware.devices
    nodes = 1
    if TorchElasticEnvironment.detect():  # torchrun has started the processes
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    kind, _, number = hardware.device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if number:
        if kind == "cpu" or not number.isdecimal():
            raise InputError(f"unknown device '{hardware.device}'; give cpu, cuda or cuda:1")
        if devices != 1:
            raise InputError(f"device '{hardware.device}' is a single device; drop devices= (--devices) or the number")
        devices = [int(number)]
    several = nodes > 1 or (devices if isinstance(devices, int) else 1) > 1
    if recipe.batch_size % (nodes * (devices if isinstance(devices, int) else 1) * recipe.accumulate):
        raise InputError(
            f"batch_size={recipe.batch_size} is not divisible by {nodes} × {devices} processes × "
            f"{recipe.accumulate} parts"
        )
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=devices,
            num_nodes=nodes,
            precision=PRECISIONS[recipe.precision],
            strategy=DDPStrategy() if several else "auto",
        )
    except (RuntimeError, ValueError, TypeError) as e:
        raise InputError(f"device '{hardware.device}' cannot be used: {str(e).splitlines()[0]}") from None
    for chatty in ("lightning", "lightning_fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    fabric.launch()
    return fabric


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are put in while it is open; a second one acts at once."""
    asked: list[int] = []
    before = {}

    def ask(number: int, frame: Any) -> None:
        if asked:
            signal.default_int_handler(number, frame)
        asked.append(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:
        pass  # not the main thread: whoever owns it decides
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
