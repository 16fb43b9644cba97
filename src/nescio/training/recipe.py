"""How a network is trained: everything that its weights follow from beside the images and the objective."""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any, ClassVar

import torch
from torch import nn

from nescio.core.errors import InputError, check_at_least, check_choice, check_positive, check_share, nearest
from nescio.core.options import Optioned, parse_named
from nescio.training.augment import AUGMENTS

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step of the optimiser, over all processes and accumulated parts.
        optimizer: ``adamw:lr=1e-4,weight_decay=0.01`` or ``sgd:lr=0.1,momentum=0.9,weight_decay=0,nesterov=false``.
        schedule: of the learning rate: ``constant``, ``step:every=30,factor=0.5``, ``milestones:at=50/75,factor=0.1``
            or ``cosine``, each with ``warmup=`` in epochs.
        augment: ``none``, ``shift:by=0.125,flip=true`` or ``crop:least=0.25,flip=true``.
        accumulate: parts that a batch is computed in, for less memory.
        clip: largest norm of the gradient; 0 for any.
        ema: decay per step of an average of the weights that is judged and kept in their place; 0 for none.
        precision: ``32``, or ``bf16`` for mixed precision.
        seed: of everything drawn.
    """

    epochs: int
    batch_size: int
    optimizer: str
    schedule: str
    augment: str
    accumulate: int = 1
    clip: float = 0.0
    ema: float = 0.0
    precision: str = "32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("clip", self.clip, 0)
        check_share("ema", self.ema, below_one=True)
        check_choice("precision", self.precision, list(PRECISIONS))
        if not check_at_least("seed", self.seed, 0) < 1 << 62:
            raise InputError(f"seed={self.seed} must be below 2^62")
        for text, known in ((self.optimizer, OPTIMIZERS), (self.schedule, SCHEDULES), (self.augment, AUGMENTS)):
            parse_named(text, known)

    @classmethod
    def named(cls, name: str, **changes: Any) -> Recipe:
        """A recipe of the data file, with some entries replaced where they are not None.

        Raises:
            InputError: the name is unknown, or an entry does not fit.
        """
        if name not in recipes():
            raise InputError(f"unknown recipe '{name}'{nearest(name, recipes())}")
        entries = {k: v for k, v in recipes()[name].items() if k != "about"}
        return cls(**entries | {k: v for k, v in changes.items() if v is not None})

    def settings(self) -> dict[str, Any]:
        """Every entry."""
        return dataclasses.asdict(self)


@functools.cache
def recipes() -> dict[str, dict[str, Any]]:
    """The recipes of the data file, by name."""
    return tomllib.loads(resources.files("nescio.training").joinpath("recipes.toml").read_text(encoding="utf-8"))


class Optimizer(Optioned):
    """An optimiser of the library, with its options."""

    kind = "optimizer"
    library: ClassVar[Callable[..., torch.optim.Optimizer]]
    lr: float

    def over(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The library's optimiser of these parameters."""
        return type(self).library(parameters, **self.settings())


class AdamW(Optimizer):
    """Adam with decoupled weight decay; the library's defaults but for lr."""

    name = "adamw"
    library = torch.optim.AdamW

    def __init__(self, *, lr: float = 1e-4, weight_decay: float = 0.01) -> None:
        self.lr = check_positive("lr", lr)
        self.weight_decay = check_at_least("weight_decay", weight_decay, 0)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    name = "sgd"
    library = torch.optim.SGD

    def __init__(
        self, *, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        self.lr = check_positive("lr", lr)
        self.momentum = check_share("momentum", momentum, below_one=True)
        self.weight_decay = check_at_least("weight_decay", weight_decay, 0)
        self.nesterov = nesterov
        if nesterov and momentum == 0:
            raise InputError("nesterov=true needs a momentum above 0")


# not timm.scheduler: its state would have to be stored, and its rates are others (cosine with warm-up: by up to 10 % of
# lr, measured)
class Schedule(Optioned):
    """The learning rate as a share of its start, a function of the epoch alone: nothing of it need be stored."""

    kind = "schedule"

    def __init__(self, *, warmup: float = 0.0) -> None:
        self.warmup = check_at_least("warmup", warmup, 0)

    def at(self, epoch: float, epochs: int) -> float:
        """The share at ``epoch``, which has a fraction; it rises linearly during ``warmup`` epochs."""
        return self.after(epoch, epochs) * min(1.0, epoch / self.warmup if self.warmup else 1.0)

    def after(self, epoch: float, epochs: int) -> float:
        """The share, warm-up apart."""
        del epoch, epochs
        return 1.0


class Constant(Schedule):
    """Always the same."""

    name = "constant"


class Step(Schedule):
    """Multiplied by ``factor`` every so many epochs."""

    name = "step"

    def __init__(self, *, every: int = 30, factor: float = 0.5, warmup: float = 0.0) -> None:
        super().__init__(warmup=warmup)
        self.every = check_at_least("every", every, 1)
        self.factor = check_share("factor", factor)

    def after(self, epoch: float, epochs: int) -> float:
        """A staircase."""
        del epochs
        return float(self.factor ** (epoch // self.every))


class Milestones(Schedule):
    """Multiplied by ``factor`` at each of the epochs ``at``, written ``50/75/90``."""

    name = "milestones"

    def __init__(self, *, at: str, factor: float = 0.1, warmup: float = 0.0) -> None:
        super().__init__(warmup=warmup)
        self.at_ = at
        try:
            self.epochs = [int(text) for text in at.split("/")]
        except ValueError:
            raise InputError(f"milestones at={at} are not epochs; write at=50/75/90") from None
        self.factor = check_share("factor", factor)

    def settings(self) -> dict[str, Any]:
        """The options."""
        return super().settings() | {"at": self.at_}

    def after(self, epoch: float, epochs: int) -> float:
        """A staircase."""
        del epochs
        return float(self.factor ** sum(epoch >= e for e in self.epochs))


class Cosine(Schedule):
    """Half a cosine from one to zero over what follows the warm-up."""

    name = "cosine"

    def after(self, epoch: float, epochs: int) -> float:
        """Half a cosine."""
        done = max(0.0, epoch - self.warmup) / max(1e-9, epochs - self.warmup)
        return (1 + math.cos(math.pi * min(1.0, done))) / 2


OPTIMIZERS: dict[str, type[Optimizer]] = {cls.name: cls for cls in (AdamW, SGD)}
SCHEDULES: dict[str, type[Schedule]] = {cls.name: cls for cls in (Constant, Step, Milestones, Cosine)}
