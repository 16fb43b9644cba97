"""The parts of a scoring job on a Ray cluster: Ray Data hands their numbers to a pool of actors that hold the detector.

What Ray Data is given is the list of parts, not the images: each worker reads a part's images where they lie and writes
the part whole, as the local job does, so that a killed job goes on by the same rule, and no image or row travels
through Ray's object store. Ray Data looks after the pool, the queue and tasks whose machine goes away; a part that is
made twice because of that is written over with the same rows.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from nescio.core.errors import InputError
from nescio.run.devices.on_ray import connected

if TYPE_CHECKING:
    from nescio.deploy.scoring import Job


class _Worker:
    """Makes the parts that it is told, on the device and with the CPU that Ray gives it."""

    def __init__(self, packed: Any, device: str, path: list[str]) -> None:
        import ray

        sys.path += [folder for folder in path if folder not in sys.path]  # where a user's own network lies
        self.job: Job | None = None
        self.error = ""
        try:
            # no file of anybody's: bytes that the process which started this actor packed, by way of Ray, which
            # pickles all that it carries; torch.load for the device alone
            self.job = torch.load(io.BytesIO(ray.get(packed)), map_location=device, weights_only=False)
        except (ImportError, AttributeError) as e:  # code that this machine lacks, or has in another version
            self.error = f"the network cannot be created on the cluster's machines ({type(e).__name__}: {e})"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if self.job is not None:
                self.job.make([row["item"]])
        except InputError as e:
            self.error = str(e)
        return row | {"error": self.error}


def make_on_ray(job: Job, shards: Sequence[int], seen: Callable[[int], object]) -> None:
    """As ``Job.make``, on the cluster that ``RAY_ADDRESS`` names or that is connected already, else on this machine.

    There is a worker for each of the cluster's GPUs, or CPUs where the network is on one.

    Raises:
        InputError: Ray is not installed, or a worker met something that the user got wrong.
    """
    gpu = job.deployed.classifier.device.type != "cpu"
    ray, pool = connected("on='ray' (--on ray)", gpu=gpu)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    buffer = io.BytesIO()
    torch.save(job, buffer, pickle_module=ray.cloudpickle)
    done = ray.data.from_items(list(shards), override_num_blocks=len(shards)).map(
        _Worker,
        fn_constructor_args=(ray.put(buffer.getvalue()), "cuda" if gpu else "cpu", sys.path),
        compute=ray.data.ActorPoolStrategy(size=min(pool, len(shards)), max_tasks_in_flight_per_actor=1),
        num_cpus=0 if gpu else 1,
        num_gpus=1 if gpu else 0,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise InputError(row["error"])
        seen(len(job.folder.rows(row["item"])))
