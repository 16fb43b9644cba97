"""Our own files of tensors: read whole or refused, and one hash over all that they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is no safetensors file, damaged, or no regular file.
    """
    if path.exists() and not path.is_file():  # to open a named pipe would wait for ever
        raise ValueError("it is no regular file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, RuntimeError, TypeError, AttributeError, KeyError) as e:  # the rest: of odd dtypes
        raise ValueError(str(e)) from None


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes, in whatever order they come."""
    digest = hashlib.blake2b(digest_size=16)
    for key, t in sorted(tensors.items()):
        digest.update(f"{key}{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def seal(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """One hash over tensors and the JSON that goes with them, however it is spaced and ordered.

    It shows damage, not malice: who writes a file can write its hash.
    """
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(f"{text}{hash_tensors(tensors)}".encode(), digest_size=16).hexdigest()
