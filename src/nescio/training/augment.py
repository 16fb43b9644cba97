"""Random crops and flips of whole batches, on the device, from numbers that are drawn for an epoch at a time."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from nescio.core.errors import check_positive, check_share
from nescio.core.options import Optioned
from nescio.data.preprocess import AnyTransform

DRAWS = 5
"""Uniform numbers per image."""
_EDGE = 1e-5


class Augment(Optioned):
    """Cuts one window out of every image and scales it to the size that the network sees.

    What it does to an image follows from the image's own draws: whatever the order, process or device, it is the same.
    """

    kind = "augment"
    flip: bool

    def __call__(self, images: Tensor, draws: Tensor, transform: AnyTransform) -> Tensor:
        """Windows of square uint8 images ``(B, 3, S, S)`` by draws ``(B, 5)`` in [0, 1): float, 0 to 255.

        Bilinear; what lies outside of an image is black. The test transform says what its centre crop shows.
        """
        size, centre = self.window(draws, transform)
        mirror = torch.where((draws[:, 4] < 0.5) & self.flip, -1.0, 1.0)
        theta = draws.new_zeros(len(draws), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = size[:, 0] * mirror, size[:, 1], centre
        grid = functional.affine_grid(theta, [len(images), 3, transform.crop, transform.crop], align_corners=False)
        # the border is repeated, so that enlarging darkens no edge, and what is outside cut off
        shown = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return shown * (grid.abs() <= 1 + _EDGE).all(dim=3)[:, None]

    @abstractmethod
    def window(self, draws: Tensor, transform: AnyTransform) -> tuple[Tensor, Tensor]:
        """Width and height ``(B, 2)``, in sides of the image, and centre ``(B, 2)``, in [-1, 1]."""


class Plain(Augment):
    """The centre crop of the test transform."""

    name = "none"
    flip = False

    def window(self, draws: Tensor, transform: AnyTransform) -> tuple[Tensor, Tensor]:
        """Always the same."""
        share, centre = _centre_crop(transform)
        return draws.new_full((len(draws), 2), share), draws.new_full((len(draws), 2), centre)


class Shift(Augment):
    """The test crop moved by a random number of pixels, up to ``by`` of its side each way: padded crops for CIFAR."""

    name = "shift"

    def __init__(self, *, by: float = 0.125, flip: bool = True) -> None:
        self.by = check_share("by", by)
        self.flip = flip

    def window(self, draws: Tensor, transform: AnyTransform) -> tuple[Tensor, Tensor]:
        """The test crop's size, its centre moved by whole pixels."""
        share, centre = _centre_crop(transform)
        most = round(self.by * transform.crop)
        steps = (draws[:, :2] * (2 * most + 1)).floor() - most
        return draws.new_full((len(draws), 2), share), centre + steps * (2 * share / transform.crop)


class Crop(Augment):
    """A random window of at least ``least`` of the area, with an aspect ratio of 3:4 to 4:3 where that fits."""

    name = "crop"

    def __init__(self, *, least: float = 0.25, flip: bool = True) -> None:
        self.least = check_positive("least", check_share("least", least))
        self.flip = flip

    def window(self, draws: Tensor, transform: AnyTransform) -> tuple[Tensor, Tensor]:
        """Area and the logarithm of the ratio are uniform; the place is, within the image."""
        del transform
        area = self.least + draws[:, 2] * (1 - self.least)
        widest = torch.minimum(draws.new_tensor(math.log(4 / 3)), -area.log())
        ratio = ((2 * draws[:, 3] - 1) * widest).exp()
        size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
        return size, (2 * draws[:, :2] - 1) * (1 - size)


def _centre_crop(transform: AnyTransform) -> tuple[float, float]:
    """The test crop's side, in sides of the resized image, and its centre, in [-1, 1], both ways alike."""
    whole = transform.resize or transform.crop
    left = round((whole - transform.crop) / 2)  # as torchvision places it
    return transform.crop / whole, (2 * left + transform.crop) / whole - 1


AUGMENTS: dict[str, type[Augment]] = {cls.name: cls for cls in (Plain, Shift, Crop)}
