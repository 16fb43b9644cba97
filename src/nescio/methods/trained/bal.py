"""A boundary around the features of the training images, learnt from features that are made up."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nescio.core import numerics
from nescio.core.bounds import AtLeast, Positive
from nescio.core.features import Features, Head
from nescio.core.needs import Needs
from nescio.core.stage import Score
from nescio.methods.objective import Objective, View, exactly, precise
from nescio.models.heads import FeatureHead, head_of

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier

NOISE = 64
"""Numbers that a made-up feature is made from."""
_WIDTH = 128


class BALHead(FeatureHead, name="bal"):
    """A discriminator: linear to 128, 64 and 1 with leaky ReLUs between, on standardised features; a logit of being ID.

    Mean and variance of each feature are those of training images, followed as a batch norm's are; all are divided by
    the root of L, so that a training image's are of length 1 or so, and large steps do not throw the layers off. As a
    column: the logit, ``(B, 1)``.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [nn.Linear(width, 128), nn.LeakyReLU(0.1), nn.Linear(128, 64), nn.LeakyReLU(0.1), nn.Linear(64, 1)]
        self.layers = nn.Sequential(*sizes)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """For as many features."""
        return cls(len(state["mean"]))

    def standardised(self, h: Tensor) -> Tensor:
        """Features in units of their spread, times the root of L."""
        least = self.var.mean() / 100  # a feature that is nearly always 0 would be blown up
        return (h - self.mean) / ((self.var + least) * h.shape[1]).sqrt()

    @torch.no_grad()
    def follow(self, h: Tensor) -> Tensor:
        """Standardised features of training images ``(B, L)``, after a tenth of the way to their mean and variance."""
        self.mean.lerp_(h.mean(dim=0).to(self.mean), 0.1)
        self.var.lerp_(h.var(dim=0, correction=0).to(self.var), 0.1)
        return self.standardised(h)

    def judge(self, standardised: Tensor) -> Tensor:
        """How likely features are those of ID images, as a logit ``(B, 1)``."""
        z: Tensor = self.layers(standardised)
        return z

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """The same of features as they are."""
        return self.judge(self.standardised(h))


class BALObjective(Objective, name="bal"):
    """Boundary-aware learning: cross entropy, and a head that separates training features from made-up ones.

    The head D is trained to say ID of features h, and OOD of three kinds of others: trivial ones u, uniform in a box
    twice as wide as that which the batch's features fill; those that a generator G makes from noise z, trained to be
    taken for h; and hard ones, a step ε from G's across D's boundary: ``v = G(z) - ε · sign(∇ log σ(D(G(z))))``. With
    ``s = softplus``:

        CE + mean s(-D(h)) + w · (mean s(D(u)) + mean s(D(G(z))) + mean s(D(v))) + mean s(-D(G(z)))

    where the last term alone reaches G, and it G alone. G ends with a batch norm: each of its features has the mean and
    the variance of training images', and what it has to learn is how they go together. The features are taken as they
    are, without gradient: so the network itself learns as with ``ce``. The score is ``bal``.

    Args:
        weight: w, 0 or more. 0.2 is that of the trivial features in the authors' code.
        eps: ε, above 0, in standard deviations of each feature over the training images.

    Source: Pei, Zhang, Fan and Meng, "Out-of-distribution Detection with Boundary Aware Learning", ECCV 2022: its
    modules and the signs of the four kinds. The authors' code holds a two-dimensional example alone, D's layers and
    score among it, so ε and the generator's layers are ours, as is the one loop: they train D and G after the network.
    """

    detector = "bal"
    needs = Needs(heads=frozenset({"bal"}))

    def __init__(self, *, weight: Annotated[float, AtLeast(0)] = 0.2, eps: Annotated[float, Positive] = 0.1) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """A new discriminator; and a generator."""
        width = classifier.head.weight.shape[1]
        sizes = [NOISE, _WIDTH, _WIDTH]
        hidden = [(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in itertools.pairwise(sizes)]
        last = nn.Linear(_WIDTH, width), nn.BatchNorm1d(width, affine=False)
        self.generator = nn.Sequential(*itertools.chain(*hidden, last))
        self.to(classifier.device)
        return {"bal": BALHead(width).to(classifier.device)}

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        own = nn.functional.cross_entropy(view.logits, view.labels)
        h, head = precise(view.h).detach(), head_of(heads, BALHead)
        with exactly(h):
            h = head.follow(h)
            made = head.standardised(head.mean + head.var.sqrt() * self.generator(torch.randn(len(h), NOISE).to(h)))
            trivial, hard = box(h), across(head, made.detach(), self.eps / h.shape[1] ** 0.5)
            softplus = nn.functional.softplus
            wrong = sum(softplus(head.judge(t)).mean() for t in (trivial, made.detach(), hard))
            caught = softplus(-head.judge(h)).mean() + self.weight * wrong
            at_rest = {name: p.detach() for name, p in head.layers.named_parameters()}
            taken = softplus(-functional_call(head.layers, at_rest, made)).mean()
        watched = {"cls_loss": own, "discriminator_loss": caught, "generator_loss": taken}
        return own + caught + taken, {name: t.detach() for name, t in watched.items()}


class BAL(Score, name="bal"):
    """Probability of lying within the features' boundary times the largest softmax: ``σ(D(h)) · max softmax(f)``.

    D is the discriminator that was trained on made-up features. Its logit ``(B, 1)`` and logits ``(B, C) -> score
    (B,)`` in [0, 1].

    Source: Pei, Zhang, Fan and Meng, "Out-of-distribution Detection with Boundary Aware Learning", ECCV 2022; the
    product is that of the authors' code. Train a network for it with ``nescio train --objective bal``.
    """

    needs = Needs(features=False, logits=True, heads=frozenset({"bal"}))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        confidence = f.logits.to(torch.float64).softmax(dim=1).amax(dim=1)
        return confidence * f.probed("bal")[0][:, 0].to(torch.float64).sigmoid()


def box(h: Tensor) -> Tensor:
    """As many features as ``h (B, L)``, uniform in the box around these, made twice as wide."""
    low, high = h.amin(dim=0), h.amax(dim=0)
    return (low + high) / 2 + (high - low) * (2 * torch.rand(h.shape).to(h) - 1)


def across(head: BALHead, made: Tensor, eps: float) -> Tensor:
    """Features ``made (B, L)`` after a step that makes D take each of them less for ID."""
    with torch.enable_grad():
        start = made.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.logsigmoid(head.judge(start)).sum(), start)
    return (start - numerics.sign_step(gradient, eps)).detach()
