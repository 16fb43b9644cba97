"""What a network is wrapped in, and which of the things that it returns is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from nescio.core.errors import InputError, nearest

Key = int | str
"""Where the meant output stands: a position in a tuple, a key of a dict, an attribute."""
_POOLED = "pooler_output"
"""What a network of transformers' without a head returns beside its tokens."""


def unwrapped(model: object) -> nn.Module:
    """The network within DataParallel, DistributedDataParallel and ``torch.compile``.

    Raises:
        InputError: it is no module, or one whose layers cannot be taken apart: scripted, traced or exported.
    """
    kind = type(model).__name__
    while isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    if isinstance(model, torch.jit.ScriptModule) or kind == "ExportedProgram" or _is_exported(model):
        raise InputError(
            f"{kind} is scripted, traced or exported: its last layer cannot be found; give the nn.Module "
            "that it was made of"
        )
    if not isinstance(model, nn.Module):
        raise InputError(
            f"expected an nn.Module to make a classifier of, got {kind}; to load one by name: load_classifier(NAME)"
        )
    return model


def _is_exported(model: object) -> bool:
    """Whether a graph runs operators, as ``torch.export`` leaves it, and no layers."""
    return isinstance(model, fx.GraphModule) and any("aten" in str(node.target) for node in model.graph.nodes)


def key_of(output: Any, wanted: Key | None, rows: int, name: str) -> Key | None:
    """Where in a network's output for ``rows`` images the logits or features stand; None where it is these alone.

    Args:
        output: what the network returned.
        wanted: what the user said, if anything; digits in a text are a position.
        rows: number of images.
        name: what a message calls the network.

    Raises:
        InputError: several could be meant, or none.
    """
    entries = _entries(output)
    if wanted is not None:
        known = {str(key): key for key in entries}
        if str(wanted) not in known:
            listed = nearest(str(wanted), known) if known else "; it returns one tensor: drop output="
            raise InputError(f"{name} has no output '{wanted}'{listed}")
        if not isinstance(found := entries[known[str(wanted)]], Tensor):
            raise InputError(
                f"{name} returns a {type(found).__name__} as '{wanted}': wrap it so that it returns logits"
            )
        return known[str(wanted)]
    if isinstance(output, Tensor):
        return None
    if isinstance(getattr(output, "logits", None), Tensor) and type(output) is not dict:
        return "logits"
    fitting = [key for key, t in entries.items() if isinstance(t, Tensor) and t.ndim >= 2 and len(t) == rows]
    if isinstance(output, tuple | list):
        matrices = [key for key in fitting if entries[key].ndim == 2]
        fitting = matrices[:1] or fitting[:1]
    if _POOLED in fitting:
        fitting = [_POOLED]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(f"{name} returns {', '.join(map(str, entries))}; choose the logits: output='{fitting[0]}'")
    raise InputError(
        f"{name} returns {type(output).__name__}; expected logits (B, C), a tuple or dict that holds them, or an "
        "object with .logits"
    )


def _entries(output: Any) -> Mapping[Key, Any]:
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return {} if isinstance(output, Tensor) else dict(getattr(output, "__dict__", {}))


def picked(output: Any, key: Key | None) -> Tensor:
    """The tensor at ``key``; a tensor is itself."""
    if key is None or isinstance(output, Tensor):
        tensor: Tensor = output
    else:
        entries: Any = output  # of a dict or tuple, else attributes
        tensor = entries[key] if isinstance(output, Mapping | tuple | list) else getattr(output, str(key))
    return tensor


def has_no_head(model: nn.Module, key: Key | None) -> bool:
    """Whether a network says that it has no classification head, as those of timm and transformers do."""
    return getattr(model, "num_classes", None) == 0 or key == _POOLED


class Single(nn.Module):
    """A network that returns one of its outputs alone, so that a graph of it ends there."""

    def __init__(self, body: nn.Module, key: Key) -> None:
        super().__init__()
        self.body, self.key, self.training = body, key, body.training

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        return picked(self.body(x), self.key)
