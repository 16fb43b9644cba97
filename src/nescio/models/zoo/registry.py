"""The libraries that a network's name may begin with, and those whose networks are known without."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, cast

from nescio.core.errors import InputError, nearest
from nescio.models.zoo.architecture import Architecture, Library

LIBRARIES = {name: f"nescio.models.zoo.{name}" for name in ("timm", "torchvision", "clip")}
LIBRARIES["hf"] = "nescio.models.zoo.transformers"
"""Each a module that is a ``Library``, by what stands before the colon; imported when it is asked for."""
OWN = "nescio.models.zoo.own"
"""What stands before the colon is a module or file of the user's."""
BARE = ("nescio.models.zoo.cifar", "nescio.models.zoo.lite0", LIBRARIES["timm"], LIBRARIES["torchvision"])
"""Those whose networks are known by their name alone, in the order in which they are asked."""


def architecture_of(model: str, names: Sequence[str] | None = None) -> Architecture:
    """How to make the network of this name, for classes of these names where it reads them.

    Raises:
        InputError: no library knows it; the nearest name is given.
    """
    library, text = library_of(model)
    return library.architecture(text, names)


def library_of(model: str) -> tuple[Library, str]:
    """The library that knows this network, and the name that it knows it by.

    Raises:
        InputError: none does; the nearest name is given.
    """
    family, colon, text = model.partition(":")
    if colon:
        return (_module(LIBRARIES[family]), text) if family in LIBRARIES else (_module(OWN), model)
    library = next((library for library in map(_module, BARE) if library.knows(model)), None)
    if library is not None:
        return library, model
    _module(OWN).refuse_a_file(model)  # type: ignore[attr-defined]
    hint = nearest(model, {name for library in map(_module, BARE) for name in library.bare_names()})
    hint = hint if len(hint) < 80 else ": it is not a CIFAR variant, and timm and torchvision do not know it"
    raise InputError(f"unknown model '{model}'{hint}")


def resolved(model: str, weights: Any) -> tuple[str, Any]:
    """The name that also says which of its library's weights are meant, and the weights that remain to be read."""
    family, colon, text = model.partition(":")
    if not colon or family not in LIBRARIES:
        return model, weights
    text, weights = _module(LIBRARIES[family]).resolved(text, weights)
    return f"{family}:{text}", weights


def _module(name: str) -> Library:
    return cast("Library", importlib.import_module(name))
