"""The GPUs and cores of this machine, and which of them each process of an extraction gets."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from nescio.core.errors import InputError
from nescio.data.loader import default_workers

AUTO, RAY, TORCHRUN = "auto", "ray", "torchrun"
WORDS = (AUTO, RAY, TORCHRUN)
_CPUS, _NODES = Path("/sys/devices/system/cpu"), Path("/sys/devices/system/node")
Item = TypeVar("Item")


def check_devices(devices: object) -> None:
    """Refuse what is neither a number of devices nor a word for them."""
    if devices in WORDS or (isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1):
        return
    raise InputError(
        f"devices={devices} is not a number of devices: devices= (--devices) takes 1 or more, {AUTO} (all GPUs, or one "
        f"process per NUMA node of a CPU), {RAY} or {TORCHRUN}"
    )


@dataclass(frozen=True)
class Place:
    """Where one process runs.

    Attributes:
        device: where its network is.
        threads: what PyTorch may use.
        workers: its decoding processes.
        cores: those that it is bound to; none where it may use all.
    """

    device: str
    threads: int
    workers: int
    cores: tuple[int, ...] = ()

    def take(self) -> None:
        """Bind this process and all that it starts. PyTorch's threads are those of the thread that calls."""
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)
        torch.set_num_threads(self.threads)


def places_of(device: torch.device, devices: int | str, workers: int | None) -> list[Place]:
    """A place for each process on this machine.

    Args:
        device: where the network is now.
        devices: how many, or ``auto``.
        workers: decoding processes of all together; one per core where None.

    Raises:
        InputError: there are not that many.
    """
    own = cores()
    count = _count(device, devices, len(own))
    threads, decoding = max(1, torch.get_num_threads() // count), workers_of(workers, count)
    if count == 1:
        return [Place(str(device), threads, decoding)]
    if device.type == "cpu":
        return [Place("cpu", threads, decoding, tuple(some)) for some in shares(own, count)]
    return [Place(f"{device.type}:{number}", threads, decoding) for number in range(count)]


def _count(device: torch.device, devices: int | str, n_cores: int) -> int:
    if device.type == "cuda":
        most, what = torch.cuda.device_count(), "GPUs"
        if devices not in (1, AUTO) and device.index:
            raise InputError(f"device '{device}' is a single device; give device= (--device cuda) for several")
        usual = 1 if device.index else most
    elif device.type == "cpu":
        most, what, usual = n_cores, "cores", min(nodes(), n_cores)
    else:
        most, what, usual = 1, f"device of type {device.type}", 1
    count = usual if isinstance(devices, str) else devices
    if count > most:
        raise InputError(f"devices={count}, but here: {most} {what}; give at most {most}: devices= (--devices)")
    return count


def workers_of(workers: int | None, count: int) -> int:
    """The decoding processes of each of ``count`` processes on this machine."""
    if workers is None:
        return default_workers(count)
    return max(1, workers // count) if workers else 0


def shares(items: list[Item], count: int) -> list[list[Item]]:
    """Consecutive parts of a list, as equal in length as can be."""
    edges = [len(items) * k // count for k in range(count + 1)]
    return [items[start:stop] for start, stop in itertools.pairwise(edges)]


def cores() -> list[int]:
    """The cores that this process may use: those of one NUMA node, and threads of one core, beside each other."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    node_of = {cpu: number for number, cpus in _nodes().items() for cpu in cpus}
    return sorted(os.sched_getaffinity(0), key=lambda cpu: (node_of.get(cpu, 0), *_core(cpu), cpu))


def nodes() -> int:
    """NUMA nodes with cores that this process may use; a socket has one or more."""
    own = set(cores())
    return max(1, sum(bool(own & cpus) for cpus in _nodes().values()))


def _nodes() -> dict[int, set[int]]:
    """The cores of each NUMA node, by its number. Linux says so."""
    lists = {int(path.parent.name.removeprefix("node")): path for path in _NODES.glob("node[0-9]*/cpulist")}
    return {number: _listed(path.read_text(encoding="ascii")) for number, path in sorted(lists.items())}


def _listed(text: str) -> set[int]:
    """Numbers as the kernel lists them: ``0-3,8-11``."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _core(cpu: int) -> tuple[int, int]:
    """Socket and core, which the threads of one core have in common."""
    folder = _CPUS / f"cpu{cpu}" / "topology"
    try:
        socket, core = (int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return 0, cpu
    return socket, core
