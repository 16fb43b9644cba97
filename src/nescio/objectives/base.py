"""What an objective is, and what it sees of a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nescio.features import Head
from nescio.models.classifier import Classifier
from nescio.options import Optioned, parse_named

OBJECTIVES: dict[str, type[Objective]] = {}


@dataclass(eq=False)
class View:
    """A batch of training images as the network sees it. What is expensive is computed when it is asked for, once.

    Attributes:
        x: normalised images ``(B, 3, H, W)``.
        labels: true classes ``(B,)``.
        network: the network in training mode.
        epoch: epochs since the start, with a fraction.
    """

    x: Tensor
    labels: Tensor
    network: TrainingNetwork
    epoch: float

    @cached_property
    def fmap(self) -> Tensor:
        """The last feature map ``(B, K, H, W)``, with gradient."""
        fmap: Tensor = self.network.backbone(self.x)
        return fmap

    @cached_property
    def h(self) -> Tensor:
        """Penultimate features ``(B, L)``, with gradient."""
        return self.network.penultimate(self)

    @cached_property
    def head(self) -> Head:
        """The classification layer, with gradient."""
        return self.network.head

    @cached_property
    def logits(self) -> Tensor:
        """Logits ``(B, C)`` in float32 at least, with gradient."""
        logits: Tensor = self.network.last(self.h.reshape(len(self.h), -1, *self.network.trailing))
        return precise(logits.flatten(1))


class TrainingNetwork(nn.Module):
    """The classifier's network in training mode, cut at its pooling if the objective reads feature maps.

    All parameters and statistics are shared with the classifier.
    """

    def __init__(self, classifier: Classifier, *, maps: bool) -> None:
        super().__init__()
        self.maps = maps
        self.last = classifier.layer
        self.trailing = (1, 1) if isinstance(self.last, nn.Conv2d) else ()
        parts = classifier.training_body(split=maps)
        self.body = nn.ModuleList(parts)
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
        """Penultimate features ``(B, L)``: from the feature map, where it is taken on the way."""
        x = view.x
        if not self.maps:
            out: Any = self.body[0](x)
            h: Tensor = getattr(out, "logits", out)
        else:
            h = self.body[2](self.body[1](view.fmap))
        return h.flatten(1)

    @torch.no_grad()
    def logits_at_positions(self, fmap: Tensor) -> Tensor:
        """As the classifier's, which is in evaluation mode, without gradient."""
        return self.at_rest[0].logits_at_positions(fmap)


class Objective(Optioned, nn.Module):
    """A loss over a batch, and the heads that it trains. Options are the keyword-only arguments of ``__init__``.

    ``forward`` returns the loss and what is worth watching. Under several processes each sees its part of the batch;
    the mean of their losses must be the loss of the whole.
    """

    kind = "objective"
    detector: ClassVar[str]
    """The detector that belongs to it, as a spec string."""
    needs_maps: ClassVar[bool] = False
    """Whether it reads feature maps."""
    told: ClassVar[Mapping[str, str]] = {}
    """What the progress bar says of the numbers to be logged, as format strings."""

    def __init_subclass__(cls, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            cls.name = name
            OBJECTIVES[name] = cls

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """New heads beside the classification head, to be trained for this network.

        Raises:
            InputError: the network cannot serve them.
        """
        del classifier
        return {}

    def settle(self, classifier: Classifier) -> None:
        """Bring the classification layer into the form in which its own prediction is that which is trained.

        It is called at the start and after every step.
        """

    def concern(self, means: Mapping[str, float]) -> str | None:
        """What a user should be warned of after an epoch, from the means of the numbers that were logged."""
        del means
        return None

    @abstractmethod
    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and numbers to be logged (without gradient)."""


def parse_objective(spec: str) -> Objective:
    """The objective that a spec string names: ``ce``, ``ssod:gamma=0.95,balance=lwb``.

    Raises:
        InputError: the name or an option is unknown, or a value does not fit.
    """
    return parse_named(spec, OBJECTIVES)


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


def processes() -> int:
    """How many processes train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1
