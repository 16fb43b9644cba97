"""Reading JSON and TOML that may come from anyone: every fault is a ``ValueError``, and nothing takes without limit."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 64 << 20
"""Of a text that is read: several times what the results of 10,000 detectors on ten sets take."""
DEPTH = 50
"""Lists and tables within each other, at most; our own files need fewer than ten."""
_DIGITS = 19
"""Of a whole number: what 64 bits hold."""


def read_json(path: Path, *, finite: bool = True) -> Any:
    """What a file of JSON holds. See ``parse_json``.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is not JSON as this project writes it, or no regular file.
    """
    return parse_json(_bytes(path), finite=finite)


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text in UTF-8, each key once.

    Args:
        text: what is read.
        finite: refuse NaN and infinity; without it they are read as Python writes them.

    Raises:
        ValueError: it is not JSON, too long or nested too deep, a number is not finite or not of 64 bits, or a key
            stands twice in one object. Callers name the file and the way out.
    """
    text = _text(text)
    strict: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _float} if finite else {}
    try:
        value = json.loads(text, parse_int=_int, object_pairs_hook=_once, **strict)
    except RecursionError:
        raise _too_deep() from None
    _check_values(value)
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """What a file of TOML holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML, too long or nested too deep, or no regular file.
    """
    text = _text(_bytes(path, MOST_BYTES >> 6), MOST_BYTES >> 6)
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise _too_deep() from None
    _check_values(value)
    return value


def plain(value: Any) -> Any:
    """A value for JSON to be written, with None for each number that is not finite: JSON has no word for these."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    if path.exists() and not path.is_file():  # to open a named pipe would wait for ever
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        return file.read(most + 1)


def _text(text: str | bytes, most: int = MOST_BYTES) -> str:
    if len(text) > most:
        raise ValueError(f"it is larger than {most >> 20} MB")
    return text if isinstance(text, str) else text.decode("utf-8")


def _check_values(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        if any(isinstance(number, int) and abs(number) >= 10**_DIGITS for number in level):
            raise ValueError(f"it has an integer of more than {_DIGITS} digits")
        level = [outer for outer in level if isinstance(outer, dict | list)]
        if not level:
            return
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"its lists and objects are nested more than {DEPTH} deep")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it has the number {constant}, which JSON does not allow")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:30]} is too large")
    return value


def _int(text: str) -> int:
    if len(text.lstrip("-")) > _DIGITS:
        raise ValueError(f"the number {text[:30]}… has more than {_DIGITS} digits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice[:100]}' occurs twice in one object")
    return made
