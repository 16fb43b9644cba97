"""Stages, their registry, and the spec strings that name them: ``fm:p=0.6+react:clip=1.6+ls+energy``."""

from __future__ import annotations

import inspect
import re
import types
import typing
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from nescio.errors import InputError, nearest
from nescio.features import Features, TrainingData

PLACES = ("input", "shape", "modulate", "score")
REGISTRY: dict[str, type[Stage]] = {}

_STAGE = re.compile(r"(?P<name>[a-z][a-z0-9_-]*)(:(?P<options>.+))?", re.DOTALL)


class Stage(nn.Module):
    """One step of a detector. Options are the keyword-only arguments of ``__init__``, kept under their own names.

    What a stage learns it declares as a ``Tensor`` in its class body: a buffer, None until ``fit(data)`` sets it.
    ``forward`` only reads. Shape and modulate stages are fitted on raw training features, score stages on what the
    stages before them produce.
    """

    name: ClassVar[str]
    place: ClassVar[str]
    needs_train: bool = False
    """Whether ``fit`` iterates over training features (and so whether the user must give training images)."""

    def __init_subclass__(cls, name: str | None = None, place: str | None = None) -> None:
        super().__init_subclass__()
        if place is not None:
            cls.place = place
        if name is not None:
            cls.name = name
            REGISTRY[name] = cls

    def __init__(self) -> None:
        super().__init__()
        for cls in type(self).__mro__:
            if issubclass(cls, Stage):
                for name, kind in inspect.get_annotations(cls).items():
                    if kind == "Tensor":
                        self.register_buffer(name, None)

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The declared hyperparameters, in order."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def settings(self) -> dict[str, Any]:
        """Every hyperparameter's value, defaults included."""
        return {name: getattr(self, name) for name in self.options()}

    def fit(self, data: TrainingData) -> None:
        """Learn from the head or the training features; most stages have nothing to learn."""

    def learned(self) -> dict[str, float]:
        """The single numbers that ``fit`` chose, for a manifest or a message."""
        return {name: float(b) for name, b in self.named_buffers(recurse=False) if b.numel() == 1}

    def __call__(self, features: Features) -> Any:
        """Run ``forward``, after a check that nothing it reads is still unfitted."""
        missing = [name for name, buffer in self._buffers.items() if buffer is None]
        if missing:
            raise RuntimeError(f"stage '{self.name}' is not fitted (it has no {missing[0]} yet): call fit first")
        return super().__call__(features)

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in self.options().items()}
        given = [f"{k}={_text(v)}" for k, v in self.settings().items() if v != defaults[k]]
        return f"{self.name}:{','.join(given)}" if given else self.name


class Network(Protocol):
    """What an input stage needs of a network."""

    std: Tensor

    def __call__(self, x: Tensor) -> Features:
        """Features of normalised images ``x (B, 3, H, W)``."""
        ...


class InputStage(Stage, place="input"):
    """A stage that changes how the network is run. It makes its own pass over the images."""

    @abstractmethod
    def run(self, network: Network, pipeline: Callable[[Features], Features], x: Tensor) -> Features:
        """Raw features of images ``x (B, 3, H, W)`` as this pass sees them.

        ``pipeline`` is the detector's fitted stages from this one's ``forward`` up to, not including, the score.
        """


def parse_stages(spec: str) -> list[Stage]:
    """The stages that a spec string names, checked for order.

    Raises:
        InputError: a stage or option is unknown (the nearest is named), a value does not fit, the stages stand in the
            wrong order (the right one is named), or there is not exactly one score at the end.
    """
    stages = [_parse_stage(text.strip(), spec) for text in spec.split("+")]
    _check_order(stages, spec)
    return stages


def _check_order(stages: list[Stage], spec: str) -> None:
    ordered = sorted(stages, key=lambda s: PLACES.index(s.place))
    scores = [s.name for s in stages if s.place == "score"]
    if not scores:
        raise InputError(f"detector '{spec}' has no score stage at the end; add one, e.g. '{spec}+energy'")
    if len(scores) > 1:
        raise InputError(
            f"detector '{spec}' has {len(scores)} score stages ({', '.join(scores)}); keep one, at the end"
        )
    repeated = [s.name for i, s in enumerate(stages) if s.name in [t.name for t in stages[:i]]]
    if repeated:
        raise InputError(f"detector '{spec}' has the stage '{repeated[0]}' twice; keep one")
    if sum(s.place == "input" for s in stages) > 1:
        raise InputError(f"detector '{spec}' has more than one input stage; each makes a pass of its own: keep one")
    if [id(s) for s in stages] != [id(s) for s in ordered]:
        right = "+".join(map(repr, ordered))
        raise InputError(f"stages of '{spec}' are out of order ({' → '.join(PLACES)}); write '{right}'")


def _parse_stage(text: str, spec: str) -> Stage:
    match = _STAGE.fullmatch(text)
    if not match:
        raise InputError(f"cannot read '{text}' in detector '{spec}'; write name or name:option=value,option=value")
    name, options = match["name"], match["options"]
    if name not in REGISTRY:
        raise InputError(f"unknown stage '{name}' in detector '{spec}'{nearest(name, REGISTRY)}")
    cls = REGISTRY[name]
    kwargs: dict[str, Any] = {}
    for item in options.split(",") if options else ():
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"option '{item}' of stage '{name}' has no value; write {name}:{item or 'option'}=value")
        if key in kwargs:
            raise InputError(f"option '{key}' of stage '{name}' is given twice")
        kwargs[key] = _parse_value(cls, key, value)
    required = [k for k, p in cls.options().items() if p.default is inspect.Parameter.empty and k not in kwargs]
    if required:
        raise InputError(f"stage '{name}' needs {required[0]}; write {name}:{required[0]}=value")
    return cls(**kwargs)


def _parse_value(cls: type[Stage], key: str, text: str) -> Any:
    options = cls.options()
    if key not in options:
        known = nearest(key, options) if options else "; it has no options"
        raise InputError(f"stage '{cls.name}' has no option '{key}'{known}")
    hint = typing.get_type_hints(cls.__init__)[key]
    kinds = [t for t in typing.get_args(hint) if t is not types.NoneType] or [hint]
    try:
        if kinds[0] is bool:
            return {"true": True, "false": False}[text.lower()]
        return kinds[0](text)
    except (ValueError, KeyError):
        raise InputError(f"option {key}={text} of stage '{cls.name}' is not of type {kinds[0].__name__}") from None


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value).replace("e+", "e")
    return str(value)
