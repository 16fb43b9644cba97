"""What a stage or an objective reads, declared in one place: refusals, plans of passes and the catalogue follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from nescio.core.features import Head


@dataclass(frozen=True)
class Maps:
    """What a probe sees of a batch.

    Attributes:
        layers: feature maps ``(B, K_i, H_i, W_i)`` by depth: the last one of each resolution through which all later
            ones are computed. The very last is the one that the network pools.
        rest: the network from that last feature map on: ``(B, K, H, W)`` to penultimate features ``(B, L)``.
        head: the classification head.
        heads: the heads that the network was trained with beside the classification head, by name.
    """

    layers: Sequence[Tensor]
    rest: Callable[[Tensor], Tensor]
    head: Head
    heads: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


Probe = Callable[[Maps], Sequence[Tensor]]
"""Reduces feature maps within the network's pass to tensors ``(B, D_i)``, which are columns of the features."""


@dataclass(frozen=True)
class Needs:
    """What must be there for a stage to fit and score, or for an objective to train. ``a | b``: what both need.

    Attributes:
        features: penultimate features of the image that is scored.
        head: the classification head, weight and bias.
        logits: logits or the prediction, which follow from the head, or are given.
        train: training features to fit on.
        labels: the true classes of these.
        held_out: ID features apart from the training features; without, a share of these is kept apart.
        images: ID images, over which the network is run to choose something.
        gradients: the gradient of the network.
        rerun: what a pass of its own over the images follows from: the stage's ``options`` (training images then go
            through it, too), the fitted ``pipeline`` before the score, or the ``score``; empty for the plain pass.
        probes: what is computed from feature maps, by a name that says all it depends on.
        heads: names of heads beside the classification head: the network must have them, or the objective trains them.
        maps: feature maps, in training.
        views: how often each training image is augmented; a batch holds the images, and their labels, that often.
        outliers: outliers per training image.
    """

    features: bool = True
    head: bool = False
    logits: bool = False
    train: bool = False
    labels: bool = False
    held_out: bool = False
    images: bool = False
    gradients: bool = False
    rerun: Literal["", "options", "pipeline", "score"] = ""
    probes: Mapping[str, Probe] = field(default_factory=dict)
    heads: frozenset[str] = frozenset()
    maps: bool = False
    views: int = 1
    outliers: int = 0

    def __or__(self, other: Needs) -> Needs:
        """What is needed by either."""
        mine, yours = ({f.name: getattr(n, f.name) for f in dataclasses.fields(Needs)} for n in (self, other))
        return Needs(**{name: _both(value, yours[name]) for name, value in mine.items()})

    @property
    def fitting(self) -> bool:
        """Whether fitting reads ID images, in whatever way."""
        return self.train or self.held_out or self.images

    @property
    def columns(self) -> frozenset[str]:
        """Names of the probes and heads whose columns are read."""
        return self.heads | frozenset(self.probes)


def _both(one: Any, other: Any) -> Any:
    """The larger of two numbers, of texts the one that says something; sets and tables joined."""
    return one | other if isinstance(one, Mapping | frozenset) else max(one, other)
