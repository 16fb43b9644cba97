"""The workers of a Ray cluster, with a shared folder, that write rows of one bank."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nescio.core.errors import InputError
from nescio.run.bank import MANIFEST
from nescio.run.devices.packing import Packed, there
from nescio.run.devices.places import shares

if TYPE_CHECKING:
    from nescio.run.bank_writer import BankWriter
    from nescio.run.extraction import Extraction


class OnRay:
    """A worker for each of the cluster's GPUs, or CPUs where the network is on one."""

    def fill(self, work: Extraction, writer: BankWriter, missing: Sequence[range]) -> None:
        """As ``Split.fill``. The share of a worker that died is started again, by Ray."""
        gpu = work.runner.classifier.device.type != "cpu"
        ray, pool = connected("devices='ray' (--devices ray)", gpu=gpu)
        packed = ray.put(Packed.of(work, ray.cloudpickle.dumps))
        remote = ray.remote(num_cpus=0 if gpu else 1, num_gpus=1 if gpu else 0, max_retries=2)(_fill)
        parts = [part for part in shares(list(missing), pool) if part]
        sizes = {remote.remote(packed, writer, part, "cuda" if gpu else "cpu", sys.path): part for part in parts}
        with work.progress(missing) as seen:
            waiting = list(sizes)
            while waiting:
                (done,), waiting = ray.wait(waiting)
                try:
                    if error := ray.get(done):
                        raise InputError(error)
                except ray.exceptions.RayError as e:
                    raise InputError(
                        f"a Ray worker ended ({str(e).splitlines()[0]}); run the same command again: it continues"
                    ) from None
                seen(sum(map(len, sizes[done])))
        writer.check_all_there()


def connected(what: str, *, gpu: bool) -> tuple[Any, int]:
    """Ray, on the cluster that ``RAY_ADDRESS`` names or that is connected already, else on this machine.

    Returns:
        the library, and how many GPUs or CPUs there are.

    Raises:
        InputError: Ray, which ``what`` asks for, is not installed; or there is no GPU or CPU.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError(f"{what} needs an extra: pip install 'nescio[ray]'") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for a report to Ray's makers
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    pool = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
    if pool < 1:
        raise InputError(f"the Ray cluster has no {'GPU' if gpu else 'CPU'}; give another device: device= (--device)")
    return ray, pool


def _fill(packed: Packed, writer: BankWriter, part: list[range], device: str, path: list[str]) -> str:
    """Do a share, on the device and with the CPU that Ray gives; what is wrong comes back."""
    sys.path += [folder for folder in path if folder not in sys.path]  # where a user's own network lies
    try:
        there(writer.partial / MANIFEST)
        if device == "cpu":
            torch.set_num_threads(1)
        work = packed.unpacked()
        workers = 1 if device == "cpu" and work.runner.workers is None else work.runner.workers
        work.on(device, workers).fill(writer, part, lambda _: None)
        writer.close()
    except InputError as e:
        return str(e)
    except Exception:  # noqa: BLE001 - told whole by the process that waits
        return traceback.format_exc()
    return ""
