"""The one-pass engine: decode in workers, run the network once per image, write what it leaves into a bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nescio.core.errors import InputError
from nescio.core.progress import Clock, progress_bar
from nescio.core.stage import Network
from nescio.data.loader import Batch, read_batches
from nescio.data.preprocess import AnyTransform
from nescio.data.source import Source
from nescio.run.bank import BAD, DONE, DTYPES, Bank
from nescio.run.bank_writer import BankWriter
from nescio.run.passes import Pass


@dataclass(frozen=True)
class Extraction:
    """One pass of a network over the images of a source.

    Attributes:
        network: the network as this pass runs it, on ``device``.
        device: where it is.
        transform: prepares the images.
        source: the images.
        network_pass: how to run the network.
        workers: decoding processes.
        title: what the progress bar calls the images.
        progress: show one.
        clock: counts the time that this process waited for decoded images, ran the network, and wrote.
    """

    network: Network
    device: torch.device
    transform: AnyTransform
    source: Source
    network_pass: Pass
    workers: int | None
    title: str
    progress: bool
    clock: Clock

    @torch.no_grad()
    def fill(self, writer: BankWriter, start: int, batch_size: int) -> None:
        """Write the features of the images from number ``start`` on into a bank."""
        with progress_bar(show=self.progress) as bar:
            task = bar.add_task(self.title, total=len(self.source) - start)
            batches = read_batches(self.source, self.transform, start, batch_size, self.workers)
            while batch := self._next(batches):
                values = self._rows(batch, writer)
                named = [(batch.start + i, reason) for i, reason in sorted(batch.bad)]
                with self.clock("write"):
                    writer.write(batch.start, values, [(i, self.source.name(i), reason) for i, reason in named])
                bar.advance(task, batch.size)

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        with self.clock("decode"):
            return next(batches, None)

    def _rows(self, batch: Batch, writer: BankWriter) -> dict[str, Any]:
        """What a batch leaves in each column; images whose features are not finite become bad ones."""
        kind = writer.key.dtype
        status = np.full(batch.size, BAD, dtype=np.uint8)
        labels = self.source.labels[batch.start : batch.start + batch.size]
        values: dict[str, Any] = {"status": status, "label": labels, "pred": np.full(batch.size, -1, dtype=np.int64)}
        values |= {name: np.zeros((batch.size, width), DTYPES[kind]) for name, width in writer.widths.items()}
        if batch.images is None:
            return values
        x = self.transform.normalise(batch.images.to(self.device, non_blocking=True))
        with self.clock("network"):
            f = self.network_pass.run(self.network, x.contiguous(memory_format=torch.channels_last))
            floats = {"h": f.h, **f.aux}
            finite = torch.stack([t.isfinite().all(dim=1) for t in floats.values()]).all(dim=0).cpu().numpy()
        status[batch.good[finite]] = DONE
        if f.has_logits:
            values["pred"][batch.good] = f.pred.cpu().numpy()
        for name, t in floats.items():
            values[name][batch.good] = _stored(t.cpu().numpy(), kind)
        batch.bad += [(int(i), "the network's features are not finite") for i in batch.good[~finite]]
        return values


def check_bad(bank: Bank, source: Source, max_bad: float, title: str) -> None:
    """Refuse a bank of which too many images are bad.

    Raises:
        InputError: more than the share ``max_bad`` of them are, or all.
    """
    bad = len(bank.skipped)
    if bad > max_bad * len(source) or len(bank) == 0:
        _, image, reason = bank.skipped[0]
        raise InputError(
            f"{bad:,} of {len(source):,} {title} could not be used, more than the share "
            f"{max_bad:g} that may be (--max-bad); "
            f"the first: {image}: {reason}; all of them: {bank.path / 'skipped.csv'}"
        )


def _stored(h: Any, dtype: str) -> Any:
    limit = np.finfo(DTYPES[dtype]).max
    if (np.abs(h[np.isfinite(h)]) > limit).any():
        raise InputError(f"features exceed {limit:g}, the largest {dtype}; store them as float32 (--bank-dtype)")
    return h.astype(DTYPES[dtype])
