"""Tensors that say that they lie on another device than the CPU, where no other device is.

Their values are computed on the CPU. As on a GPU, tensors of two devices cannot be computed with together, and NumPy
takes none that is not copied first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

CARD = torch.device("meta")  # the one device that PyTorch makes tensors on wherever it runs
aten = torch.ops.aten
BY_INDEX = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""Indices may lie on the CPU, so what the first tensor says counts."""
COPIES = {aten._to_copy.default, aten.copy_.default}


class OnCard(Tensor):
    """A tensor on the card."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> OnCard:
        """``here``: its values."""
        shape = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made = Tensor._make_wrapper_subclass(cls, here.size(), device=CARD, **shape)
        made.here = here
        return made

    def tolist(self) -> Any:
        """PyTorch has none for subclasses."""
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    on_card: dict[int, OnCard] = {}
    elsewhere: list[Tensor] = []

    def enter(t: Any) -> Any:
        if isinstance(t, OnCard):
            on_card[id(t.here)] = t
            return t.here
        if isinstance(t, Tensor) and t.ndim:  # a GPU takes single numbers of the CPU
            elsewhere.append(t)
        return t

    args, kwargs = tree_map(enter, args), dict(tree_map(enter, kwargs))
    mixed = bool(on_card and elsewhere)
    first = bool(args) and id(args[0]) in on_card
    if mixed and not (func in COPIES or (func in BY_INDEX and first)):
        raise RuntimeError(f"{func}: expected all tensors on the same device, found the card and cpu")
    stays = first if func in BY_INDEX | COPIES else bool(on_card)
    if (device := kwargs.get("device")) is not None:
        stays, kwargs["device"] = torch.device(device) == CARD, torch.device("cpu")

    def leave(t: Any) -> Any:
        known = on_card.get(id(t))
        return known if known is not None else OnCard(t) if stays and isinstance(t, Tensor) else t

    return tree_map(leave, func(*args, **kwargs))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """What is made of numbers never reaches the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == CARD:
            return OnCard(func(*args, **kwargs | {"device": "cpu"}))
        if func is Tensor.new_tensor and isinstance(args[0], OnCard):
            return OnCard(args[0].here.new_tensor(*args[1:], **kwargs))
        return func(*args, **kwargs)


@contextmanager
def pretended_card() -> Iterator[type[OnCard]]:
    """While it is open, ``OnCard`` makes tensors on a card."""
    with torch.no_grad(), _Dispatch(), _Made():
        yield OnCard
