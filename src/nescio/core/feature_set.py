"""Any number of rows of features with what belongs to them, read in chunks as often as needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, Missing
from nescio.core.features import NO_HEAD, PLAIN_PASS, Columns, Features, Head, NoHead
from nescio.core.together import current

T = TypeVar("T")

Numbers = npt.NDArray[np.int64]
Chunks = Callable[[], Iterator[Features]]
AnyHead = Head | nn.Module | tuple[Any, Any]
BLOCK = 1 << 20
"""Entries of ``h`` that are scored at once: 4 MB, which a core's cache holds from one operation to the next."""


class FeatureSet:
    """Rows of penultimate features ``(N, L)``, or logits ``(N, C)``, with their labels, predictions and columns.

    >>> FeatureSet(np.zeros((4, 3)), labels=[0, 1, 0, 1])
    FeatureSet(4 rows of 3 features, labelled)

    Args:
        h: penultimate features ``(N, L)``; may be missing where there are logits.
        labels: true classes ``(N,)``, whole numbers from 0 on; -1 where unknown.
        head: the classification head: ``(W, b)`` of shapes ``(C, L)`` and ``(C,)``, an ``nn.Linear``, or a ``Head``.
        logits: ``(N, C)``; computed from ``h`` and ``head`` where they are not given.
        pred: predicted classes ``(N,)``; those of the largest logit by default.
        columns: what probes and other heads say of each row, by name, ``(N, D)``.

    Raises:
        InputError: shapes do not fit, or what should be numbers are not.
    """

    def __init__(
        self,
        h: Any = None,
        labels: Any = None,
        *,
        head: AnyHead | None = None,
        logits: Any = None,
        pred: Any = None,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        self.head = as_head(head)
        self.held_out: FeatureSet | None = None
        """ID features that no stage is fitted on, where they are given, to put scores on a common scale."""
        self._chunks: Chunks | None = None
        self.unlabelled = False
        """Whether it is known, without reading anything, that no row has a label."""
        if h is not None or logits is not None:
            record = _record(h, labels, self.head, logits, pred, columns or {})
            self.head, self.unlabelled = record.head, record.labels is None
            self._chunks = lambda: iter([record])

    @classmethod
    def stream(cls, chunks: Chunks | None, head: Head = NO_HEAD, held_out: FeatureSet | None = None) -> FeatureSet:
        """Rows that come in chunks, afresh at each call of ``chunks``; None where there are no training images."""
        made = FeatureSet(head=head)
        made._chunks, made.held_out = chunks, held_out
        return made

    def chunks(self) -> Iterator[Features]:
        """All rows in order, once.

        Raises:
            Missing: there are none, since none were given.
        """
        if self._chunks is None:
            raise Missing("there are no training features: give them as fit(h, labels)")
        return self._chunks()

    @property
    def has_rows(self) -> bool:
        """Whether there is anything to read."""
        return self._chunks is not None

    def map(self, change: Callable[[Features], Features]) -> FeatureSet:
        """The same rows as ``change`` makes them."""
        chunks = (lambda: map(change, self.chunks())) if self.has_rows else None
        return FeatureSet.stream(chunks, self.head, None if self.held_out is None else self.held_out.map(change))

    @property
    def raw(self) -> FeatureSet:
        """The same rows as the network produced them."""
        return self.map(lambda f: f.raw)

    def with_held_out(self, held_out: FeatureSet | None) -> FeatureSet:
        """The same rows, and ID features apart from them."""
        return FeatureSet.stream(self.chunks if self.has_rows else None, self.head, held_out)

    def with_head(self, head: Head) -> FeatureSet:
        """The same rows, as another head reads them; logits and predictions follow from it."""
        same = self.map(lambda f: f.with_fields(head=head, pred=None, _logits=None, _raw=None))
        same.head = head
        return same

    def asked(self, what: Hashable, compute: Callable[[], T]) -> Callable[[], T]:
        """What follows from the rows, for a stage's ``fit``: computed once for all stages that are fitted together.

        It begins at once, in the same read as whatever else was asked for; calling what is returned waits for it.

        Args:
            what: a name of it, with all that it depends on beside the rows.
            compute: what reads the rows. Where it raises ``InputError``, whoever asks calls it anew, so that the
                message names the right stage.
        """
        here = current()
        if here is None:
            return compute
        task, new = here.owner.task(compute, (self, what))

        def result() -> T:
            try:
                found: T = task.result()
            except InputError:
                if new:
                    raise
                return compute()
            here.seconds += task.seconds if new else 0
            return found

        return result

    def rows(self, pick: Any) -> FeatureSet:
        """Some rows, by position ``(K,)``, in that order, by mask ``(N,)`` or as a slice; held in memory."""
        return of_record(self.take(pick))

    def take(self, pick: Any) -> Features:
        """Some rows as one record."""
        return self.record().rows(pick if isinstance(pick, slice) else torch.as_tensor(pick))

    @cached_property
    def labels(self) -> Numbers:
        """True classes ``(N,)``, -1 where unknown."""
        return self._numbers(lambda f: f.labels)

    @cached_property
    def pred(self) -> Numbers:
        """Raw predictions ``(N,)``, -1 where there are none."""
        return self._numbers(lambda f: f.pred if f.has_logits else None)

    def _numbers(self, column: Callable[[Features], Tensor | None]) -> Numbers:
        columns = [(len(f), column(f)) for f in self.chunks()]
        return np.concatenate(
            [np.full(n, -1) if t is None else t.cpu().numpy() for n, t in columns] or [np.empty(0)]
        ).astype(np.int64)

    @property
    def accuracy(self) -> float:
        """Share of the labelled rows whose raw prediction is right; NaN where none is labelled."""
        known = self.labels >= 0
        return float((self.pred == self.labels)[known].mean()) if known.any() else float("nan")

    @property
    def positions(self) -> Numbers:
        """Where each row stands in the set of images that the features are of ``(N,)``."""
        return np.arange(len(self))

    @property
    def skipped(self) -> list[tuple[int, str, str]]:
        """``(position, image, reason)`` of each image that could not be used."""
        return []

    @property
    def network_pass(self) -> str:
        """Key of the pass that made the rows."""
        first = next(self.chunks(), None) if self.has_rows else None
        return PLAIN_PASS if first is None else first.network_pass

    def record(self) -> Features:
        """All rows as one record."""
        return joined(list(self.chunks()))

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(map(len, self.chunks())) if self.has_rows else 0

    def __repr__(self) -> str:
        first = next(self.chunks(), None) if self.has_rows else None
        if first is None:
            return "FeatureSet(no rows)"
        return f"FeatureSet({len(self):,} {first.described})"

    @cached_property
    def n_classes(self) -> int:
        """C: of the head, else of the logits, else the largest label and one.

        Raises:
            Missing: there is none of these.
        """
        if not isinstance(self.head, NoHead):
            return self.head.n_classes
        most = -1
        for f in self.chunks():
            if f.has_logits:
                return f.logits.shape[1]
            if f.labels is not None and len(f.labels):
                most = max(most, int(f.labels.max()))
        if most < 0:
            raise Missing("the number of classes is unknown: give labels or a head")
        return most + 1

    @cached_property
    def device(self) -> torch.device:
        """Where the head is, else the rows."""
        if not isinstance(self.head, NoHead):
            return self.head.weight.device
        first = next(self.chunks(), None) if self.has_rows else None
        return torch.device("cpu") if first is None else (first.h if first.has_h else first.logits).device

    @cached_property
    def dtype(self) -> torch.dtype:
        """What is computed in: the head's type, else that of the rows."""
        if not isinstance(self.head, NoHead):
            return self.head.weight.dtype
        first = next(self.chunks(), None)
        return torch.float32 if first is None or not first.has_h else first.h.dtype


def of_record(record: Features) -> FeatureSet:
    """The rows of one record."""
    return FeatureSet.stream(lambda: iter([record]), record.head)


def joined(records: list[Features]) -> Features:
    """Several records of the same kind as one.

    Raises:
        InputError: there are none.
    """
    if not records:
        raise InputError("there are no features: give at least one row")
    first = records[0]
    if len(records) == 1:
        return first

    columns = {name: torch.cat([f.aux[name] for f in records]) for name in first.aux}
    there = [name for name, t in first.tensors().items() if t is not None]
    own = {name: torch.cat([vars(f)[name] for f in records]) for name in there}
    return first.with_fields(**own, aux=Columns.of(columns), _raw=None)


def as_head(value: Any) -> Head:
    """A head from what people hold: ``(W, b)``, a linear layer, a ``Head``; ``NO_HEAD`` for None.

    Raises:
        InputError: it is none of these, or its shapes do not fit.
    """
    if value is None or isinstance(value, Head):
        return NO_HEAD if value is None else value
    if isinstance(value, nn.Module):
        weight, bias = getattr(value, "weight", None), getattr(value, "bias", None)
        if not isinstance(weight, Tensor) or weight.flatten(1).shape[1:] != weight.shape[1:2]:
            raise InputError(f"head={type(value).__name__} is not a linear layer; give an nn.Linear or head=(W, b)")
        return Head(weight.detach().flatten(1), weight.new_zeros(len(weight)) if bias is None else bias.detach())
    if isinstance(value, tuple | list) and len(value) == 2:
        weight, bias = (None if t is None else floats(t, "head") for t in value)
        if weight is not None:
            return Head(weight, weight.new_zeros(len(weight)) if bias is None else bias)
    raise InputError(f"expected a head as (W, b), an nn.Linear or a Head, got {type(value).__name__}")


def floats(value: Any, what: str) -> Tensor:
    """A tensor of float32 or float64.

    Raises:
        InputError: they are no numbers.
    """
    if isinstance(value, Tensor):
        t = value.detach()
    else:
        try:
            array = np.asarray(value)
            plain = array.dtype.isnative and min(array.strides, default=0) >= 0
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writ")  # nothing here writes to it
                t = torch.from_numpy(array if plain else array.astype(array.dtype.newbyteorder("="), order="C"))
        except (TypeError, ValueError) as e:
            got = f"{type(value).__name__} ({e})"
            raise InputError(f"{what}: expected an array or tensor of numbers, got {got}") from None
    if t.is_complex() or t.dtype == torch.bool:
        raise InputError(f"{what}: expected an array or tensor of numbers, got {t.dtype}")
    return t if t.dtype in (torch.float32, torch.float64) else t.to(torch.float32)


def _classes(value: Any, n: int, what: str) -> Tensor:
    """Class numbers ``(n,)`` int64.

    Raises:
        InputError: they are no whole numbers, or not as many.
    """
    try:
        t = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except TypeError:
        raise InputError(f"{what}: expected whole numbers from 0 on, got {np.array(value).dtype}") from None
    if t.ndim != 1 or len(t) != n:
        raise InputError(f"{what}: expected one for each of {n:,} rows, (N,), got {tuple(t.shape)}")
    if t.is_floating_point() and bool((t == t.round()).all()):
        t = t.to(torch.int64)
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise InputError(f"{what}: expected whole numbers from 0 on, -1 where unknown, got {t.dtype}")
    return t.to(torch.int64)


def _record(h: Any, labels: Any, head: Head, logits: Any, pred: Any, columns: Mapping[str, Any]) -> Features:
    rows = {name: floats(t, name) for name, t in {"h": h, "logits": logits, **columns}.items() if t is not None}
    shapes = {name: tuple(t.shape) for name, t in rows.items()}
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if len(other) != 2:
            raise InputError(f"{name}: expected a matrix with one row per image, got {other}")
        if other[0] != shape[0]:
            raise InputError(f"{name} has {other[0]:,} rows, but {first} has {shape[0]:,}: give as many of each")
    if not isinstance(head, NoHead):
        device = rows[first].device
        head = head if head.weight.device == device else head.to(device)
    return Features.of(
        rows.get("h"),
        head=head,
        logits=rows.get("logits"),
        pred=None if pred is None else _classes(pred, shape[0], "pred").to(rows[first].device),
        labels=None if labels is None else _classes(labels, shape[0], "labels").to(rows[first].device),
        aux={name: rows[name] for name in columns},
    )
