"""Outliers that are drawn in the space of features, from the edges of the classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, check_at_least
from nescio.methods.objective import Objective, View, exactly, gathered, precise
from nescio.models.classifier import Classifier
from nescio.models.heads import EnergyHead, head_of

_RIDGE = 1e-4
"""Added to the covariance's diagonal, as the authors do."""


class VOS(Objective, name="vos"):
    """Virtual outlier synthesis: cross entropy, and a head that tells features from unlikely draws around the classes.

    The latest features of each class wait in a queue. Their means, and the covariance that the classes share, make a
    Gaussian per class; of ``draws`` samples the ``select`` least likely are virtual outliers. ``EnergyHead`` learns to
    tell them from the batch's features by a binary cross entropy, whose gradient reaches the backbone through the
    latter: ``loss = CE + β · BCE``. Before ``start``, until all queues are full, and with β = 0 it is cross entropy.
    The score is ``vos``.

    Args:
        weight: β, 0 or more. 0.1 is the authors'.
        start: epochs of cross entropy alone. The authors take 40 of 100.
        queue: features per class that are kept, C · queue · L numbers in all.
        draws: samples per class and step.
        select: of these, virtual outliers.

    A sample's density depends on its whitened length alone. So ``draws`` lengths are drawn, and directions for those
    that are selected: the distribution is that of whole samples. With several processes the queues are those of the
    whole batch, and each draws for itself.

    Source: Du, Wang, Cai and Li, "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022, equations
    1 to 6; defaults are those of the authors' code for CIFAR, whose two logits are one here, their difference.
    """

    detector = "vos"
    queued: Tensor
    counts: Tensor

    def __init__(
        self, *, weight: float = 0.1, start: float = 40.0, queue: int = 1000, draws: int = 10_000, select: int = 1
    ) -> None:
        super().__init__()
        self.weight = check_at_least("weight", weight, 0)
        self.start = check_at_least("start", start, 0)
        self.queue = check_at_least("queue", queue, 2)
        self.draws = check_at_least("draws", draws, 1)
        self.select = check_at_least("select", select, 1)
        if select > draws:
            raise InputError(f"select={select} of draws={draws} samples are more than there are")
        self.waiting = False

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """A new energy head; and empty queues."""
        n, width = classifier.head.weight.shape
        self.register_buffer("queued", torch.zeros(n, self.queue, width, device=classifier.device))
        self.register_buffer("counts", torch.zeros(n, dtype=torch.int64, device=classifier.device))
        return {"vos": EnergyHead(n).to(classifier.device)}

    def concern(self, means: Mapping[str, float]) -> str | None:
        """That there are no virtual outliers yet."""
        del means
        told = f"a class has not had {self.queue} images yet, so there are no virtual outliers; see vos:queue="
        return told if self.waiting else None

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        own = nn.functional.cross_entropy(view.logits, view.labels)
        h, head = precise(view.h), head_of(heads, EnergyHead)
        self.remember(gathered(h.detach()), gathered(view.labels))
        due = view.epoch >= self.start
        self.waiting = due and int(self.counts.amin()) < self.queue
        with exactly(h):
            z = head(h, view.head)
            if due and not self.waiting:
                virtual = head(self.virtual(), view.head)
                term = torch.cat([nn.functional.softplus(-z), nn.functional.softplus(virtual)]).mean()
            else:
                term = 0 * z.sum()  # the head takes part in every step: what does not is not trained
        return own + self.weight * term, {"cls_loss": own.detach(), "ood_loss": term.detach()}

    @torch.no_grad()
    def remember(self, h: Tensor, labels: Tensor) -> None:
        """Put features ``(B, L)`` in the places of their classes' oldest."""
        same = labels[:, None] == labels
        earlier = same.tril(-1).sum(dim=1)  # images of the same class before each one in the batch
        latest = same.triu(1).sum(dim=1) < self.queue
        at = (self.counts[labels] + earlier) % self.queue
        self.queued[labels[latest], at[latest]] = h[latest].to(self.queued.dtype)
        self.counts += labels.bincount(minlength=len(self.counts))

    @torch.no_grad()
    def virtual(self) -> Tensor:
        """Virtual outliers ``(C · select, L)``."""
        n, _, width = self.queued.shape
        means = self.queued.mean(dim=1)
        spread = (self.queued - means[:, None]).flatten(0, 1)
        covariance = spread.T @ spread / len(spread) + _RIDGE * torch.eye(width).to(spread)
        half_squares = torch._standard_gamma(spread.new_full((n, self.draws), width / 2))  # noqa: SLF001
        lengths = (2 * half_squares.topk(self.select, dim=1).values).sqrt()
        directions = nn.functional.normalize(torch.randn(n, self.select, width).to(spread), dim=2)
        outliers: Tensor = means[:, None] + lengths[..., None] * directions @ torch.linalg.cholesky(covariance).T
        return outliers.flatten(0, 1)
