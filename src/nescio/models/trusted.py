"""Which networks a file may name. A file comes from anyone: it must not say which code is run, or what is fetched."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from nescio.core.errors import InputError
from nescio.models.zoo.architecture import NAME, UNKNOWN, Architecture
from nescio.models.zoo.registry import architecture_of, library_of

LONGEST = 2000
"""Letters of a name, prompts included."""


def trusted_architecture(model: Any, names: Sequence[str] | None = None) -> Architecture:
    """How to make the network that a file names: a library's or one of ours, from nothing but its name.

    Never a path, a folder, a function of somebody's, an address, or what needs a hub's answer. Its heads are those that
    the file holds: none is made from another file that the name gives.

    Args:
        model: what the file says.
        names: of the classes.

    Raises:
        InputError: the name is none of these, the message says why; or no library knows it.
    """
    why = _untrusted(model)
    try:
        made = dataclasses.replace(architecture_of(model, names), heads={}) if why is None else None
    except InputError as e:
        made, why = None, str(e) if ":" in model else UNKNOWN
    if made is None:
        raise InputError(f"its network is '{str(model)[:100]}': {why}")
    return made if made.load_alone is None else dataclasses.replace(made, load=made.load_alone)


def _untrusted(model: Any) -> str | None:
    """Why a name in a file is not used as it is; None where it may be."""
    if not isinstance(model, str) or not 0 < len(model) <= LONGEST:
        return f"this is not a name of up to {LONGEST:,} characters"
    if ":" not in model and not NAME.fullmatch(model):
        return UNKNOWN
    try:
        library, text = library_of(model)
        return library.untrusted(text)
    except InputError as e:
        return str(e) if ":" in model else UNKNOWN
