"""Confidence that is trained away at the edges of the training images, where a generator looks for images."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nescio.core.bounds import AtLeast
from nescio.core.needs import Needs
from nescio.methods.objective import Objective, View, from_uniform, precise

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier

NOISE = 100
"""Numbers that an image is made from."""
SIDE = 32
"""Side of the images, in pixels."""
WIDTH = 64
"""What all numbers of channels are multiples of, in the paper."""


class ConfObjective(Objective, name="conf"):
    """The confidence loss: cross entropy, and ``KL(U ‖ softmax f)`` on boundary images, which a small GAN makes.

    ``CE(f(x), y) + β · KL(U ‖ softmax f(G(z)))``. The discriminator D learns to separate training images from G's; the
    generator G to be taken for them, and at the same time to make images that the classifier is unsure of: it minimises
    ``-log D(G(z)) + β · KL``. So its images lie at the edge of the training images' distribution. With ``outliers``
    those that are given take the place of G's, and there is no GAN. With β = 0 the network learns by cross entropy
    alone. The score is the largest softmax, as in the paper.

    Args:
        weight: β, 0 or more. Of the paper's choices 0.1 (CIFAR-10) and 1 (SVHN), the first.
        width: the GAN's numbers of channels are multiples of it, if there is one. 64 is the paper's; its time grows
            with the square.
        outliers: outliers per training image (``--outliers``), 0 for generated images.

    Source: Lee, Lee, Lee and Shin, "Training Confidence-calibrated Classifiers for Detecting Out-of-Distribution
    Samples", ICLR 2018, equations 1, 3 and 4. The authors step D, G and the classifier one after the other, each with
    an Adam of its own (lr 2e-4); here one optimiser steps all three at once, from one batch of noise: the GAN wants a
    small rate and an adaptive optimiser (``--optimizer adamw:lr=2e-4``). Generated images are of 32 px, enlarged for
    networks that see larger ones, and go through the network in one batch with the training images, so that batch norms
    see in training what they average.
    """

    detector = "msp"

    def __init__(
        self,
        *,
        weight: Annotated[float, AtLeast(0)] = 0.1,
        width: Annotated[int, AtLeast(1)] = WIDTH,
        outliers: Annotated[int, AtLeast(0)] = 0,
    ) -> None:
        super().__init__()
        self.weight, self.width, self.outliers = weight, width, outliers

    @property
    def needs(self) -> Needs:
        """The outliers that it is to learn from."""
        return Needs(outliers=self.outliers)

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """None; and a new GAN."""
        if not self.outliers:
            self.transform = classifier.transform
            self.generator, self.discriminator = generator(self.width), discriminator(self.width)
            self.to(classifier.device)
        return {}

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        watched, of_gan = {}, view.x.new_zeros(())
        if not self.outliers:
            images = view.x
            noise = torch.randn(len(images), NOISE, 1, 1).to(images)
            made = self.transform.normalise(255 * self.generator(noise)).to(images)
            view.add(nn.functional.interpolate(made, images.shape[2:], mode="bilinear") if _differs(images) else made)
            caught, taken = self.adversaries(images, made)
            of_gan = caught + taken
            watched = {"discriminator_loss": caught.detach(), "generator_loss": taken.detach()}
        own = nn.functional.cross_entropy(view.logits, view.labels)
        boundary = view.others(view.outputs)
        kl = from_uniform(boundary) - math.log(boundary.shape[1])
        return own + self.weight * kl + of_gan, {"cls_loss": own.detach(), "kl": kl.detach(), **watched}

    def adversaries(self, images: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """What D minimises, without gradient for G, and what G does, without gradient for D."""
        real = nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear") if _differs(images) else images
        seen, fake = (precise(self.discriminator(x)).flatten() for x in (real, made.detach()))
        at_rest = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        judged = precise(functional_call(self.discriminator, at_rest, made)).flatten()
        softplus = nn.functional.softplus
        return softplus(-seen).mean() + softplus(fake).mean(), softplus(-judged).mean()


def _differs(images: Tensor) -> bool:
    """Whether the GAN's images are of another size than these."""
    return images.shape[2:] != (SIDE, SIDE)


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
