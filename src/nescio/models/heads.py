"""Heads that a network may be trained with, beside its classification head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self, TypeVar

from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.core.features import Head
from nescio.core.plugins import load_methods

HEADS: dict[str, type[SavedHead]] = {}


class SavedHead(nn.Module):
    """A head that is stored with a network's weights; a method's file defines it (``nescio.methods.trained``)."""

    name: ClassVar[str]
    objective: ClassVar[str]
    """What trains it; nothing where it is not trained."""
    probability: ClassVar[str] = ""
    """The score, as a spec string, that is P(ID) as this head gives it; nothing where it gives none."""

    def __init_subclass__(cls, name: str | None = None, objective: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            cls.name, cls.objective = name, name if objective is None else objective
            HEADS[name] = cls

    @classmethod
    def hint(cls) -> str:
        """How a network comes by one, for a message."""
        return f"nescio train --objective {cls.objective} trains one"

    @classmethod
    @abstractmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """A head that ``state`` fits."""


class PositionHead(SavedHead):
    """A head that reads the last feature map when a probe asks it to: ``(B, K, H, W)`` to a logit at every position.

    Sigmoids of the logits ``(B, 1, H, W)``, and of an image's mean logit, are probabilities of ID.
    """


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


def known_heads() -> Mapping[str, type[SavedHead]]:
    """Every kind of head, by its name."""
    load_methods()
    return HEADS


def probability(heads: nn.ModuleDict) -> str:
    """The score that is P(ID), as a spec string, where one of a network's heads gives it; else nothing."""
    known = known_heads()  # by name: a module of the user's own serves as the head whose name it has
    return next((known[name].probability for name in heads if name in known and known[name].probability), "")


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
    known = known_heads()
    for name in sorted({key.partition(".")[0] for key in state}):
        if name not in known:
            raise InputError(
                f"the weights have a head '{name}', which this version of nescio does not know; update nescio"
            )
        own = {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
        try:
            heads[name] = known[name].like(own)
            heads[name].load_state_dict(own)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as e:
            reason = str(e).strip().splitlines()[-1].strip()
            raise InputError(f"the weights of the head '{name}' do not fit it: {reason}") from None
    return heads
