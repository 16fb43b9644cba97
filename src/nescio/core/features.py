"""What one pass through a network leaves behind: the head, and a record of features of a batch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nescio.core.errors import InputError, Missing

PLAIN_PASS = "plain"  # noqa: S105 - a pass through a network
"""Names the pass that runs the network as it is, without an input stage."""


@dataclass(frozen=True, eq=False)
class Head:
    """The last linear layer: ``weight (C, L)``, ``bias (C,)`` (zeros where the model has none).

    Both are float32 or float64, and everything is computed in that type; of any other type they become float32.
    ``keep``, where there is one, makes the head depend on the predicted class: it gives for class c the mask ``(C, L)``
    of the weights that images predicted as c are read with, and for classes ``(B,)`` the masks ``(B, C, L)``.
    """

    weight: Tensor
    bias: Tensor
    keep: Callable[[int | Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            shapes = f"{tuple(self.weight.shape)}, {tuple(self.bias.shape)}"
            raise InputError(f"expected a head with weight (C, L) and bias (C,), got {shapes}")
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        for name in ("weight", "bias"):
            if (tensor := getattr(self, name)).dtype != dtype:
                object.__setattr__(self, name, tensor.to(dtype))

    def __call__(self, h: Tensor, pred: Tensor) -> Tensor:
        """Logits ``(B, C)`` of features ``h (B, L)``, predicted as ``pred (B,)``."""
        if self.keep is None:
            return self.linear(h)
        if torch.compiler.is_compiling():  # a graph of any batch has no groups, but a mask for each image
            return ((self.weight * self.keep(pred)) @ h[:, :, None])[:, :, 0] + self.bias
        order = pred.argsort(stable=True)  # rows of one class together, so that each mask is made once
        classes, counts = torch.unique_consecutive(pred[order], return_counts=True)
        logits = [
            torch.nn.functional.linear(rows, self.weight * self.keep(c), self.bias)
            for c, rows in zip(classes.tolist(), torch.split(h[order], counts.tolist()), strict=True)
        ]
        return torch.cat(logits)[order.argsort()] if logits else self.linear(h)

    def linear(self, h: Tensor) -> Tensor:
        """``W h + b``: logits ``(B, C)`` from all weights, whatever the prediction."""
        return torch.nn.functional.linear(h, self.weight, self.bias)

    def __repr__(self) -> str:
        return f"Head({self.n_classes:,} classes of {self.weight.shape[1]:,} features)"

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

    def to(self, device: torch.device | str) -> Head:
        """The head on a device."""
        return dataclasses.replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def scaled(self, factor: float) -> Head:
        """The head whose logits are ``factor`` times as large."""
        return dataclasses.replace(self, weight=self.weight * factor, bias=self.bias * factor)

    def masked(self, mask: Tensor) -> Head:
        """The head with some weights set to zero: those where ``mask (C, L)`` is zero."""
        return dataclasses.replace(self, weight=self.weight * mask)


class NoHead(Head):
    """Stands where there is no classification head: an encoder's features, or logits alone. What asks for it fails."""

    def __init__(self) -> None:
        """Nothing is set."""

    def __getattr__(self, name: str) -> Tensor:
        if name in ("weight", "bias"):
            raise Missing(
                "there is no classification head: give head=(W, b) or head=nn.Linear, or use a model that has one"
            )
        raise AttributeError(name)

    def __repr__(self) -> str:
        return "NoHead()"

    def to(self, device: torch.device | str) -> Head:  # noqa: ARG002 - there is nothing to move
        """As it is."""
        return self

    @property
    def fingerprint(self) -> str:
        """Of nothing."""
        return ""


NO_HEAD = NoHead()


class Columns(Mapping[str, Tensor]):
    """Named tensors of B rows, each read only when it is asked for, and once."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = readers
        self._values: dict[str, Tensor] = {}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Columns:
        """Columns that are in memory already."""
        return cls({name: lambda t=t: t for name, t in tensors.items()})  # type: ignore[misc]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            self._values[name] = self._readers[name]()
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def rows(self, pick: Tensor | slice) -> Columns:
        """Some rows of every column, by index or as a slice."""
        return Columns({name: lambda name=name: self[name][pick] for name in self})  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Features:
    """A batch of penultimate features and what belongs to them. Nothing here is ever changed in place.

    Attributes:
        h: penultimate features ``(B, L)``, of any type of number; kept in the head's.
        head: the linear layer that reads them.
        pred: the network's own prediction ``(B,)`` int64: the raw one, whatever later stages do to ``h`` or ``head``.
        labels: true class ``(B,)`` int64, -1 where unknown; None where nobody asked.
        aux: named tensors of B rows: ``PROBE.i``, what probe ``PROBE`` made of the i-th feature map.
        network_pass: key of the pass that made the record: a detector with an input stage reads its own pass alone.
        raw: the record as the network produced it (itself, for such a record).
    """

    h: Tensor
    head: Head
    pred: Tensor
    labels: Tensor | None = None
    aux: Columns = field(default_factory=lambda: Columns({}))
    network_pass: str = PLAIN_PASS
    _raw: Features | None = None
    _logits: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("h", "pred"):
            if getattr(self, name) is None:
                object.__delattr__(self, name)  # whoever reads it is told so, by __getattr__
        if "h" in vars(self) and self.h.dtype != (kind := self._dtype):
            object.__setattr__(self, "h", self.h.to(kind))

    @property
    def _dtype(self) -> torch.dtype:
        """What is computed in: the head's type, else float32 or float64."""
        if self.has_head:
            return self.head.weight.dtype
        return torch.float64 if self.h.dtype == torch.float64 else torch.float32

    def __getattr__(self, name: str) -> Any:
        if name == "h":
            raise Missing("there are only logits: give the penultimate features too")
        if name == "pred":  # of the record as it was made, whatever stages did to it since; kept where it is found
            found = self.logits.argmax(dim=1) if self._raw is None else self._raw.pred
            object.__setattr__(self, "pred", found)
            return found
        raise AttributeError(f"'Features' object has no attribute '{name}'")

    @classmethod
    def of(
        cls,
        h: Tensor | None = None,
        *,
        head: Head = NO_HEAD,
        logits: Tensor | None = None,
        pred: Tensor | None = None,
        labels: Tensor | None = None,
        aux: Mapping[str, Tensor] | None = None,
    ) -> Features:
        """A record of what there is: features, logits, or both. Without ``pred``, the prediction is the logits'."""
        # None is what __post_init__ takes away, so that no reader has to ask for it
        return cls(h, head, pred, labels, Columns.of(aux or {}), _logits=logits)  # type: ignore[arg-type]

    @property
    def has_head(self) -> bool:
        """Whether there is a classification head."""
        return not isinstance(self.head, NoHead)

    @property
    def has_h(self) -> bool:
        """Whether there are penultimate features."""
        return "h" in vars(self)

    @property
    def has_logits(self) -> bool:
        """Whether there are logits, or what they follow from."""
        return self._logits is not None or (self.has_head and self.has_h)

    def __len__(self) -> int:
        return (self.h if self.has_h else self.logits).shape[0]

    @property
    def width(self) -> int:
        """L; C where there are logits alone."""
        return (self.h if self.has_h else self.logits).shape[1]

    def __repr__(self) -> str:
        return f"Features({len(self):,} {self.described})"

    @property
    def described(self) -> str:
        """What the rows are, in words."""
        known = self.labels is not None and bool((self.labels >= 0).any())
        what = "features" if self.has_h else "logits"
        return f"rows of {self.width:,} {what}{', labelled' if known else ''}"

    def tensors(self) -> dict[str, Tensor | None]:
        """What there is of each row, by field; None where it is missing or follows from the others."""
        return {name: vars(self).get(name) for name in ("h", "pred", "labels", "_logits")}

    def to(self, device: torch.device | str) -> Features:
        """The record on a device, with all its columns."""
        moved = {name: None if t is None else t.to(device) for name, t in self.tensors().items()}
        columns = Columns.of({name: t.to(device) for name, t in self.aux.items()})
        return self.with_fields(**moved, head=self.head.to(device), aux=columns, _raw=None)

    def with_fields(self, **changes: Any) -> Features:
        """The record with other fields; what is missing stays so."""
        fields = {f.name: vars(self).get(f.name) for f in dataclasses.fields(self)}
        return Features(**fields | changes)  # type: ignore[arg-type]  # None as in of()

    @property
    def raw(self) -> Features:
        """The record as the network produced it."""
        return self if self._raw is None else self._raw

    @cached_property
    def logits(self) -> Tensor:
        """Logits ``(B, C)``: computed from ``h`` and ``head`` when asked for, unless a stage replaced them."""
        if self._logits is not None:
            return self._logits
        return self.head.linear(self.h) if self.head.keep is None else self.head(self.h, self.pred)

    @cached_property
    def _finite(self) -> Tensor:
        rows = self.h if self.has_h else self.logits
        finite = rows.sum(dim=1).isfinite()  # a thirtieth of the time; but a sum can overflow
        return finite if bool(finite.all()) else rows.isfinite().all(dim=1)

    def finite(self, columns: Collection[str] = ()) -> Tensor:
        """Whether everything in a row is finite: h, and what probes or heads of these names said. ``(B,)`` bool."""
        read = [self.aux[name] for name in self.aux if name.rpartition(".")[0] in columns]
        read += [] if self._logits is None or not self.has_h else [self._logits]
        return functools.reduce(torch.logical_and, (t.isfinite().all(dim=1) for t in read), self._finite)

    def rows(self, pick: Tensor | slice) -> Features:
        """Some rows of the record, by index or as a slice."""
        cut = {name: None if t is None else t[pick] for name, t in self.tensors().items()}
        raw = None if self._raw is None else self._raw.rows(pick)
        return self.with_fields(**cut, aux=self.aux.rows(pick), _raw=raw)

    def blocks(self, rows: int) -> Iterator[Features]:
        """The record in consecutive parts of at most ``rows`` rows; ``h`` is not copied."""
        for start in range(0, len(self), rows):
            yield self.rows(slice(start, start + rows))

    def probed(self, probe: str) -> list[Tensor]:
        """What a probe made of each feature map, by depth: tensors ``(B, D_i)``.

        Raises:
            Missing: the features were made without this probe.
        """
        names = [name for name in self.aux if name.rpartition(".")[0] == probe]
        if not names:
            raise Missing(
                f"these features lack the probe '{probe}': make them with session.features(images, readers=[detector])"
            )
        return [self.aux[name] for name in sorted(names, key=lambda name: int(name.rpartition(".")[2]))]

    def with_h(self, h: Tensor) -> Features:
        """The record with other features; its logits follow from them."""
        return self.with_fields(h=h, _logits=None, _raw=self.raw)

    def with_head(self, head: Head) -> Features:
        """The record with another head; its logits follow from it."""
        return self.with_fields(head=head, _logits=None, _raw=self.raw)

    def with_logits(self, logits: Tensor) -> Features:
        """The record with its logits replaced."""
        return self.with_fields(_logits=logits, _raw=self.raw)
