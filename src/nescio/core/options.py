"""Things that a spec string names with their options, ``name:option=value,option=value``, and print as one again.

An option says in its annotation what it may be, ``k: Annotated[int, AtLeast(1)]``, ``index: Literal["exact", "flat"]``,
``clip: Annotated[float, Positive()] | None``; a value is checked against that whether a spec or Python code gives it.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from nescio.core.bounds import Bound
from nescio.core.errors import InputError, check_choice, nearest


@dataclass(frozen=True)
class Option:
    """A declared option: an argument of ``__init__``.

    ``default`` is ``inspect.Parameter.empty`` where a value must be given; ``kind`` is the type of a value,
    ``choices`` are all values that there are, where these are words.
    """

    name: str
    default: Any
    kind: Any
    bounds: tuple[Bound, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is inspect.Parameter.empty

    def parse(self, text: str) -> Any:
        """The value that a spec writes so.

        Raises:
            ValueError: it is not of the option's type.
        """
        if self.kind is bool:
            if text.lower() not in ("true", "false"):
                raise ValueError(text)
            return text.lower() == "true"
        return self.kind(text)

    def checked(self, value: Any) -> Any:
        """The value as a plain number or word.

        Raises:
            InputError: it is none, or outside of what is declared.
            TypeError: it is not of the option's type.
        """
        if value is None and self.default is None:
            return None
        numbers_of = {bool: bool | np.bool_, int: numbers.Integral, float: numbers.Real}
        if self.kind in numbers_of:
            if not isinstance(value, numbers_of[self.kind]) or (self.kind is not bool and isinstance(value, bool)):
                raise TypeError(value)
            value = self.kind(value)
        for bound in self.bounds:
            bound.check(self.name, value)
        return check_choice(self.name, value, self.choices) if self.choices else value

    @property
    def examples(self) -> list[Any]:
        """Some values that it may have, beside its default: what a test tries."""
        if self.kind is bool:
            values: Sequence[Any] = (False, True)
        else:
            values = self.choices or [self.kind(v) for b in self.bounds for v in b.examples]
        if not values and not self.required and isinstance(self.default, int | float):
            values = [self.default + 1, self.kind(self.default * 3)]
        return [v for v in values if v != self.default]


@functools.cache
def _declared(init: Callable[..., None]) -> dict[str, Option]:
    """The options that an ``__init__`` declares, in order."""
    try:
        hints = typing.get_type_hints(init, include_extras=True)
    except NameError:  # a type that only the type checker imports
        hints = {}
    _, *parameters = inspect.signature(init).parameters.values()  # the first is the object itself
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        p.name: _option(p.name, p.default, hints.get(p.name, type(p.default))) for p in parameters if p.kind in by_name
    }


def _option(name: str, default: Any, hint: Any) -> Option:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _option(name, default, next(argument for argument in arguments if argument is not types.NoneType))
    if origin is typing.Annotated:
        inner = _option(name, default, arguments[0])
        return Option(name, default, inner.kind, tuple(b() if isinstance(b, type) else b for b in arguments[1:]))
    if origin is typing.Literal:
        return Option(name, default, str, choices=arguments)
    return Option(name, default, hint)


def _checking(init: Callable[..., None]) -> Callable[..., None]:
    """An ``__init__`` that first checks the options that it is given."""

    @functools.wraps(init)
    def checked(self: Optioned, *args: Any, **values: Any) -> None:
        options = _declared(init)
        for name, value in values.items():
            if name in options:
                try:
                    values[name] = options[name].checked(value)
                except TypeError:
                    raise self.wrong_type(options[name], value) from None
        init(self, *args, **values)

    return checked


class Optioned:
    """Something named with options: the keyword-only arguments of ``__init__``, kept under their own names."""

    name: ClassVar[str]
    kind: ClassVar[str]
    """What messages call it: a stage, an objective."""

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "__init__" in vars(cls):
            cls.__init__ = _checking(cls.__init__)  # type: ignore[method-assign]  # no author has to call it

    @classmethod
    def options(cls) -> dict[str, Option]:
        """The declared hyperparameters, in order."""
        return _declared(inspect.unwrap(cls.__init__))

    @classmethod
    def parse_options(cls, text: str | None) -> dict[str, Any]:
        """The values in ``option=value,option=value``, by option.

        Raises:
            InputError: an option is unknown, given twice or missing, or a value does not fit.
        """
        values: dict[str, Any] = {}
        for item in text.split(",") if text else ():
            key, equals, value = item.partition("=")
            if not equals:
                hint = f"write {cls.name}:{item or 'option'}=value"
                raise InputError(f"option '{item}' of {cls.kind} '{cls.name}' has no value; {hint}")
            if key in values:
                raise InputError(f"option '{key}' of {cls.kind} '{cls.name}' is given twice")
            values[key] = cls._parse_value(key, value)
        required = [k for k, option in cls.options().items() if option.required and k not in values]
        if required:
            raise InputError(
                f"{cls.kind} '{cls.name}' needs the option '{required[0]}'; write {cls.name}:{required[0]}=value"
            )
        return values

    @classmethod
    def _parse_value(cls, key: str, text: str) -> Any:
        options = cls.options()
        if key not in options:
            known = nearest(key, options) if options else "; it has no options"
            raise InputError(f"{cls.kind} '{cls.name}' has no option '{key}'{known}")
        try:
            return options[key].parse(text)
        except ValueError:
            raise cls.wrong_type(options[key], text) from None

    @classmethod
    def wrong_type(cls, option: Option, value: object) -> InputError:
        """What to say of a value of another type than the option's."""
        return InputError(
            f"option {option.name}={value} of {cls.kind} '{cls.name}' is not of type {option.kind.__name__}"
        )

    def settings(self) -> dict[str, Any]:
        """Every hyperparameter's value, defaults included."""
        return {name: getattr(self, name) for name in self.options()}

    def __repr__(self) -> str:
        defaults = {name: option.default for name, option in self.options().items()}
        shown = [f"{k}={written(v)}" for k, v in self.settings().items() if v != defaults[k]]
        return f"{self.name}:{','.join(shown)}" if shown else self.name


Kind = TypeVar("Kind", bound=Optioned)


def register(cls: type[Kind], name: str, known: dict[str, type[Kind]]) -> None:
    """Make a class known by its name; the same class defined anew, as in a notebook, takes the place of the first.

    Raises:
        InputError: another class has this name.
    """
    own, other = (f"{c.__module__}.{c.__qualname__}" if c else "" for c in (cls, known.get(name)))
    if other not in ("", own):
        raise InputError(f"{cls.kind} '{name}' exists already: {other}; rename {own}")
    cls.name = name
    known[name] = cls


def parse_named(text: str, known: Mapping[str, type[Kind]]) -> Kind:
    """The thing that ``name`` or ``name:option=value,option=value`` stands for.

    Raises:
        InputError: the name or an option is unknown, or a value does not fit.
    """
    name, _, options = text.strip().partition(":")
    if name not in known:
        kind = next(iter(known.values())).kind
        raise InputError(f"unknown {kind} '{name}'{nearest(name, known)}")
    return known[name](**known[name].parse_options(options))


def written(value: object) -> str:
    """A value as a spec writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value).replace("e+", "e")
    return str(value)
