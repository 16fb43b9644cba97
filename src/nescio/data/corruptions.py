"""Images that are corrupted until nothing on them is what a classifier was trained for, each always in the same way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from nescio.core.errors import check_choice
from nescio.data.decode import decode
from nescio.data.preprocess import AnyTransform
from nescio.data.source import Derived, Source, unlabelled

GRID = 4
"""Tiles per side that a shuffled image is cut into."""
_BLUR = 1 / 8
_CORNER = 1 / 3


def shuffle_tiles(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images ``(B, 3, H, W)`` with their 4 × 4 tiles in another order for each; a rest that fits no tile is cut off."""
    grid = min(GRID, *images.shape[2:])
    high, wide = images.shape[2] // grid, images.shape[3] // grid
    cut = images[:, :, : high * grid, : wide * grid].unfold(2, high, high).unfold(3, wide, wide)
    tiles = cut.flatten(2, 3).transpose(1, 2)  # (B, 16, 3, h, w)
    order = torch.rand(len(images), grid * grid, generator=draws).argsort(dim=1).to(images.device)
    tiles = tiles.gather(1, order[:, :, None, None, None].expand_as(tiles))
    rows = tiles.reshape(-1, grid, grid, *tiles.shape[2:]).permute(0, 3, 1, 4, 2, 5)  # (B, 3, 4, h, 4, w)
    whole: Tensor = rows.flatten(4, 5).flatten(2, 3)
    if whole.shape[2:] != images.shape[2:]:
        whole = torch.nn.functional.interpolate(whole, images.shape[2:], mode="nearest")
    return whole.contiguous()


def shuffle_pixels(images: Tensor, draws: torch.Generator) -> Tensor:
    """The pixels of each image in another order: its colours, nothing else."""
    flat = images.flatten(2)
    order = torch.rand(len(images), flat.shape[2], generator=draws).argsort(dim=1)
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(images)


def blur(images: Tensor, _draws: torch.Generator) -> Tensor:
    """A Gaussian of an eighth of the side: a few smooth spots are left."""
    side = min(images.shape[2:])
    sigma = max(side * _BLUR, 0.5)
    kernel = min(2 * round(2 * sigma) + 1, 2 * ((side - 1) // 2) + 1)
    blurred: Tensor = tvf.gaussian_blur(images, [kernel, kernel], [sigma, sigma])
    return blurred


def corner(images: Tensor, draws: torch.Generator) -> Tensor:
    """A corner, a third of the side wide, enlarged: backdrop, mostly, where the object stands in the middle."""
    side = images.shape[2]
    width = max(1, round(side * _CORNER))
    corners = torch.randint(2, (len(images), 2), generator=draws) * (side - width)
    cut = [image[:, y : y + width, x : x + width] for image, (y, x) in zip(images, corners.tolist(), strict=True)]
    enlarged: Tensor = tvf.resize(torch.stack(cut), [side, side], antialias=True)
    return enlarged


CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "tiles": shuffle_tiles,
    "pixels": shuffle_pixels,
    "blur": blur,
    "corner": corner,
}


class Corrupted(Derived):
    """A source whose images are corrupted as the network would see them, before its normalisation.

    Args:
        base: the images.
        corruption: one of ``CORRUPTIONS``.
        transform: the network's; its resizing and a centre crop to a square come before the corruption.
    """

    def __init__(self, base: Source, corruption: str, transform: AnyTransform) -> None:
        self.corruption = check_choice("corruption", corruption, list(CORRUPTIONS))
        self.transform = transform.square()
        super().__init__(base, "changed", self.corruption, str(self.transform))
        self.classes, self.labels = None, unlabelled(len(base))

    def name(self, i: int) -> str:
        """As the base names it, and the corruption."""
        return f"{self.base.name(i)} ({self.corruption})"

    def read(self, i: int) -> Image.Image:
        """Image ``i``, corrupted by draws that follow from its number."""
        pixels = self.transform.geometry(decode(self.base.read(i)))
        corrupted = CORRUPTIONS[self.corruption](pixels[None], torch.Generator().manual_seed(i))[0]
        image: Image.Image = tvf.to_pil_image(corrupted)
        return image
