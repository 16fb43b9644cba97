"""Heads that a network may be trained with, beside its classification head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.core.features import Head
from nescio.core.numerics import TURNS

HEADS: dict[str, type[SavedHead]] = {}
SIMILARITIES = ("cosine", "inner", "euclid")
_LEAST = 1e-24
"""Smallest squared length that is divided by."""


class SavedHead(nn.Module):
    """A head that is stored with a network's weights. It reads the last feature map, when a probe asks it to."""

    name: ClassVar[str]
    objective: ClassVar[str]
    """What trains it."""

    def __init_subclass__(cls, name: str | None = None, objective: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            cls.name, cls.objective = name, objective or name
            HEADS[name] = cls

    @classmethod
    def way(cls) -> str:
        """How a network comes by one, for a message."""
        return f"nescio train --objective {cls.objective} trains one"

    @classmethod
    @abstractmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """A head that ``state`` fits."""


class FeatureHead(SavedHead):
    """A head that reads the penultimate features, and the classification head, in every pass of the network."""

    decides: ClassVar[bool] = False
    """Whether the label follows from it, and not from the largest logit of the classification head."""

    @abstractmethod
    def forward(self, h: Tensor, head: Head) -> Tensor:
        """What it says of features ``h (B, L)``: ``(B, D)``, the column ``NAME.0`` of the features."""

    def decide(self, h: Tensor, head: Head) -> Tensor:
        """Logits ``(B, C)`` whose largest is the label."""
        return head.linear(h)


Kind = TypeVar("Kind", bound=SavedHead)


def head_of(heads: nn.ModuleDict, kind: type[Kind]) -> Kind:
    """The head of a kind, typed."""
    head = heads[kind.name]
    if not isinstance(head, kind):
        raise TypeError(f"head '{kind.name}' is a {type(head).__name__}, expected {kind.__name__}")
    return head


def decide(heads: nn.ModuleDict, h: Tensor, head: Head) -> Tensor:
    """Logits ``(B, C)`` whose largest is the label: the classification head's, unless another head decides."""
    own = next((m for m in heads.values() if isinstance(m, FeatureHead) and m.decides), None)
    return head.linear(h) if own is None else own.decide(h, head)


def read(heads: nn.ModuleDict, h: Tensor, head: Head) -> dict[str, Tensor]:
    """What the heads that read features say of ``h (B, L)``, by the names of their columns."""
    return {f"{name}.0": m(h, head) for name, m in heads.items() if isinstance(m, FeatureHead)}


def restore_heads(state: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The heads in a state dict of ``NAME.weight``, ``NAME.bias``.

    Raises:
        InputError: a head is not known to this version, or its weights do not make one.
    """
    heads: dict[str, nn.Module] = {}
    for name in sorted({key.partition(".")[0] for key in state}):
        if name not in HEADS:
            raise InputError(f"the weights hold a head '{name}', which this version of nescio does not know")
        own = {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
        try:
            heads[name] = HEADS[name].like(own)
            heads[name].load_state_dict(own)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as e:
            reason = str(e).strip().splitlines()[-1].strip()
            raise InputError(f"the weights of the head '{name}' do not make one: {reason}") from None
    return heads


class OODHead(SavedHead, nn.Conv2d, name="ood", objective="ssod"):
    """``f_ood``: one linear output for every position of a feature map, ``(B, K, H, W) -> (B, 1, H, W)`` logits.

    ``sigmoid`` of a logit is the probability of ID. Of a pooled map ``(B, K, 1, 1)`` it is equation 15 of Pei, "Image
    Background Serves as Good Proxy for Out-of-distribution Data", ICLR 2024. Equation 14 there has two outputs and a
    cross entropy: a softmax over two is the sigmoid of their difference, so one output, their difference, with a binary
    cross entropy is the same function and the same loss.
    """

    def __init__(self, channels: int) -> None:
        nn.Conv2d.__init__(self, channels, 1, kernel_size=1)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """For as many channels."""
        return cls(state["weight"].shape[1])


class DividingHead(FeatureHead, name="godin"):
    """Decomposed confidence: numerators ``h_i(x) (B, C)`` for the classes over one denominator ``g(x) (B, 1)``.

    ``g = sigmoid(BN(linear(h)))``. With the rows ``w_i`` of the classification layer the numerators are ``cos(w_i, h)``
    (``cosine``), ``w_i · h + b_i`` (``inner``) or ``-‖h - w_i / 2‖²`` (``euclid``). Each grows, for a given image, with
    the logit of a linear layer: that with rows of length 1 and no bias, the layer as it is, or that with the bias
    ``-‖w_i‖² / 4``. In that form (``tied``) the layer's own prediction is that of the quotients, as ``g > 0``.
    As a column: the largest numerator, and ``g``; ``(B, 2)``.
    """

    similarity: Tensor

    def __init__(self, width: int, similarity: str) -> None:
        super().__init__()
        self.kind = similarity
        self.linear, self.norm = nn.Linear(width, 1), nn.BatchNorm1d(1)
        self.register_buffer("similarity", torch.tensor(SIMILARITIES.index(similarity)))

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """Of the same width and similarity."""
        return cls(state["linear.weight"].shape[1], SIMILARITIES[int(state["similarity"])])

    def tied(self, head: Head) -> Head:
        """The classification layer in the form whose prediction is that of the numerators."""
        if self.kind == "cosine":
            return Head(nn.functional.normalize(head.weight), torch.zeros_like(head.bias))
        return head if self.kind == "inner" else Head(head.weight, -head.weight.square().sum(dim=1) / 4)

    def numerators(self, h: Tensor, head: Head) -> Tensor:
        """``h_i(x)``, ``(B, C)``."""
        linear, squared = self.tied(head).linear(h), h.square().sum(dim=1, keepdim=True)
        if self.kind == "cosine":
            return linear / squared.clamp(min=_LEAST).sqrt()
        return linear if self.kind == "inner" else linear - squared

    def denominator(self, h: Tensor) -> Tensor:
        """``g(x)``, ``(B, 1)`` in (0, 1)."""
        return torch.sigmoid(self.norm(self.linear(h)))

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """The largest numerator and the denominator."""
        return torch.cat([self.numerators(h, head).amax(dim=1, keepdim=True), self.denominator(h)], dim=1)


class GroupHead(FeatureHead, name="mos"):
    """One more class for each group of classes, "others": a linear layer from features to a logit per group.

    Softmax goes over the classes of a group and its "others"; the label is the class whose probability within its group
    is the highest. As a column: ``log p(others)`` of each group, ``(B, G)``.

    Args:
        width: L.
        group: the group of each class ``(C,)`` int64; each of ``0…G - 1`` has some.
    """

    decides = True
    group: Tensor
    members: Tensor
    absent: Tensor

    def __init__(self, width: int, group: Tensor) -> None:
        super().__init__()
        counts = group.bincount().tolist()
        self.linear = nn.Linear(width, len(counts))
        members = nn.utils.rnn.pad_sequence(list(torch.split(group.argsort(stable=True), counts)), batch_first=True)
        absent = torch.arange(max(counts)) >= torch.tensor(counts)[:, None]
        self.register_buffer("group", group)
        self.register_buffer("members", members)
        self.register_buffer("absent", absent)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """Of the same width and groups."""
        return cls(state["linear.weight"].shape[1], state["group"].cpu())

    def log_probabilities(self, h: Tensor, head: Head) -> tuple[Tensor, Tensor]:
        """Of each class within its group ``(B, C)``, and of each group's "others" ``(B, G)``."""
        logits, others = head.linear(h), self.linear(h)
        inside = logits[:, self.members].masked_fill(self.absent, -torch.inf)
        total = torch.cat([inside, others[..., None]], dim=2).logsumexp(dim=2)
        return logits - total[:, self.group], others - total

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """How likely none of each group's classes is."""
        return self.log_probabilities(h, head)[1]

    def decide(self, h: Tensor, head: Head) -> Tensor:
        """Log-probabilities within the groups."""
        return self.log_probabilities(h, head)[0]


class EnergyHead(FeatureHead, name="vos"):
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


class NegativeHead(FeatureHead, name="neglabel"):
    """Texts of negative labels in groups, beside those of the classes that are the classification layer's rows.

    As a column, for each group, ``log Σ_p exp(r_gp · h)`` over its rows: ``(B, G)``.

    Args:
        rows: texts at the length of the logit scale ``(G, P, L)``.
    """

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    @classmethod
    def way(cls) -> str:
        """How a network comes by one, for a message."""
        return "--model 'clip:NAME:negatives=FILE' makes one"

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """Of as many texts."""
        return cls(torch.empty_like(state["rows"]))

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """How near features are to each group's texts."""
        del head
        near = h @ self.rows.flatten(0, 1).T
        return near.reshape(-1, *self.rows.shape[:2]).logsumexp(dim=2)


class BoundaryHead(FeatureHead, name="bal"):
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
        del head
        return self.judge(self.standardised(h))


class TurnedHead(FeatureHead, name="csi"):
    """A linear layer to a logit for each class and each turn of an image by 90°: class y turned k times is ``k C + y``.

    As a column: the logits, ``(B, 4 C)``.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, TURNS * n_classes)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """Of the same width and classes."""
        outputs, width = state["linear.weight"].shape
        return cls(width, outputs // TURNS)

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """Logits of classes and turns."""
        del head
        z: Tensor = self.linear(h)
        return z
