"""Stages, their registry, and chains of them."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import sys
import types
import typing
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from nescio.core.errors import InputError, Missing, NotFitted
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.options import Optioned, register

PLACES = ("input", "shape", "modulate", "score")
REGISTRY: dict[str, type[Stage]] = {}


def _alone(stage: Stage) -> InputError:
    kind = type(stage).__name__
    return InputError(
        f"stage '{stage.name}' does not take arrays: make it a detector, nescio.Detector({kind}(…)).fit(h)(h_new)"
    )


def _of_features(fit: Callable[..., None]) -> Callable[..., None]:
    """A stage's ``fit`` that tells whoever takes the stage for a detector so."""

    @functools.wraps(fit)
    def checked(self: Stage, data: Any = None, *given: Any, **named: Any) -> None:
        if given or named or not isinstance(data, FeatureSet):
            raise _alone(self)
        fit(self, data)

    return checked


class Stage(Optioned, nn.Module):
    """One step of a detector. Options are the arguments of ``__init__``, kept under their own names.

    What a stage learns it declares as a ``Tensor`` in its class body: a buffer, None until ``fit(data)`` sets it. A
    file of the detector keeps these and the options alone, so ``fit`` may set nothing else. ``forward`` only reads.
    Shape and modulate stages are fitted on raw training features, score stages on what the stages before them produce.
    """

    kind = "stage"
    place: ClassVar[str]
    join: ClassVar[Callable[[list[Any]], Any]]
    """What ``+`` makes of stages and spec strings: a detector, whose file sets this."""
    takes_members: ClassVar[bool] = False
    """Whether it is made of whole detectors, given to ``__init__`` one by one, which are its ``chains``."""
    groups_by_class: bool = False
    """Whether work is done once per predicted class and batch, so that large batches save most of it."""
    _declared: ClassVar[list[str]]

    def __init_subclass__(cls, name: str | None = None, place: str | None = None) -> None:
        super().__init_subclass__()
        if "fit" in vars(cls):
            cls.fit = _of_features(vars(cls)["fit"])  # type: ignore[method-assign]  # no author has to
        if place is not None:
            cls.place = place
        cls.name = name or cls.__name__.lower()  # not its base's: that is another stage
        if name is not None:
            register(cls, name, REGISTRY)

    def __init__(self) -> None:
        super().__init__()
        for name in self.declared():
            self.register_buffer(name, None)

    @classmethod
    def declared(cls) -> list[str]:
        """Names of the tensors that the stage learns: what its class body and its bases' annotate as ``Tensor``.

        The annotation may be written in any way that means it: ``torch.Tensor``, ``Tensor | None``, an alias, a string.
        """
        if "_declared" not in vars(cls):  # once a class: annotations that are strings have to be evaluated
            cls._declared = [
                name
                for base in cls.__mro__
                if issubclass(base, Stage)
                for name, kind in inspect.get_annotations(base).items()
                if _means_tensor(kind, {**vars(sys.modules.get(base.__module__, base)), **vars(base)})
            ]
        return list(dict.fromkeys(cls._declared))

    @property
    def needs(self) -> Needs:
        """What must be there for it to fit and score, with the options that it has."""
        return Needs()

    @property
    def chains(self) -> list[Chain]:
        """The detectors that it is made of."""
        return []

    def __add__(self, other: Any) -> Any:
        return Stage.join([self, other])

    def __radd__(self, other: Any) -> Any:
        return Stage.join([other, self])

    def unexportable(self) -> str | None:
        """Why an ONNX graph cannot hold the stage, as the rest of a sentence that its name begins.

        Before the stage is fitted, as far as its options say.
        """
        return None

    @_of_features
    def fit(self, data: FeatureSet) -> None:
        """Learn from the head or the training features; most stages have nothing to learn."""

    def learned(self) -> dict[str, Any]:
        """The single numbers that ``fit`` chose, for a manifest or a message."""
        return {name: float(b) for name, b in self.named_buffers(recurse=False) if b.numel() == 1}

    def __call__(self, features: Features | None = None, **given: Any) -> Any:
        """Run ``forward``, after a check that nothing it reads is still unfitted."""
        if given or not isinstance(features, Features):
            raise _alone(self)
        for name, buffer in self._buffers.items():
            if buffer is None:
                raise NotFitted(f"stage '{self.name}' is not fitted (it has no {name} yet): call fit first")
        try:
            return super().__call__(features)
        except Missing as e:
            raise named(self, e) from None


def named(stage: Stage, missing: Missing) -> Missing:
    """What a stage misses, with its name; that of an inner stage stays."""
    return missing if str(missing).startswith("stage '") else Missing(f"stage '{stage.name}': {missing}")


class Score(Stage, place="score"):
    """A stage that ends a detector: features to scores ``(B,)``, higher for images more like the training images."""


class Shape(Stage, place="shape"):
    """A stage that changes penultimate features or the head."""


class Modulate(Stage, place="modulate"):
    """A stage that changes logits."""


def _means_tensor(kind: Any, names: dict[str, Any]) -> bool:
    """Whether an annotation stands for a tensor, or for one that may be missing."""
    if isinstance(kind, typing.ForwardRef):
        kind = kind.__forward_arg__
    if isinstance(kind, str):
        try:
            kind = eval(kind, dict(names))  # noqa: S307 - as typing.get_type_hints does, by the names of its own file
        except Exception:  # noqa: BLE001 - a name that is imported for the type checker alone, or no Python at all
            words = set(re.findall(r"\w+", kind))
            return "Tensor" in words and words <= {"torch", "typing", "Tensor", "None", "Optional", "Union"}
        return _means_tensor(kind, names)
    kind = getattr(kind, "__value__", kind)  # what a ``type`` statement names
    if typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated, typing.Final):
        return any(_means_tensor(part, names) for part in typing.get_args(kind))
    return isinstance(kind, type) and issubclass(kind, Tensor)


def fit_stage(stage: Stage, data: FeatureSet) -> None:
    """Fit a stage, and make sure that a file of the detector will hold all that it learned.

    Raises:
        InputError: the data lack something that it reads, or it set something that it does not declare, which saving
            would lose.
    """
    before, known = dict(vars(stage)), {*_attributes_of(stage), *stage.declared(), *stage.options()}
    try:
        stage.fit(data)
    except Missing as e:
        raise named(stage, e) from None
    new = [name for name, value in vars(stage).items() if value is not None and value is not before.get(name)]
    lost = [name for name in (*new, *_attributes_of(stage)) if name not in known]
    if lost:
        raise InputError(
            f"stage '{stage.name}' learned '{lost[0]}', which would not be saved: declare it in the "
            f"class body ({lost[0]}: Tensor) and let fit set it to a tensor"
        )


def _attributes_of(stage: Stage) -> list[str]:
    """Names of buffers, parameters and modules."""
    return [name for kind in ("_buffers", "_parameters", "_modules") for name in vars(stage)[kind]]


class Chain(nn.Module):
    """Stages one after the other, a score at the end. Several in one detector make an ensemble."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def __repr__(self) -> str:
        return "+".join(map(repr, self.steps))

    @property
    def steps(self) -> list[Stage]:
        """The stages, typed."""
        return [s for s in self.stages if isinstance(s, Stage)]

    @property
    def needs(self) -> Needs:
        """What some stage needs."""
        return functools.reduce(operator.or_, (s.needs for s in self.steps))

    @property
    def columns(self) -> frozenset[str]:
        """Names of the probes, heads and input stages whose columns some stage reads."""
        return self.needs.columns | {s.name for s in self.steps if s.place == "input"}

    def unexportable(self) -> str | None:
        """Why an ONNX graph cannot hold the stages: a sentence about the first that it cannot hold."""
        return next((f"'{s!r}' {why}" for s in self.steps if (why := s.unexportable())), None)

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every hyperparameter of every stage, defaults included, and the single numbers that fitting chose."""
        return {s.name: s.settings() | s.learned() for s in self.steps}

    def pipeline(self, f: Features) -> Features:
        """Everything before the score."""
        for stage in self.steps[:-1]:
            f = stage(f)
        return f

    def of_any_pass(self, f: Features) -> Tensor:
        """Scores ``(B,)`` float64, whatever pass the features come from; higher means more in-distribution."""
        scores: Tensor = self.steps[-1](self.pipeline(f))
        return scores

    forward = of_any_pass


class Network(Protocol):
    """What an input stage needs of a network."""

    std: Tensor

    def __call__(self, x: Tensor) -> Features:
        """Features of normalised images ``x (B, 3, H, W)``."""


class InputStage(Stage, place="input"):
    """A stage that changes how the network is run. It makes its own pass over the images.

    ``needs.rerun`` says what the pass follows from.
    """

    replaces_logits: ClassVar[bool] = False
    """Whether the pass gives logits of its own, which a change of features or head would lose."""

    @property
    def fixed(self) -> bool:
        """Whether the pass follows from the options alone: training images then go through it too."""
        return self.needs.rerun == "options"

    def unexportable(self) -> str | None:
        """A graph is one plain pass."""
        return "needs its own pass of the network, and a graph has only the plain pass that gives the label"

    def depends_on(self, stages: Sequence[Stage]) -> int:
        """How many of a detector's stages decide what the pass does."""
        return {"options": 1, "pipeline": len(stages) - 1, "score": len(stages)}[self.needs.rerun]

    def prepare(self, body: nn.Module) -> nn.Module:
        """The network as this pass runs it; ``body`` is a copy whose modules may be exchanged.

        Raises:
            InputError: this network has nothing that the stage could change.
        """
        return body

    def forward(self, f: Features) -> Features:
        """Change nothing: the pass has done it."""
        return f

    def choose(self, network: Network, chain: Chain, batches: Iterable[Tensor]) -> None:
        """Learn from batches of normalised ID images what only the network can tell; most have nothing to learn."""

    @abstractmethod
    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Raw features of images ``x (B, 3, H, W)`` as this pass sees them; ``chain`` is the whole detector."""
