"""Outliers that are drawn in the space of features, from the edges of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Self

import torch
from torch import Tensor, nn

from nescio.core.bounds import AtLeast
from nescio.core.errors import InputError
from nescio.core.features import Features, Head
from nescio.core.needs import Needs
from nescio.core.stage import Score
from nescio.methods.objective import Objective, View, exactly, gathered, precise
from nescio.models.heads import FeatureHead, head_of

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier

_LEAST = 1e-24
"""Smallest sum whose logarithm is taken."""
_RIDGE = 1e-4
"""Added to the covariance's diagonal, as the authors do."""


class VOSHead(FeatureHead, name="vos"):
    """A logistic regression on a weighted energy: ``a · log Σ_c max(w_c, 0) exp(f_c) + b``, a logit of being ID.

    ``f`` are the classification head's logits. As a column: the logit, ``(B, 1)``.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(n_classes))
        self.linear = nn.Linear(1, 1)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """For as many classes."""
        return cls(len(state["weight"]))

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """How likely features are those of ID images, as a logit."""
        logits = head.linear(h)
        largest = logits.amax(dim=1, keepdim=True)
        total = ((logits - largest).exp() * self.weight.relu()).sum(dim=1, keepdim=True)
        z: Tensor = self.linear(largest + total.clamp(min=_LEAST).log())
        return z


class VOSObjective(Objective, name="vos"):
    """Virtual outlier synthesis: cross entropy, and a head that separates features from unlikely samples.

    The latest features of each class wait in a queue. Their means, and the covariance that the classes share, make a
    Gaussian per class; of ``draws`` samples the ``select`` least likely are virtual outliers. ``VOSHead`` learns to
    separate them from the batch's features by a binary cross entropy, whose gradient reaches the backbone through the
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
    needs = Needs(heads=frozenset({"vos"}))
    queued: Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        weight: Annotated[float, AtLeast(0)] = 0.1,
        start: Annotated[float, AtLeast(0)] = 40.0,
        queue: Annotated[int, AtLeast(2)] = 1000,
        draws: Annotated[int, AtLeast(1)] = 10_000,
        select: Annotated[int, AtLeast(1)] = 1,
    ) -> None:
        super().__init__()
        self.weight, self.start, self.queue, self.draws, self.select = weight, start, queue, draws, select
        if select > draws:
            raise InputError(f"select={select} is more than draws={draws}; give a smaller select")
        self.waiting = False

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """A new energy head; and empty queues."""
        n, width = classifier.head.weight.shape
        self.register_buffer("queued", torch.zeros(n, self.queue, width, device=classifier.device))
        self.register_buffer("counts", torch.zeros(n, dtype=torch.int64, device=classifier.device))
        return {"vos": VOSHead(n).to(classifier.device)}

    def warning(self, means: Mapping[str, float]) -> str | None:
        """That there are no virtual outliers yet."""
        why = f"a class has had fewer than {self.queue} images so far, so there are no virtual outliers; lower queue="
        return why if self.waiting else None

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        own = nn.functional.cross_entropy(view.logits, view.labels)
        h, head = precise(view.h), head_of(heads, VOSHead)
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


class VOS(Score, name="vos"):
    """Probability of ID from the energy head that was trained on virtual outliers: ``sigmoid(a · E_w(x) + b)``.

    ``E_w`` is the logarithm of a weighted sum of the exponential logits. A logit ``(B, 1) -> score (B,)`` in [0, 1].

    Source: Du, Wang, Cai and Li, "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022, equation
    7; the authors' code for CIFAR scores with the plain ``energy``. Train a network for it with ``nescio train
    --objective vos``.
    """

    needs = Needs(features=False, heads=frozenset({"vos"}))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return f.probed("vos")[0][:, 0].to(torch.float64).sigmoid()
