"""The last linear layer of a network: which one it is, taking it out, and putting another in its place."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

from torch import Tensor, nn

from nescio.core.errors import InputError, nearest, some

ENCODER = "if it outputs features, give head='none' (--head none)"
"""The way out for a network without a head."""


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is one that a head can be: linear, or a 1 × 1 convolution."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def run(model: nn.Module, x: Tensor, name: str) -> tuple[Any, list[str]]:
    """What the network returns for images ``x``, and the names of its linear layers in the order in which they ran.

    Raises:
        InputError: it cannot be run on them.
    """
    names = {module: n for n, module in model.named_modules()}
    ran: list[str] = []

    def record(module: nn.Module, _inputs: Any, _output: Any) -> None:
        if module in names and is_linear(module):
            ran.append(names[module])

    handle = nn.modules.module.register_module_forward_hook(record)
    try:
        return model(x), ran
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as e:
        reason = str(e).strip().partition("\n")[0]
        raise InputError(f"{name} fails on images of shape {tuple(x.shape)}: {reason}") from None
    finally:
        handle.remove()


def choose(model: nn.Module, ran: list[str], wanted: str | None, name: str) -> str:
    """The name of the layer that is the head: the one that the user names, else the last that ran.

    Raises:
        InputError: there is none; the layers are listed.
    """
    layers = {n: m for n, m in model.named_modules() if not list(m.children())}
    if wanted is not None:
        if wanted not in layers:
            raise InputError(f"{name} has no layer '{wanted}'{nearest(wanted, layers)}")
        if not is_linear(layers[wanted]):
            kind = type(layers[wanted]).__name__
            raise InputError(
                f"layer '{wanted}' of {name} is a {kind}, not a linear layer; linear layers that run: {some(ran)}"
            )
        return wanted
    if not ran:
        listed = some((f"{n} ({type(m).__name__})" for n, m in layers.items()), limit=12)
        raise InputError(
            f"{name} has no linear head: no linear layer or 1 × 1 convolution ran; {ENCODER}. Its layers: {listed}"
        )
    return ran[-1]


def without(network: nn.Module, layer: str) -> nn.Module:
    """The network, changed in place, with an identity where the layer was."""
    if not layer:  # it is one linear layer
        return nn.Flatten()
    owner, _, attribute = layer.rpartition(".")
    setattr(network.get_submodule(owner), attribute, nn.Identity())
    return network


def resize(network: nn.Module, name: str, n_classes: int) -> None:
    """Put a new last layer for another number of classes in the place of layer ``name``."""
    layer = network.get_submodule(name)
    bias = layer.bias is not None
    width = int(layer.weight.shape[1])  # type: ignore[index]
    made = (
        nn.Conv2d(width, n_classes, 1, bias=bias) if isinstance(layer, nn.Conv2d) else nn.Linear(width, n_classes, bias)
    )
    owner, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(owner), attribute, made)


def shallow_copy(module: nn.Module, memo: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """The module tree again, with the same parameter and buffer objects: its parts can be exchanged freely."""
    memo = {} if memo is None else memo
    if module not in memo:
        memo[module] = twin = copy.copy(module)
        for attribute, value in vars(module).items():
            if isinstance(value, dict) and attribute.startswith("_"):  # parameters, buffers, hooks
                object.__setattr__(twin, attribute, copy.copy(value))
            elif getattr(value, "__self__", None) is module and isinstance(value, MethodType):
                object.__setattr__(twin, attribute, MethodType(value.__func__, twin))  # forward, as Lightning sets it
        twin._compiled_call_impl = None  # noqa: SLF001 - after model.compile() it would run the original
        for name, child in vars(module)["_modules"].items():
            twin.add_module(name, child if child is None else shallow_copy(child, memo))
    return memo[module]
