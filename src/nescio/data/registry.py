"""The forms in which images come, by name, by file ending and by type; each format registers its own."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from nescio.core.plugins import SOURCES as PLUGINS
from nescio.core.plugins import load_group

Opener = Callable[..., Any]
"""Takes a name, a file or an object, and gives a ``Source``."""
Opened = TypeVar("Opened", bound=Opener)

SOURCES: dict[str, Opener] = {}
"""What opens a name that starts with this word and colon (``"noise:"``, given what follows), or a file whose name ends
like this (``".zip"``, given a path or ``Remote``). ``"://"`` opens URLs, ``""`` every other name."""
INDEXED: list[Opener] = []
"""What makes a source of any other object that has a length and gives its items by number."""
IN_MEMORY: list[tuple[Callable[[Any], bool], Opener]] = []
"""What makes a source of an object, and of which objects; the first that fits does it."""


def register(*forms: str | type | Callable[[Any], bool]) -> Callable[[Opened], Opened]:
    """Make a function (or class) known as what opens some forms of images.

    >>> @register(".lmdb")
    ... class Lmdb:
    ...     def __init__(self, path): ...

    Args:
        *forms: a prefix or suffix of names, as in ``SOURCES``; a type of objects; or a function that tells whether an
            object is of the form.
    """

    def registered(opener: Opened) -> Opened:
        for form in forms:
            if isinstance(form, str):
                SOURCES[form] = opener
            elif isinstance(form, type):
                IN_MEMORY.append((lambda images, form=form: isinstance(images, form), opener))  # type: ignore[misc]
            else:
                IN_MEMORY.append((form, opener))
        return opener

    return registered


@functools.cache
def load_formats() -> None:
    """Import all files of ``formats``, each of which registers what it opens, and those of other packages."""
    package = importlib.import_module("nescio.data.formats")
    for file in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(file.name)
    load_group(PLUGINS)
