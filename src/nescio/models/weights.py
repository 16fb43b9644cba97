"""State dicts from files, without running what a file may carry."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nescio.core.artifact import read_tensors
from nescio.core.errors import InputError, some

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "state_dict_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_DEEPEST = 8
"""Prefixes before one name: each of them twice."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a checkpoint, without the common wrappers.

    Raises:
        InputError: the file is missing, damaged, holds no tensors, or more than tensors and plain containers.
    """
    _refuse_others(path)
    try:
        if path.suffix == ".safetensors":
            state: Any = read_tensors(path)[1]
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError as e:
        kind = "safetensors file" if path.suffix == ".safetensors" else "checkpoint"
        raise InputError(f"{path} is not a readable {kind}: {e}") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} has Python objects, which are not loaded because they could run code; save only its state_dict"
        ) from None
    except Exception as e:  # noqa: BLE001 - a damaged file makes the unpickler raise nearly anything
        raise InputError(f"{path} is not a readable checkpoint: {type(e).__name__}: {e}") from None
    for _ in _WRAPPERS:  # not without end: a dict may hold itself
        inner = next((w for w in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(w), dict)), None)
        state = state if inner is None else state[inner]
    tensors = {k: v for k, v in state.items() if _is_plain(k, v)} if isinstance(state, dict) else {}
    if not tensors:
        raise InputError(f"{path} has no state dict of tensors")
    return tensors


_KINDS = {
    b"PAR1": "a parquet file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer: fetch the weights with git lfs pull",
    b"<": "a web page or XML, not weights",
}
"""What a file is, by its first bytes."""


def _refuse_others(path: Path) -> None:
    """Refuse a folder, and a file that is neither safetensors nor what ``torch.save`` writes, and say what it is."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"))
        holds = f"it contains {some(inside)}" if inside else "it contains none"
        raise InputError(f"{path} is a folder; give the file of weights in it: {holds}")
    if not path.is_file():
        raise InputError(f"no such weights file: {path}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}") from None
    what = next((kind for begins, kind in _KINDS.items() if start.startswith(begins)), None)
    if not start:
        what = "empty"
    elif what is None and path.suffix != ".safetensors" and b"\0" not in start and start[:2] != b"PK":
        try:
            start.decode("utf-8")
        except UnicodeDecodeError as e:
            what = "text" if e.start > len(start) - 4 else None  # a letter that the 512 bytes cut
        else:
            what = "text"
    if what is not None:
        raise InputError(f"{path} is {what}; give weights: a safetensors file, or a checkpoint of torch.save")


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


def load_into(network: nn.Module, state: dict[str, Tensor], title: str) -> None:
    """Put weights into a network. Batch norms' counters may be missing: old checkpoints lack them, and inference too.

    Args:
        network: changed in place.
        state: all of its weights by name.
        title: what a message calls them, and the network.

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
        raise InputError(f"{title} ({'; '.join(found)})")
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as e:  # of a kind that cannot be converted: quantised, say
        raise InputError(f"{title} ({str(e).strip().splitlines()[-1].strip()})") from None
