"""State dicts from files, without running what a file may carry."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nescio.errors import InputError, some

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "state_dict_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_DEEPEST = 8
"""Prefixes before one name: each of them twice."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a checkpoint, without the common wrappers.

    Raises:
        InputError: the file is missing, damaged, holds no tensors, or more than tensors and plain containers.
    """
    if not path.is_file():
        raise InputError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as e:
        raise InputError(f"{path} is not a readable safetensors file: {e}") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds Python objects, which are not loaded because they could run code; save its state_dict alone"
        ) from None
    except Exception as e:  # noqa: BLE001 - a damaged file makes the unpickler raise nearly anything
        raise InputError(f"{path} is not a readable checkpoint: {type(e).__name__}: {e}") from None
    for _ in _WRAPPERS:  # not without end: a dict may hold itself
        inner = next((w for w in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(w), dict)), None)
        state = state if inner is None else state[inner]
    tensors = {k: v for k, v in state.items() if _is_plain(k, v)} if isinstance(state, dict) else {}
    if not tensors:
        raise InputError(f"{path} holds no state dict of tensors")
    return tensors


def _is_plain(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def strip_prefixes(state: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The state dict without what DataParallel, ``torch.compile`` or Lightning put before every key of ``wanted``."""
    for _ in range(_DEEPEST):
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None or any(k in wanted for k in state):
            break
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def load_into(network: nn.Module, state: dict[str, Tensor], told: str) -> None:
    """Put weights into a network. Batch norms' counters may be missing: old checkpoints lack them, and inference too.

    Args:
        network: changed in place.
        state: all of its weights by name.
        told: what a message calls them, and the network.

    Raises:
        InputError: a tensor is missing, not the network's, or of another shape.
    """
    own = network.state_dict()
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    wrong = [
        f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or unexpected or wrong:
        found = [
            f"{what}: {some(keys, 3)}"
            for what, keys in (("missing", missing), ("not in the model", unexpected), ("other shape", wrong))
            if keys
        ]
        raise InputError(f"{told} ({'; '.join(found)})")
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as e:  # of a kind that cannot be converted: quantised, say
        raise InputError(f"{told} ({str(e).strip().splitlines()[-1].strip()})") from None
