"""Images through two graphs in ONNX Runtime, side by side."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nescio.core.errors import InputError
from nescio.data.loader import read_batches
from nescio.data.preprocess import AnyTransform
from nescio.data.source import Source
from nescio.run.runner import CPU_BATCH

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
_MOST_BAD = 0.01
"""Share of a set's images that may be unreadable."""


@dataclass(frozen=True)
class Compared:
    """Scores ``(n,)`` and predictions ``(n,)`` of the same images before and after; images without features left out.

    Where features are finite before and not after, the score is NaN: such an image is rejected.
    """

    before: Scores
    after: Scores
    preds: tuple[Labels, Labels]


@dataclass(frozen=True)
class Reader:
    """Images as a graph takes them.

    Attributes:
        transform: the network's.
        layout: of the pixels that the graph takes; None for normalised images.
        workers: decoding processes.
    """

    transform: AnyTransform
    layout: str | None
    workers: int | None

    def normalised(self, source: Source) -> Iterator[npt.NDArray[np.float32]]:
        """What the network inside sees, by batches.

        Raises:
            InputError: too many images cannot be read.
        """
        for batch in self._batches(source, "images for the ranges"):
            yield self.transform.normalise(batch).numpy()

    def by(self, both: Sequence[Any], source: Source, name: str, bar: Progress) -> Compared:
        """A set, judged by two graphs.

        Raises:
            InputError: too many images cannot be read.
        """
        task = bar.add_task(name, total=len(source))
        rows: list[list[Any]] = []
        for batch in self._batches(source, name):
            feed = {"image": self._pixels(batch)}
            rows.append([column for s in both for column in s.run(["score", "logits"], feed)])
            bar.advance(task, len(batch))
        before, logits, after, logits_after = (np.concatenate(column) for column in zip(*rows, strict=True))
        usable = ~np.isnan(before)
        return Compared(
            before[usable], after[usable], (logits[usable].argmax(axis=1), logits_after[usable].argmax(axis=1))
        )

    def _pixels(self, batch: Tensor) -> npt.NDArray[Any]:
        if self.layout is None:
            return self.transform.normalise(batch).numpy()
        return batch.numpy() if self.layout == "nchw" else batch.permute(0, 2, 3, 1).contiguous().numpy()

    def _batches(self, source: Source, name: str) -> Iterator[Tensor]:
        bad = []
        for batch in read_batches(source, self.transform, 0, CPU_BATCH, self.workers):
            bad += [(batch.start + i, reason) for i, reason in batch.bad]
            if batch.images is not None:
                yield batch.images
        if bad:
            at, reason = bad[0]
            message = f"{len(bad):,} of {len(source):,} {name} cannot be read; the first: {source.name(at)}: {reason}"
            if len(bad) > _MOST_BAD * len(source):
                raise InputError(message)
            log.warning("%s", message)


def sessions(*graphs: Any) -> list[Any]:
    """Graphs ready to run, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every optional input
    return [onnxruntime.InferenceSession(graph.SerializeToString(), options) for graph in graphs]
