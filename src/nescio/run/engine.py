"""How a network is run over images: a choice behind one protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from nescio.core.errors import InputError, nearest
from nescio.core.plugins import ENGINES as PLUGINS
from nescio.core.plugins import load_group
from nescio.models import Classifier

ENGINES: dict[str, type[Engine]] = {}


class Engine(ABC):
    """Makes a classifier run faster. A subclass with ``name=`` is an engine of that name.

    What it makes gives the features of the original within ``tolerance``, relative to the largest.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float] = 1e-4

    def __init_subclass__(cls, name: str | None = None) -> None:
        super().__init_subclass__()
        if name is not None:
            cls.name = name
            ENGINES[name] = cls

    @abstractmethod
    def prepare(self, classifier: Classifier) -> Classifier:
        """The classifier for inference alone. The original is unchanged."""


def engine_of(name: str) -> Engine:
    """The engine of a name.

    Raises:
        InputError: there is none.
    """
    load_group(PLUGINS)
    if name not in ENGINES:
        raise InputError(f"unknown engine '{name}'{nearest(name, ENGINES)}")
    return ENGINES[name]()


class PlainEngine(Engine, name="plain"):
    """The network as it is: for one that is being trained."""

    def prepare(self, classifier: Classifier) -> Classifier:
        """The classifier itself."""
        return classifier


class TorchEngine(Engine, name="torch"):
    """PyTorch: batch norms folded into convolutions, channels last."""

    def prepare(self, classifier: Classifier) -> Classifier:
        """As ``Classifier.optimised``."""
        return classifier.optimised()
