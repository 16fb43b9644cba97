"""The one-pass engine: decode in workers, run the network once per image, write what it leaves into a bank."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nescio.core import numerics
from nescio.core.detector import Detector
from nescio.core.errors import InputError, check_share, nearest
from nescio.core.features import PLAIN_PASS, Features
from nescio.core.needs import Probe
from nescio.core.progress import Clock, progress_bar
from nescio.core.stage import Network
from nescio.data.hashing import cache_root
from nescio.data.labels import aligned
from nescio.data.loader import Batch, read_batches
from nescio.data.source import AnySource, Rows, Source, as_source
from nescio.models import Classifier
from nescio.models.coerce import as_classifier
from nescio.models.heads import HEADS
from nescio.run.bank import BAD, DONE, DTYPES, Bank, BankKey
from nescio.run.bank_writer import BankWriter

log = logging.getLogger(__name__)

CHOOSING = 1000
"""ID images that an input stage chooses on."""

CPU_BATCH, GPU_BATCH = 32, 256
"""Default batch sizes. On a CPU small batches keep the activations in the caches: measured in benchmarks/."""


@dataclass(frozen=True)
class Pass:
    """A way to run the network over images.

    Attributes:
        key: names the pass within a bank's key, and on every record that it makes.
        features: what it makes of a batch of normalised images.
        prepare: the network's body as this pass runs it, from a copy of it.
    """

    key: str
    features: Callable[[Network, Tensor], Features]
    prepare: Callable[[nn.Module], nn.Module] = lambda body: body

    def run(self, network: Network, x: Tensor) -> Features:
        """Features of normalised images ``x (B, 3, H, W)``, marked as this pass's."""
        return dataclasses.replace(self.features(network, x), network_pass=self.key)


PLAIN = Pass(PLAIN_PASS, lambda network, x: network(x))


def check_model(detector: Detector, classifier: Classifier) -> None:
    """Refuse a detector whose pass or probes this network cannot serve.

    Raises:
        InputError: the network lacks what they need: batch norms, dropout, feature maps, a head.
    """
    for head in sorted(detector.needs.heads - set(classifier.heads)):
        raise InputError(f"{classifier.name} was not trained with the head '{head}' that it reads; {HEADS[head].way()}")
    if detector.input_stage is not None:
        classifier.changed(detector.input_stage.prepare)
    if detector.needs.probes:
        _ = classifier.taps


def servable(specs: Iterable[str], classifier: Classifier, *, trained: bool = True) -> dict[str, Detector]:
    """The detectors that this network can serve, by their specs; what is left out is said.

    Args:
        specs: as a user would write them.
        classifier: the network.
        trained: whether there are training images to fit on.
    """
    found = {}
    for spec in specs:
        detector = Detector(spec, classifier.name, classifier.head.n_classes)
        try:
            check_model(detector, classifier)
            if not trained and (detector.needs.train or detector.needs.held_out or detector.needs.images):
                raise InputError("there are no training images")
        except InputError as e:
            log.info("leaving out %s: %s", spec, e)
        else:
            found[spec] = detector
    return found


def training_pass(detector: Detector) -> Pass:
    """The pass that gives the features a detector is fitted on: its own if that is a fixed one, else the plain one."""
    stage = detector.input_stage
    return pass_of(detector) if stage is not None and stage.fixed else PLAIN


def pass_of(detector: Detector, device: torch.device | str = "cpu") -> Pass:
    """The pass that a detector needs, on the network's device; without an input stage, the plain one.

    Unless the pass is a fixed one, the detector must be fitted.
    """
    stage = detector.input_stage
    if stage is None:
        return PLAIN
    # detectors are fitted on banks, and score them, on the CPU; this pass needs the stages where the network is
    chain = detector if stage.fixed else copy.deepcopy(detector).to(device)
    return Pass(detector.pass_key, lambda network, x: stage.run(network, chain, x), stage.prepare)


@torch.no_grad()
def choose_on(
    source: Source | None, detectors: Iterable[Detector], classifier: Classifier, *, workers: int | None = None
) -> None:
    """Let the input stages of fitted detectors choose what they choose on ID images, of which they see a thousand.

    Raises:
        InputError: there are no images.
    """
    for detector in detectors:
        stage = detector.input_stage
        if stage is None or not stage.needs.images:
            continue
        if source is None:
            raise InputError(f"detector '{detector}' is fitted on training images; give them (--train)")
        some_of_it = Rows(source, numerics.drawn(len(source), CHOOSING).tolist())
        batches = read_batches(some_of_it, classifier.transform, 0, CPU_BATCH, workers)
        images = (b.images.to(classifier.device) for b in batches if b.images is not None)
        network = classifier.changed(stage.prepare).optimised().probed(detector.needs.probes)
        fitted = copy.deepcopy(detector).to(classifier.device)
        stage.choose(network, fitted, map(classifier.transform.normalise, images))


def extract(
    classifier: Classifier,
    source: AnySource,
    *,
    network_pass: Pass = PLAIN,
    probes: Mapping[str, Probe] | None = None,
    cache: str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    dtype: str = "float32",
    max_bad: float = 0.01,
    title: str = "images",
    progress: bool = True,
    clock: Clock | None = None,
) -> Bank:
    """Features of every image of a source, from the bank where they are known, else from one pass of the network.

    An interrupted pass goes on where it stopped and gives the same bytes as an uninterrupted one. Two processes that
    want the same bank don't disturb each other: the second waits, then reads.

    Labels become the model's class numbers where both have names, and those of the images are among the model's.

    Args:
        classifier: the network.
        source: the images, as ``open_source`` takes them, or a source.
        network_pass: how to run the network.
        probes: what to compute from feature maps on the way, by name, as ``Detector.needs.probes`` gives it.
        cache: folder of the banks; ``$NESCIO_CACHE/banks`` or the user's cache folder by default.
        batch_size: images per step; 32 on a CPU, 256 on a GPU by default.
        workers: decoding processes; one per core, at most 8, by default. 0 decodes in this process.
        dtype: ``float32`` or ``float16``: how features are stored.
        max_bad: share of the images, in [0, 1], that may be bad.
        title: what the progress bar calls them.
        progress: show a bar on a terminal.
        clock: counts the time that this process waited for decoded images, ran the network, and wrote.

    Raises:
        InputError: more than ``max_bad`` of the images are bad, or all of them; the bank and its list stay.
    """
    classifier, source = as_classifier(classifier), as_source(source)
    check_share("max_bad", max_bad)
    if dtype not in DTYPES:
        raise InputError(f"unknown bank dtype '{dtype}'{nearest(dtype, DTYPES)}")
    probes = probes or {}
    names = tuple(sorted(probes))
    with contextlib.suppress(InputError):  # names of OOD images need not be the model's
        source = aligned(source, classifier.classes)
    key = BankKey(classifier.fingerprint, str(classifier.transform), source.identity, network_pass.key, dtype, names)
    writer = BankWriter(Path(cache or cache_root()).expanduser() / "banks", key)
    reaction = classifier.reaction()
    with writer.alone():
        bank = writer.finished(reaction)
        if bank is None:
            network = classifier.changed(network_pass.prepare).optimised().probed(probes)
            size = batch_size or (CPU_BATCH if classifier.device.type == "cpu" else GPU_BATCH)
            with torch.no_grad():
                seen = network_pass.run(network, classifier.noise())
            widths = {name: column.shape[1] for name, column in seen.aux.items()}
            start, size = writer.begin(len(source), classifier.head, reaction, size, widths)
            _fill(writer, network, classifier, source, network_pass, start, size, workers, title, progress, clock)
            bank = writer.finish()
    _check_bad(bank, source, max_bad, title)
    return bank


def _check_bad(bank: Bank, source: Source, max_bad: float, title: str) -> None:
    bad = len(bank.skipped)
    if bad > max_bad * len(source) or len(bank) == 0:
        _, image, reason = bank.skipped[0]
        raise InputError(
            f"{bad:,} of {len(source):,} {title} could not be used, more than the share "
            f"{max_bad:g} that may be (--max-bad); "
            f"the first: {image}: {reason}; all of them: {bank.path / 'skipped.csv'}"
        )


@torch.no_grad()
def _fill(
    writer: BankWriter,
    network: Network,
    classifier: Classifier,
    source: Source,
    network_pass: Pass,
    start: int,
    batch_size: int,
    workers: int | None,
    title: str,
    progress: bool,
    clock: Clock | None,
) -> None:
    clock = clock or Clock()
    with progress_bar(show=progress) as bar:
        task = bar.add_task(title, total=len(source) - start)
        batches = read_batches(source, classifier.transform, start, batch_size, workers)
        while batch := _next(batches, clock):
            status = np.full(batch.size, BAD, dtype=np.uint8)
            values: dict[str, Any] = {
                "status": status,
                "label": source.labels[batch.start : batch.start + batch.size],
            }
            values["pred"] = np.full(batch.size, -1, dtype=np.int64)
            for name, width in writer.widths.items():
                values[name] = np.zeros((batch.size, width), DTYPES[writer.key.dtype])
            if batch.images is not None:
                x = classifier.transform.normalise(batch.images.to(classifier.device, non_blocking=True))
                with clock("network"):
                    f = network_pass.run(network, x.contiguous(memory_format=torch.channels_last))
                    floats = {"h": f.h, **f.aux}
                    finite = torch.stack([t.isfinite().all(dim=1) for t in floats.values()]).all(dim=0).cpu().numpy()
                status[batch.good[finite]] = DONE
                values["pred"][batch.good] = f.pred.cpu().numpy()
                for name, t in floats.items():
                    values[name][batch.good] = _stored(t.cpu().numpy(), writer.key.dtype)
                batch.bad += [(int(i), "the network's features are not finite") for i in batch.good[~finite]]
            skipped = [(batch.start + i, source.name(batch.start + i), reason) for i, reason in sorted(batch.bad)]
            with clock("write"):
                writer.write(batch.start, values, skipped)
            bar.advance(task, batch.size)


def _next(batches: Iterator[Batch], clock: Clock) -> Batch | None:
    with clock("decode"):
        return next(batches, None)


def _stored(h: Any, dtype: str) -> Any:
    limit = np.finfo(DTYPES[dtype]).max
    if (np.abs(h[np.isfinite(h)]) > limit).any():
        raise InputError(f"features exceed {limit:g}, the largest {dtype}; store them as float32 (--bank-dtype)")
    return h.astype(DTYPES[dtype])
