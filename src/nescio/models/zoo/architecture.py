"""How a network is made by its name: what each library says of one, and of itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.data.transform import Transform
from nescio.models.weights import load_into

NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""How timm, torchvision and we write a network's name."""
UNKNOWN = "no library knows this name"


@dataclass
class Architecture:
    """How to make a network: ``build(classes, pretrained)``, and what is known of it.

    ``class_names(network, pretrained)``: of other weights than the library's own it often cannot know them.
    ``load(network, state, what)``: put weights into it, which a message calls ``what``.
    ``heads``: how to make those that its name asks for, from the network with its weights and the device to do it on.
    ``is_users``: it is made by a function that is no library's, so its weights may be random.
    ``accuracy``: of the library's own weights, a share in [0, 1], and who says so.
    ``build_encoder(pretrained)``: the network without a head, where that is another than ``build`` makes.
    ``load_alone``: as ``load``, of weights in a stranger's file: nobody is asked for what else they would need.
    ``finish``: take away what only its heads were made from.
    """

    name: str
    build: Callable[[int | None, bool], nn.Module]
    transform: Callable[[nn.Module], Transform | None]
    has_pretrained: bool = True
    class_names: Callable[[nn.Module, bool], list[str] | None] = lambda *_: None
    load: Callable[[nn.Module, dict[str, Tensor], str], None] = load_into
    heads: Mapping[str, Callable[[nn.Module, torch.device], nn.Module]] = field(default_factory=dict)
    is_users: bool = False
    accuracy: tuple[float, str] | None = None
    build_encoder: Callable[[bool], nn.Module] | None = None
    load_alone: Callable[[nn.Module, dict[str, Tensor], str], None] | None = None
    finish: Callable[[nn.Module], None] = lambda _: None


class Library(Protocol):
    """A module that knows networks by name. Each file of this package that ``registry`` lists is one."""

    def architecture(self, text: str, names: Sequence[str] | None) -> Architecture:
        """How to make the network ``text``, for classes of these names where it reads them.

        Raises:
            InputError: there is none of this name.
        """

    def untrusted(self, text: str) -> str | None:
        """Why a stranger's file may not name ``text``; None where it may. Nothing is opened, asked or run."""

    def knows(self, name: str) -> bool:
        """Whether a name without the library's own before it is one of its networks'."""

    def bare_names(self) -> Sequence[str]:
        """Names that ``knows`` knows, to find the nearest among."""

    def resolved(self, text: str, weights: Any) -> tuple[str, Any]:
        """The text that also says which of the library's weights are meant, and the weights that remain to be read."""


def as_they_are(text: str, weights: Any) -> tuple[str, Any]:
    """Both unchanged: ``resolved`` of a library with one set of weights for a network."""
    return text, weights


def never(name: str) -> bool:
    """``knows`` of a library that is always named."""
    return False


def no_bare_names() -> Sequence[str]:
    """``bare_names`` of a library that is always named."""
    return ()


def downloaded(make: Callable[[], nn.Module], name: str) -> nn.Module:
    """The network that ``make`` makes, perhaps with weights from a hub. Raises InputError where that fails."""
    try:
        return make()
    except Exception as e:  # noqa: BLE001 - each hub client raises errors of its own
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(
            f"pretrained weights of '{name}' cannot be loaded ({reason}); give a file: weights= (--weights FILE)"
        ) from None


def literals(text: str, name: str) -> dict[str, Any]:
    """``global_pool=avg,img_size=64`` as keyword arguments: numbers and True/False as such, the rest as words.

    Raises:
        InputError: an option has no value.
    """
    options: dict[str, Any] = {}
    for item in text.split(",") if text else ():
        key, equals, value = item.partition("=")
        if not (equals and key.isidentifier()):
            raise InputError(f"model option '{item}' of '{name}' cannot be read; write option=value")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two where it is nested too deep
            options[key] = value
    return options


def drop_auxiliary(network: nn.Module) -> None:
    """Take away the classifiers that GoogLeNet and Inception carry half way: they have a loss of their own."""
    if getattr(network, "aux_logits", False):
        network.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(network, name):
                setattr(network, name, None)
