"""An epoch's batches of one set of images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nescio.data.transform import Transform
from nescio.training.augment import DRAWS, Augment
from nescio.training.images import Images


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

    def parts(
        self, done: int, rank: int, world: int, parts: int, augment: Augment, transform: Transform
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images ``(views · B, 3, H, W)`` and their numbers ``(B,)``, a part of a process's share at a time.

        Args:
            done: steps of the epoch that are behind.
            rank: number of this process.
            world: how many there are.
            parts: that each share is computed in.
            augment: what is done to an image.
            transform: of test images.
        """
        pieces = [part.tolist() for batch in self.batches[done:] for part in batch[rank::world].chunk(parts)]
        for pixels, numbers in self.images.batches(pieces):
            shown = torch.cat([augment(pixels, windows[numbers], transform) for windows in self.windows])
            yield transform.normalise(shown).contiguous(memory_format=torch.channels_last), numbers
