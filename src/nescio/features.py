"""What one pass through a network leaves behind: the head, and a record of features per batch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from nescio.errors import InputError


@dataclass(frozen=True, eq=False)
class Head:
    """The last linear layer: ``weight (C, L)``, ``bias (C,)`` (zeros where the model has none)."""

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            shapes = f"{tuple(self.weight.shape)}, {tuple(self.bias.shape)}"
            raise ValueError(f"expected a head of weight (C, L) and bias (C,), got {shapes}")

    def __call__(self, h: Tensor, pred: Tensor) -> Tensor:
        """Logits ``(B, C)`` of features ``h (B, L)``; this plain head does not depend on ``pred (B,)``."""
        del pred
        return self.linear(h)

    def linear(self, h: Tensor) -> Tensor:
        """``W h + b``: the raw logits ``(B, C)``."""
        return torch.nn.functional.linear(h, self.weight, self.bias)

    @property
    def n_classes(self) -> int:
        """C."""
        return self.weight.shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of both tensors: what a fitted detector is bound to."""
        digest = hashlib.blake2b(digest_size=16)
        for t in (self.weight, self.bias):
            digest.update(t.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def scaled(self, factor: float) -> Head:
        """The head whose logits are ``factor`` times as large."""
        return Head(self.weight * factor, self.bias * factor)


@dataclass(frozen=True, eq=False)
class Features:
    """A batch of penultimate features and what belongs to them. Nothing here is ever changed in place.

    Attributes:
        h: penultimate features ``(B, L)``.
        head: the linear layer that reads them.
        pred: the network's own prediction ``(B,)`` int64: the raw one, whatever later stages do to ``h`` or ``head``.
        labels: true class ``(B,)`` int64, -1 where unknown; None where nobody asked.
        aux: named tensors of B rows (extra heads, probes).
        raw: the record as the network produced it (itself, for such a record).
    """

    h: Tensor
    head: Head
    pred: Tensor
    labels: Tensor | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    _raw: Features | None = None
    _logits: Tensor | None = None

    def __len__(self) -> int:
        return self.h.shape[0]

    @property
    def raw(self) -> Features:
        """The record as the network produced it."""
        return self._raw or self

    @cached_property
    def logits(self) -> Tensor:
        """Logits ``(B, C)``: computed from ``h`` and ``head`` when asked for, unless a stage replaced them."""
        return self._logits if self._logits is not None else self.head(self.h, self.pred)

    def rows(self, pick: Tensor) -> Features:
        """Some rows of the record, by index."""
        labels = None if self.labels is None else self.labels[pick]
        logits = None if self._logits is None else self._logits[pick]
        aux = {name: values[pick] for name, values in self.aux.items()}
        raw = None if self._raw is None else self._raw.rows(pick)
        return Features(self.h[pick], self.head, self.pred[pick], labels, aux, raw, logits)

    def with_h(self, h: Tensor) -> Features:
        """The record with other features; its logits follow from them."""
        return dataclasses.replace(self, h=h, _logits=None, _raw=self.raw)

    def with_head(self, head: Head) -> Features:
        """The record with another head; its logits follow from it."""
        return dataclasses.replace(self, head=head, _logits=None, _raw=self.raw)

    def with_logits(self, logits: Tensor) -> Features:
        """The record with its logits replaced."""
        return dataclasses.replace(self, _logits=logits, _raw=self.raw)


@dataclass(frozen=True)
class TrainingData:
    """What stages are fitted on: the head, and fresh iterators over labelled chunks of features.

    ``chunks`` is None where the user gave no training images; a stage that asks for them then fails by name.
    """

    head: Head
    chunks: Callable[[], Iterator[Features]] | None = None

    def __call__(self) -> Iterator[Features]:
        """A fresh pass over the training features."""
        if self.chunks is None:
            raise InputError("no training images were given")
        return self.chunks()

    def map(self, change: Callable[[Features], Features]) -> TrainingData:
        """The same data as later stages see it."""
        if self.chunks is None:
            return self
        return TrainingData(self.head, lambda: map(change, self()))
