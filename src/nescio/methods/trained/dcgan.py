"""A small generator of images and its discriminator, as convolutions (DCGAN)."""

from __future__ import annotations

import itertools

from torch import nn

NOISE = 100
"""Numbers that an image is made from."""
SIDE = 32
"""Side of the images, in pixels."""
WIDTH = 64
"""What all numbers of channels are multiples of, in the paper."""


def generator(width: int = WIDTH) -> nn.Module:
    """Noise ``(B, 100, 1, 1)`` to images ``(B, 3, 32, 32)`` in (0, 1).

    Source: Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
    Adversarial Networks", ICLR 2016, at the size and widths of Lee et al., ICLR 2018.
    """
    widths = [NOISE, 8 * width, 4 * width, 2 * width]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        grow = (4, 1, 0) if i == 0 else (4, 2, 1)  # 1 × 1 to 4 × 4, then twice the side
        layers += [nn.ConvTranspose2d(before, after, *grow, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False), nn.Sigmoid()]
    return nn.Sequential(*layers).apply(_begin)


def discriminator(width: int = WIDTH) -> nn.Module:
    """Images ``(B, 3, 32, 32)`` to a logit of being no generator's, ``(B, 1, 1, 1)``. Source: as the generator."""
    widths = [3, 2 * width, 4 * width, 8 * width]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        norm = [nn.BatchNorm2d(after)] if i else []
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), *norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, bias=False)).apply(_begin)


def _begin(module: nn.Module) -> None:
    """Small random weights, as the paper has them."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
