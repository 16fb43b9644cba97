"""The one-pass engine: decode in workers, run the network once per image, write what it leaves into a bank."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet, joined, of_record
from nescio.core.features import Features
from nescio.core.needs import Probe
from nescio.core.progress import progress_bar
from nescio.core.stage import Network
from nescio.data.labels import aligned
from nescio.data.loader import Batch, read_batches, read_spans
from nescio.data.source import Rows, Source, as_source
from nescio.run.bank import BAD, DONE, DTYPES, Bank, BankKey
from nescio.run.bank_writer import BankWriter
from nescio.run.batches import Batches
from nescio.run.devices.choice import split_of
from nescio.run.devices.places import TORCHRUN
from nescio.run.devices.ranks import ranks
from nescio.run.engines import Engine
from nescio.run.heap import kept_heap
from nescio.run.passes import Pass
from nescio.run.runner import CPU_BATCH, Runner
from nescio.run.transfers import Transfers

CHOOSING = 1000
"""ID images that an input stage chooses on."""


def in_memory(
    runner: Runner, batches: Batches, network_pass: Pass, probes: Mapping[str, Probe], n: int = 0
) -> FeatureSet:
    """Features of batches that the network takes as they are; ``n`` is the number of images, where it is known."""
    return of_record(joined(records_of(runner, batches, network_pass, probes, n)))


@torch.no_grad()
def records_of(
    runner: Runner, batches: Batches, network_pass: Pass, probes: Mapping[str, Probe], n: int = 0
) -> list[Features]:
    """The same, batch by batch, on the CPU."""
    device, copies = runner.classifier.device, Transfers(runner.classifier.device)
    first = next(batches, None)

    def images() -> Tensor | None:
        return None if first is None else first[0].to(device)

    runner.settle(n, images)
    network, head = runner.run_by(network_pass, probes, images)[1], runner.classifier.head.to("cpu")

    def begun(x: Tensor, labels: Tensor | None) -> Callable[[], Features]:
        with runner.clock("network"):
            return copies.record(network_pass.run(network, copies.onto(x)).with_fields(labels=labels), head)

    every = batches if first is None else itertools.chain([first], batches)
    with kept_heap():
        return list(copies.results(begun(x, labels) for x, labels in every))


def bank_of(runner: Runner, source: Source, network_pass: Pass, probes: Mapping[str, Probe], title: str) -> Bank:
    """The bank of features of all images of a source by a pass: opened where it is known, else made.

    Raises:
        InputError: there are no images; or more than the share ``max_bad`` of them are bad, or all; or the devices are
            not there, or one of their processes ended.
    """
    if runner.devices == TORCHRUN:
        return ranks().together(lambda: _bank_of(runner, source, network_pass, probes, title), tuple(probes))
    return _bank_of(runner, source, network_pass, probes, title)


def _bank_of(runner: Runner, source: Source, network_pass: Pass, probes: Mapping[str, Probe], title: str) -> Bank:
    split_of(runner)  # devices that are not there are refused before anything is read
    if not len(source):
        raise InputError(f"there are no {title}: give some")
    with contextlib.suppress(InputError):  # names of OOD images need not be the model's
        source = aligned(source, runner.classifier.classes)
    known = (_known(runner, _key(runner, source, network_pass, probes, e)) for e in runner.engines(network_pass))
    bank = next((b for b in known if b is not None), None) or _made(runner, source, network_pass, probes, title)
    bad = len(bank.skipped)
    if bad > runner.max_bad * len(source) or len(bank) == 0:
        _, image, reason = bank.skipped[0]
        raise InputError(
            f"{bad:,} of {len(source):,} {title} could not be used, and at most the share "
            f"{runner.max_bad:g} is allowed: max_bad= (--max-bad); "
            f"the first: {image}: {reason}; all of them: {bank.path / 'skipped.csv'}"
        )
    return bank


def _key(runner: Runner, source: Source, network_pass: Pass, probes: Mapping[str, Probe], engine: Engine) -> BankKey:
    classifier = runner.classifier
    return BankKey(
        runner.once("fingerprint", lambda: classifier.fingerprint),
        str(classifier.transform),
        source.identity,
        network_pass.key,
        runner.dtype,
        repr(engine),
        engine.precision,
        tuple(sorted(probes)),
    )


def _known(runner: Runner, key: BankKey) -> Bank | None:
    """The bank of a key, if it is there."""
    if key.digest in runner.banks:
        return runner.banks[key.digest]
    folder = runner.folder / "banks"
    if not any(folder.glob(f"{key.family}*")):
        return None
    writer = BankWriter(folder, key)
    with writer.alone(), runner.clock("check"):
        bank = writer.finished(_reaction(runner))
    if bank is not None:
        runner.banks[key.digest] = bank
    return bank


def _reaction(runner: Runner) -> Tensor:
    reaction: Tensor = runner.once("reaction", runner.classifier.reaction)
    return reaction


def _made(runner: Runner, source: Source, network_pass: Pass, probes: Mapping[str, Probe], title: str) -> Bank:
    """The bank of a source, once the network has been run over it; or one that another process made meanwhile."""

    @functools.cache
    def first() -> Tensor | None:
        return next(_batches(runner, Rows(source, list(range(min(runner.batch, len(source)))))), None)

    with kept_heap():  # as the pass will run: engines are timed against each other
        runner.settle(len(source), first)
        engine, network = runner.run_by(network_pass, probes, first)
    key = _key(runner, source, network_pass, probes, engine)
    writer, classifier, reaction = BankWriter(runner.folder / "banks", key), runner.classifier, _reaction(runner)
    with writer.alone():
        with runner.clock("check"):
            bank = writer.finished(reaction)
        if bank is None:
            with torch.no_grad():
                seen = network_pass.run(network, classifier.noise())
            widths = {"h": seen.h.shape[1]} | {name: column.shape[1] for name, column in seen.aux.items()}
            missing = writer.begin(len(source), classifier.head, reaction, runner.batch, widths)
            split_of(runner).fill(Extraction(runner, source, network_pass, probes, title), writer, missing)
            bank = writer.finish()
    runner.banks[key.digest] = bank
    return bank


@dataclass(frozen=True)
class Extraction:
    """One pass of a network over the images of a source. It can be pickled where all of its parts can.

    Attributes:
        runner: how it is run; its clock counts the time that this process waited for decoded images, ran the network,
            and wrote.
        source: the images.
        network_pass: how to run the network.
        probes: what else is computed from feature maps.
        title: what the progress bar calls the images.
    """

    runner: Runner
    source: Source
    network_pass: Pass
    probes: Mapping[str, Probe]
    title: str

    def on(self, device: str | torch.device, workers: int | None) -> Self:
        """The same in another process: on its device, with its decoding processes, its own clock and no bar."""
        runner = self.runner.on(device, workers)
        return dataclasses.replace(self, runner=runner, network_pass=self.network_pass.to(device))

    @contextlib.contextmanager
    def progress(self, missing: Sequence[range]) -> Iterator[Callable[[int], None]]:
        """A bar over these rows; what it gives is called with the number of images that are done."""
        with progress_bar(show=self.runner.progress) as bar:
            task = bar.add_task(self.title, total=sum(map(len, missing)))
            yield lambda images: bar.advance(task, images)

    @torch.no_grad()
    def fill(self, writer: BankWriter, missing: Sequence[range], seen: Callable[[int], None]) -> None:
        """Write the features of some batches of rows into a bank; ``seen`` is called with the size of each."""
        clock, transform = self.runner.clock, self.runner.classifier.transform
        engine, network = self.runner.run_by(self.network_pass, self.probes)
        if (repr(engine), engine.precision) != (writer.key.engine, writer.key.precision):
            raise InputError(
                f"engine '{writer.key.engine}' runs the network in one process and not in another; give one that runs "
                "it in all: engine= (--engine torch)"
            )
        copies = Transfers(self.runner.classifier.device)
        batches = read_spans(self.source, transform, missing, self.runner.workers)
        decoded = iter(lambda: self._next(batches), None)
        with kept_heap():
            for batch, values in copies.results(self._begun(network, batch, writer, copies) for batch in decoded):
                named = [(batch.start + i, reason) for i, reason in sorted(batch.bad)]
                with clock("write"):
                    writer.write(batch.start, values, [(i, self.source.name(i), reason) for i, reason in named])
                seen(batch.size)

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        with self.runner.clock("decode"):
            return next(batches, None)

    def _begun(
        self, network: Network, batch: Batch, writer: BankWriter, copies: Transfers
    ) -> Callable[[], tuple[Batch, dict[str, Any]]]:
        """Begin a batch; what it gives waits for what the batch leaves in each column."""
        if batch.images is None:
            return lambda: (batch, self._rows(batch, writer, {}))
        with self.runner.clock("network"):
            x = self.runner.classifier.transform.normalise(copies.onto(batch.images))
            f = self.network_pass.run(network, x.contiguous(memory_format=torch.channels_last))
            wait = copies.back({"h": f.h, **f.aux} | ({"pred": f.pred} if f.has_logits else {}))

        def done() -> tuple[Batch, dict[str, Any]]:
            with self.runner.clock("network"):
                found = wait()
            return batch, self._rows(batch, writer, found)

        return done

    def _rows(self, batch: Batch, writer: BankWriter, found: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a batch leaves in each column; images whose features are not finite become bad ones."""
        kind = writer.key.dtype
        status = np.full(batch.size, BAD, dtype=np.uint8)
        labels = self.source.labels[batch.start : batch.start + batch.size]
        values: dict[str, Any] = {"status": status, "label": labels, "pred": np.full(batch.size, -1, dtype=np.int64)}
        values |= {name: np.zeros((batch.size, width), DTYPES[kind]) for name, width in writer.widths.items()}
        if not found:
            return values
        finite = torch.stack([found[name].isfinite().all(dim=1) for name in writer.widths]).all(dim=0).numpy()
        status[batch.good[finite]] = DONE
        for name, t in found.items():
            values[name][batch.good] = _stored(t.numpy(), kind) if name in writer.widths else t.numpy()
        batch.bad += [(int(i), "the network's features are not finite") for i in batch.good[~finite]]
        return values


def _stored(h: Any, dtype: str) -> Any:
    limit = np.finfo(DTYPES[dtype]).max
    if (np.abs(h[np.isfinite(h)]) > limit).any():
        raise InputError(
            f"features exceed {limit:g}, the largest {dtype}; store them with dtype='float32' (--bank-dtype float32)"
        )
    return h.astype(DTYPES[dtype])


def some_batches(runner: Runner, images: Any) -> Iterator[Tensor]:
    """A thousand images as the network takes them."""
    device, seen = runner.classifier.device, 0
    if (batches := runner.batches(images)) is not None:
        for x, _ in batches:
            yield x.to(device)
            seen += len(x)
            if seen >= CHOOSING:
                return
        return
    source = as_source(images)
    yield from _batches(runner, Rows(source, numerics.drawn(len(source), CHOOSING).tolist()), CPU_BATCH)


def _batches(runner: Runner, source: Source, size: int | None = None) -> Iterator[Tensor]:
    """Images of a source as the network takes them ``(B, C, H, W)``, on its device."""
    transform = runner.classifier.transform
    for batch in read_batches(source, transform, 0, size or runner.batch, runner.workers):
        if batch.images is not None:
            yield transform.normalise(batch.images.to(runner.classifier.device))
