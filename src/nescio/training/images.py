"""Feeding the loop: images held in memory (or on the device) as uint8 where they fit, else read again every epoch."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nescio.core.errors import InputError
from nescio.core.progress import progress_bar
from nescio.data.decode import decode
from nescio.data.loader import default_workers, read_batches, read_spans
from nescio.data.preprocess import AnyTransform
from nescio.data.source import Rows, Source
from nescio.data.transform import Transform
from nescio.data.workers import in_order
from nescio.training.augment import DRAWS, Augment
from nescio.training.hardware import Hardware

HELD = 2 << 30
"""Bytes of decoded images that are held in main memory; on a GPU, up to half of what is free there."""
_READ = 256

log = logging.getLogger(__name__)


class Images:
    """The images of a source as square uint8 tensors, by number.

    Args:
        source: the images.
        transform: ``crop`` is the side of the squares.
        device: where batches go.
        hardware: whether to keep them decoded (by default where they fit), decoding processes, and the share of the
            images that may be unreadable; these are left out.
        title: what the progress bar calls them.
    """

    def __init__(
        self, source: Source, transform: Transform, *, device: torch.device, hardware: Hardware, title: str = "images"
    ) -> None:
        self.source, self.transform, self.device = source, transform, device
        self.workers, self.max_bad, self.title = hardware.workers, hardware.max_bad, title
        self.held: Tensor | None = None
        self.bad: dict[int, str] = {}  # reasons, by number
        size = len(source) * 3 * transform.crop**2
        if hardware.hold or (hardware.hold is None and size <= _room(device)):
            self._read_all(progress=hardware.progress)
        self.labels = torch.from_numpy(self.source.labels)

    def __len__(self) -> int:
        return len(self.source)

    def _read_all(self, *, progress: bool) -> None:
        side = self.transform.crop
        held = torch.empty(len(self.source), 3, side, side, dtype=torch.uint8, device=self.device)
        good: list[int] = []
        with progress_bar(show=progress) as bar:
            task = bar.add_task(f"reading {self.title}", total=len(self.source))
            for batch in read_batches(self.source, self.transform, 0, _READ, self.workers):
                if batch.images is not None:
                    held[len(good) : len(good) + len(batch.good)] = batch.images.to(self.device)
                good += [batch.start + int(i) for i in batch.good]
                self._report([(batch.start + i, reason) for i, reason in batch.bad])
                bar.advance(task, batch.size)
        self.held = held[: len(good)]
        self.source = Rows(self.source, good) if self.bad else self.source

    def _report(self, bad: Sequence[tuple[int, str]]) -> None:
        """Note images that cannot be read; too many are an error."""
        for i, reason in bad:
            if i not in self.bad:
                log.warning("leaving out one of the %s: %s: %s", self.title, self.source.name(i), reason)
        self.bad |= dict(bad)
        if len(self.bad) > self.max_bad * len(self.source):
            raise InputError(
                f"{len(self.bad):,} or more of {len(self.source):,} {self.title} cannot be read, and at most the share "
                f"{self.max_bad:g} is allowed: max_bad= (--max-bad)"
            )

    def batches(self, groups: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images ``(B, 3, S, S)`` uint8 and their numbers ``(B,)`` for each list of numbers, on the device.

        Of an image that cannot be read neither comes.

        Raises:
            InputError: no image of a list can be read.
        """
        if self.held is not None:
            for numbers in groups:
                where = torch.as_tensor(numbers, dtype=torch.int64, device=self.device)
                yield self.held[where], where
            return
        # one that ended its process would do it again in every epoch
        chosen = [[i for i in numbers if i not in self.bad] for numbers in groups]
        ends = itertools.accumulate(map(len, chosen))
        spans = [range(end - len(numbers), end) for end, numbers in zip(ends, chosen, strict=True)]
        read = read_spans(Rows(self.source, list(itertools.chain(*chosen))), self.transform, spans, self.workers)
        for asked, numbers, batch in zip(groups, chosen, read, strict=True):
            self._report([(numbers[i], reason) for i, reason in batch.bad])
            if batch.images is None:
                raise InputError(f"{len(asked)} {self.title} in a row cannot be read; the first: {self.bad[asked[0]]}")
            good = torch.from_numpy(np.asarray(numbers)[batch.good]).to(self.device)
            # in the order in memory that held images have: a step takes the same bits from either
            images = batch.images.to(self.device, non_blocking=True, memory_format=torch.contiguous_format)
            yield images, good


@dataclass
class RunImages:
    """The images of a run on its device: training, validation, watched OOD sets by name, and outliers if any."""

    train: Images
    val: Images
    watched: dict[str, Images] = field(default_factory=dict)
    outliers: Images | None = None

    @classmethod
    def read(
        cls,
        sources: Mapping[str, Source],
        watched: Mapping[str, Source],
        transform: Transform,
        *,
        device: torch.device,
        hardware: Hardware,
    ) -> Self:
        """Read ``train``, ``val`` and perhaps ``outliers``: what is augmented as squares, the others as in a test."""
        side = held_side(sources["train"], transform, hardware.workers)
        square = Transform(crop=side, interpolation=transform.interpolation)

        def read(source: Source, seen: Transform, title: str) -> Images:
            return Images(source, seen, device=device, hardware=hardware, title=f"{title} images")

        train, val = read(sources["train"], square, "training"), read(sources["val"], transform, "validation")
        others = {name: read(source, transform, name) for name, source in watched.items()}
        outliers = read(sources["outliers"], square, "outliers") if "outliers" in sources else None
        return cls(train, val, others, outliers)


def held_side(source: Source, transform: Transform, workers: int | None = 0) -> int:
    """Side of the squares to keep: that of the resized image, or less if all of the first images are smaller."""
    found = in_order(
        partial(_short_side, source), min(64, len(source)), default_workers() if workers is None else workers
    )
    return min(transform.resize or transform.crop, max(found, default=0) or transform.crop)


def _short_side(source: Source, number: int, entering: Callable[[int], None]) -> int:
    """The short side of an image; 0 where it cannot be read, which reading all of them reports."""
    try:
        entering(number)
        return min(decode(source.read(number)).size)
    except InputError:
        raise  # not this image's fault
    except Exception:  # noqa: BLE001 - whatever one image does, the others go on
        return 0


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return HELD


class Stream:
    """Batches in random order, augmented and normalised, on the device. All that is drawn follows from ``draws``.

    Args:
        images: the images; where they are fewer than the epoch needs, they come again in another order.
        draws: a generator on the CPU.
        steps: batches of the epoch.
        size: images per batch.
        views: how often each image is augmented; the views stand one behind the other, all images in each.
    """

    def __init__(self, images: Images, draws: torch.Generator, steps: int, size: int, views: int = 1) -> None:
        n = len(images)
        orders = [torch.randperm(n, generator=draws) for _ in range(math.ceil(steps * size / n))]
        self.batches = torch.split(torch.cat(orders)[: steps * size], size)
        self.windows = [torch.rand(n, DRAWS, generator=draws).to(images.device) for _ in range(views)]
        self.images = images

    def micro_batches(
        self, done: int, rank: int, world: int, accumulate: int, augment: Augment, transform: AnyTransform
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images ``(views · B, 3, H, W)`` and their numbers ``(B,)``, a part of a process's share at a time.

        Args:
            done: steps of the epoch that are behind.
            rank: number of this process.
            world: how many there are.
            accumulate: that each share is computed in.
            augment: what is done to an image.
            transform: of test images.
        """
        pieces = [part.tolist() for batch in self.batches[done:] for part in batch[rank::world].chunk(accumulate)]
        for pixels, numbers in self.images.batches(pieces):
            shown = torch.cat([augment(pixels, windows[numbers], transform) for windows in self.windows])
            yield transform.normalise(shown).contiguous(memory_format=torch.channels_last), numbers
