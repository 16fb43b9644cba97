"""What a detector is made from: spec strings, stages, functions; and what its stages must find to score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nescio.core.errors import InputError, Missing
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.options import Option
from nescio.core.spec import parse_stages
from nescio.core.stage import Chain, Score, Stage

AnyStages = str | Stage | Chain | Sequence[Any]
_GIVE_HEAD = "give head=(W, b), or use a model with a classification head"


class Function(Score):
    """A function of the caller's own, from features to scores ``(B,)``."""

    needs = Needs(features=False)  # nobody knows what it reads

    def __init__(self, function: Callable[[Features], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)  # type: ignore[misc]  # each has its own

    def __repr__(self) -> str:
        return self.name

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return torch.as_tensor(self.function(f)).to(torch.float64)

    @classmethod
    def options(cls) -> dict[str, Option]:
        """None: a function is no option."""
        return {}


def steps_of(item: Any, model: str | None = None, classes: int | None = None, *, partial: bool = False) -> list[Stage]:
    """The stages of a spec string, a stage, a chain of them or a function.

    Raises:
        InputError: it is none of these, or as ``Detector``.
    """
    if isinstance(item, str):
        return parse_stages(item, model, classes, partial=partial)
    if isinstance(item, Stage):
        return [item]
    if isinstance(item, Chain):
        return item.steps
    if callable(item) and not isinstance(item, type):
        return [Function(item)]
    made = f"; create one: {item.__name__}()" if isinstance(item, type) else ""
    raise InputError(
        f"expected a detector: a spec string, e.g. 'fmls', stages joined with +, or a function of features; got "
        f"{getattr(item, '__name__', type(item).__name__)}{made}"
    )


def check_there(stages: Iterable[Stage], features: Features) -> None:
    """Refuse features that lack what a stage declares to read.

    Raises:
        Missing: the stage, and what it reads.
    """
    for stage in stages:
        needs = stage.needs
        if needs.features and not features.has_h:
            raise Missing(f"stage '{stage.name}' reads penultimate features, but there are only logits: give both")
        if needs.head and not features.has_head:
            raise Missing(f"stage '{stage.name}' reads the classification head, but there is none: {_GIVE_HEAD}")
        if needs.logits and not (features.has_logits or "pred" in vars(features)):
            raise Missing(f"stage '{stage.name}' reads logits, but there is no head to compute them with: {_GIVE_HEAD}")
