"""The processes of a distributed training run: each reads its share of the images, and all get all features."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet, joined, of_record
from nescio.core.features import Columns, Features
from nescio.core.needs import Probe
from nescio.data.formats.torch import dataset_of
from nescio.data.labels import aligned
from nescio.data.loader import read_spans, spans
from nescio.data.source import as_source
from nescio.models.last_layer import shallow_copy
from nescio.run.batches import Batches
from nescio.run.extraction import records_of
from nescio.run.passes import Pass
from nescio.run.session import Session

_KEPT = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator")
"""What a DataLoader keeps when it reads other batches of the same data set."""


@dataclass(frozen=True)
class Processes:
    """The processes that measure together.

    Attributes:
        rank: number of this one.
        count: how many there are.
        group: how they exchange tensors in main memory; None where there is one process.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    def gather(self, part: Any) -> list[Any]:
        """What each process gives, in the order of their numbers."""
        if self.count == 1:
            return [part]
        parts = [None] * self.count
        dist.all_gather_object(parts, part, group=self.group)
        return parts

    def first(self, value: Any) -> Any:
        """What process 0 gives."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self.group)
        return held[0]

    def with_first_buffers(self, network: nn.Module) -> nn.Module:
        """The network with the buffers of process 0, which are what a checkpoint holds. The original is unchanged.

        Each process counts its own statistics for batch norm. DistributedDataParallel makes them equal only when the
        next step begins.
        """
        twin = shallow_copy(network)
        buffers = self.first({name: t.cpu() for name, t in twin.named_buffers()} if self.rank == 0 else None)
        for name, t in buffers.items():
            owner, _, attribute = name.rpartition(".")
            module: Any = twin.get_submodule(owner)
            module._buffers[attribute] = t.to(module._buffers[attribute].device)  # noqa: SLF001 - as torch's own swaps do
        return twin


@contextlib.contextmanager
def all_processes() -> Iterator[Processes]:
    """The processes of this run; one where nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        yield Processes()
        return
    own = "gloo" in dist.get_backend()
    # NCCL exchanges tensors on GPUs only, and features of a whole set may not fit there
    group = dist.group.WORLD if own else dist.new_group(backend="gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), group)
    finally:
        if not own:
            dist.destroy_process_group(group)


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What draws random numbers goes on afterwards as if nothing had happened. Gradients can be taken within."""
    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - data sets draw from it
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002


def in_order(images: Any) -> Any:
    """The images; of a DataLoader that shuffles, or reads a process's share, one that reads all in order.

    Raises:
        InputError: it chooses its images in another way.
    """
    if not isinstance(images, DataLoader) or isinstance(images.dataset, IterableDataset):
        return images
    if isinstance(images.sampler, DistributedSampler):
        dataset = images.dataset
    elif (dataset := dataset_of(images, ordered=False)) is not None and _is_sequential(images):
        return images
    return DataLoader(dataset, images.batch_size, **_kept(images))


def _is_sequential(loader: DataLoader[Any]) -> bool:
    return isinstance(loader.sampler, torch.utils.data.SequentialSampler) and not loader.drop_last


def _kept(loader: DataLoader[Any]) -> dict[str, Any]:
    kept = {name: getattr(loader, name) for name in _KEPT}
    return kept | ({"prefetch_factor": loader.prefetch_factor} if loader.num_workers else {})


class SharedSession(Session):
    """A session of which each process runs the network on every n-th batch, and gets the features of all."""

    processes = Processes()

    def read(self, images: Any, network_pass: Pass, probes: Mapping[str, Probe], title: str) -> FeatureSet:
        """Features of all images by a pass, in memory.

        Raises:
            InputError: as ``Session.read``, in every process; or another process failed.
        """
        if isinstance(images, FeatureSet):
            return images
        error: Exception | None = None
        part: Any = None
        try:
            part = [_packed(f) for f in records_of(self, self._share(images, title), network_pass, probes)]
        except Exception as e:  # noqa: BLE001 - the others must not wait for this process for ever
            error, part = e, f"{type(e).__name__}: {e}"
        parts = self.processes.gather(part)
        if error is not None:
            raise error
        if failed := [p for p in parts if isinstance(p, str)]:
            raise InputError(f"{title}: another process could not read its share: {failed[0]}")
        whole = [f for batch in itertools.zip_longest(*parts) for f in batch if f is not None]
        return of_record(joined([_unpacked(f, network_pass.key) for f in whole]))

    def _share(self, images: Any, title: str) -> Batches:
        """This process's batches of the images."""
        rank, count = self.processes.rank, self.processes.count
        splits = isinstance(images, DataLoader) and not isinstance(images.dataset, IterableDataset) and count > 1
        if self.batches(images) is None:
            return self._decoded(images, title)
        if not splits:
            return itertools.islice(self.batches(images) or (), rank, None, count)
        if images.batch_size is None:  # each item is a batch
            which: dict[str, Any] = {"batch_size": None, "sampler": range(rank, len(images.dataset), count)}
        else:
            which = {"batch_sampler": spans(0, len(images.dataset), images.batch_size)[rank::count]}
        return self.batches(DataLoader(images.dataset, **which, **_kept(images))) or iter(())

    def _decoded(self, images: Any, title: str) -> Batches:
        """Batches of named images."""
        source, transform = as_source(images), self.classifier.transform
        if not len(source):
            raise InputError(f"there are no {title}: give some")
        with contextlib.suppress(InputError):  # names of OOD images need not be the model's
            source = aligned(source, self.classifier.classes)
        own = spans(0, len(source), self.batch)[self.processes.rank :: self.processes.count]
        for batch in read_spans(source, transform, own, self.workers):
            if batch.images is not None:
                yield transform.normalise(batch.images), torch.from_numpy(source.labels[batch.start + batch.good])


def _packed(f: Features) -> tuple[Any, ...]:
    return f.tensors(), dict(f.aux), f.head


def _unpacked(packed: tuple[Any, ...], network_pass: str) -> Features:
    tensors, columns, head = packed
    return Features(**tensors, head=head, aux=Columns.of(columns), network_pass=network_pass)
