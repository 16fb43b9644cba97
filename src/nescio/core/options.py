"""Things that a spec string names with their options, ``name:option=value,option=value``, and print as one again."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from nescio.core.errors import InputError, nearest


class Optioned:
    """Something named with options: the keyword-only arguments of ``__init__``, kept under their own names."""

    name: ClassVar[str]
    kind: ClassVar[str]
    """What messages call it: a stage, an objective."""

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The declared hyperparameters, in order."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

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
                way_out = f"write {cls.name}:{item or 'option'}=value"
                raise InputError(f"option '{item}' of {cls.kind} '{cls.name}' has no value; {way_out}")
            if key in values:
                raise InputError(f"option '{key}' of {cls.kind} '{cls.name}' is given twice")
            values[key] = cls._parse_value(key, value)
        required = [k for k, p in cls.options().items() if p.default is inspect.Parameter.empty and k not in values]
        if required:
            raise InputError(f"{cls.kind} '{cls.name}' needs {required[0]}; write {cls.name}:{required[0]}=value")
        return values

    @classmethod
    def _parse_value(cls, key: str, text: str) -> Any:
        options = cls.options()
        if key not in options:
            known = nearest(key, options) if options else "; it has no options"
            raise InputError(f"{cls.kind} '{cls.name}' has no option '{key}'{known}")
        hint = typing.get_type_hints(cls.__init__)[key]
        kinds = [t for t in typing.get_args(hint) if t is not types.NoneType] or [hint]
        try:
            if kinds[0] is bool:
                return {"true": True, "false": False}[text.lower()]
            return kinds[0](text)
        except (ValueError, KeyError):
            raise InputError(
                f"option {key}={text} of {cls.kind} '{cls.name}' is not of type {kinds[0].__name__}"
            ) from None

    def settings(self) -> dict[str, Any]:
        """Every hyperparameter's value, defaults included."""
        return {name: getattr(self, name) for name in self.options()}

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in self.options().items()}
        given = [f"{k}={_text(v)}" for k, v in self.settings().items() if v != defaults[k]]
        return f"{self.name}:{','.join(given)}" if given else self.name


Kind = TypeVar("Kind", bound=Optioned)


def register(cls: type[Kind], name: str, known: dict[str, type[Kind]]) -> None:
    """Make a class known by its name; the same class defined anew, as in a notebook, takes the place of the first.

    Raises:
        InputError: another class has this name.
    """
    own, other = (f"{c.__module__}.{c.__qualname__}" if c else "" for c in (cls, known.get(name)))
    if other not in ("", own):
        raise InputError(f"{cls.kind} '{name}' is there already: {other}; call {own} something else")
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


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value).replace("e+", "e")
    return str(value)
