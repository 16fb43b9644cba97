"""What an objective is, and what it sees of a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from nescio.core.features import Head
from nescio.core.needs import Needs
from nescio.core.options import Optioned, parse_named, register
from nescio.core.plugins import load_methods

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier

OBJECTIVES: dict[str, type[Objective]] = {}


@dataclass(eq=False)
class View:
    """A batch of training images as the network sees it. What is expensive is computed when it is asked for, once.

    Attributes:
        x: normalised images ``(B + O, 3, H, W)``: training images, then outliers where the objective wants some.
        labels: true classes of the training images ``(B,)``.
        network: the network in training mode.
        epoch: epochs since the start, with a fraction.
    """

    x: Tensor
    labels: Tensor
    network: TrainingNetwork
    epoch: float

    @cached_property
    def fmaps(self) -> Tensor:
        """The last feature map of all images ``(B + O, K, H, W)``, with gradient."""
        fmaps: Tensor = self.network.backbone(self.x)
        return fmaps

    @cached_property
    def features(self) -> Tensor:
        """Penultimate features of all images ``(B + O, L)``, with gradient."""
        return self.network.penultimate(self)

    @cached_property
    def outputs(self) -> Tensor:
        """Logits of all images ``(B + O, C)`` in float32 at least, with gradient."""
        outputs: Tensor = self.network.last(self.features.reshape(len(self.features), -1, *self.network.trailing))
        return precise(outputs.flatten(1))

    @cached_property
    def fmap(self) -> Tensor:
        """The last feature map of the training images ``(B, K, H, W)``."""
        return self._labelled(self.fmaps)

    @cached_property
    def h(self) -> Tensor:
        """Penultimate features of the training images ``(B, L)``."""
        return self._labelled(self.features)

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the training images ``(B, C)``."""
        return self._labelled(self.outputs)

    @cached_property
    def head(self) -> Head:
        """The classification layer, with gradient."""
        return self.network.head

    def add(self, images: Tensor) -> None:
        """Put more outliers behind the images that there are.

        Raises:
            RuntimeError: something was computed of these already.
        """
        if {"fmaps", "features"} & vars(self).keys():
            raise RuntimeError("the network has already run: add images before anything is computed from them")
        self.x = torch.cat([self.x, images])

    def others(self, t: Tensor) -> Tensor:
        """The outliers' rows of what is computed of all images."""
        return t[len(self.labels) :]

    def _labelled(self, t: Tensor) -> Tensor:
        # a slice would copy the whole gradient
        return t if len(t) == len(self.labels) else t[: len(self.labels)]


class TrainingNetwork(nn.Module):
    """The classifier's network in training mode, cut at its pooling if the objective reads feature maps.

    All parameters and statistics are shared with the classifier.
    """

    def __init__(self, classifier: Classifier, *, maps: bool) -> None:
        super().__init__()
        self.maps = maps
        self.last = classifier.layer
        self.trailing = (1, 1) if isinstance(self.last, nn.Conv2d) else ()
        self.body = nn.ModuleList(classifier.training_body(split=maps))
        self.at_rest = [classifier]  # in a list: its parameters are those of the body

    @property
    def backbone(self) -> nn.Module:
        """Images to the last feature map."""
        return self.body[0]

    @property
    def head(self) -> Head:
        """The classification layer as it is now, with gradient."""
        weight, bias = self.last.weight.flatten(1), self.last.bias  # type: ignore[operator]
        return Head(weight, weight.new_zeros(len(weight)) if bias is None else bias)  # type: ignore[arg-type]

    def penultimate(self, view: View) -> Tensor:
        """Penultimate features of all images: from the feature map, where it is taken on the way."""
        x = view.x
        if not self.maps:
            out: Any = self.body[0](x)
            h: Tensor = getattr(out, "logits", out)
        else:
            h = self.body[2](self.body[1](view.fmaps))
        return h.flatten(1)

    @torch.no_grad()
    def logits_at_positions(self, fmap: Tensor) -> Tensor:
        """As the classifier's, which is in evaluation mode, without gradient."""
        return self.at_rest[0].logits_at_positions(fmap)


class Objective(Optioned, nn.Module):
    """A loss over a batch, and the heads that it trains. Options are the keyword-only arguments of ``__init__``.

    What else it trains (parameters) or remembers between steps (buffers) is stored in the checkpoint, and in no file of
    weights. What is made for a network, it makes in ``heads``.

    ``forward`` returns the loss and what is worth watching. Under several processes each sees its part of the batch;
    the mean of their losses must be the loss of the whole: ``gathered`` and ``summed`` know the others' parts.
    """

    kind = "objective"
    detector: ClassVar[str]
    """The detector that belongs to it, as a spec string."""
    start: float = 0.0
    """Epochs before its own term begins."""
    shown: ClassVar[Mapping[str, str]] = {}
    """What the progress bar says of the numbers to be logged, as format strings."""

    def __init_subclass__(cls, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            register(cls, name, OBJECTIVES)

    @property
    def needs(self) -> Needs:
        """What it is trained with, with the options that it has: feature maps, views, outliers, heads of its own."""
        return Needs()

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """New heads beside the classification head, to be trained for this network; ``needs.heads`` names them.

        Raises:
            InputError: the network cannot serve them.
        """
        return {}

    def after_step(self, classifier: Classifier) -> None:
        """Bring the classification layer into the form in which its own prediction is that which is trained.

        It is called at the start and after every step.
        """

    def warning(self, means: Mapping[str, float]) -> str | None:
        """What a user should be warned of after an epoch, from the means of the numbers that were logged."""
        return None

    def before_save(self, classifier: Classifier) -> None:
        """Bring the classification head in step with what was trained, before the network is judged and stored."""

    @abstractmethod
    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and numbers to be logged (without gradient)."""


def parse_objective(spec: str) -> Objective:
    """The objective that a spec string names: ``ce``, ``ssod:gamma=0.95,balance=lwb``.

    Raises:
        InputError: the name or an option is unknown, or a value does not fit.
    """
    load_methods()
    return parse_named(spec, OBJECTIVES)


def from_uniform(logits: Tensor) -> Tensor:
    """Cross entropy of the uniform distribution and the softmax of logits ``(B, C)``, mean over the batch.

    That is ``KL(U ‖ softmax) + log C``.
    """
    return -logits.log_softmax(dim=1).mean()


def precise(t: Tensor) -> Tensor:
    """A tensor in float32, unless it is more than that: mixed precision gives less."""
    return t if t.dtype == torch.float64 else t.float()


def exactly(t: Tensor) -> torch.autocast:
    """A context in which what is computed from ``t`` has its precision, whatever the loop's."""
    return torch.autocast(t.device.type, enabled=False)


def summed(t: Tensor) -> Tensor:
    """The sum of a tensor without gradient over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        t = t.detach().clone()
        torch.distributed.all_reduce(t)
    return t


class _Gathering(torch.autograd.Function):
    """The rows of all processes, whose gradient is what all of them make of a row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        every = [torch.empty_like(rows) for _ in range(processes())]
        torch.distributed.all_gather(every, rows)
        return torch.cat(every)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient).chunk(processes())[torch.distributed.get_rank()]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, the first's first, with gradient. Each must have as many."""
    if processes() == 1:
        return rows
    every: Tensor = _Gathering.apply(rows.contiguous())
    return every


def processes() -> int:
    """How many processes train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1
