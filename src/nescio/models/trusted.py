"""Which networks a file may name. A file comes from anyone: it must not say which code is run, or what is fetched."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.models.zoo.cifar import CIFAR_MODELS
from nescio.models.zoo.clip import PREFIX, Spec, library
from nescio.models.zoo.libraries import QUICKSTART, Architecture, architecture_of, literals

LONGEST = 2000
"""Letters of a name, prompts included."""
_NOT_KNOWN = "no library knows this name"
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
_LARGEST = 1024
"""Of a number in an option: a larger image or patch grid would take gigabytes."""
_SHAPING = {
    *("drop_rate", "drop_block_rate", "drop_path_rate", "attn_drop_rate", "pos_drop_rate", "proj_drop_rate"),
    *("global_pool", "img_size", "patch_size", "window_size", "output_stride", "in_chans", "num_classes"),
    *("class_token", "dynamic_img_size", "init_values", "embed_dim", "depth", "num_heads", "mlp_ratio"),
}
"""timm's options that shape a network. Others name files, folders or addresses (``checkpoint_path``, ``cache_dir``,
``pretrained_cfg``), or make something else of it (``features_only``, ``scriptable``)."""


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
        made, why = None, str(e) if ":" in model else _NOT_KNOWN
    if made is None:
        raise InputError(f"its network is '{str(model)[:100]}': {why}")
    hub = model.startswith(PREFIX) and _of_hub(model.removeprefix(PREFIX), "hf_tokenizer_name")
    return dataclasses.replace(made, load=functools.partial(_with_head, made.load)) if hub else made


def _with_head(load: Callable[..., None], network: nn.Module, state: dict[str, Tensor], told: str) -> None:
    """Else the head would be made of the classes' names, with a tokenizer that comes from a hub."""
    if "fc.weight" not in state:
        raise InputError(
            f"{told}: these are open_clip's own weights, and this network's tokenizer comes from Hugging Face's hub; "
            "name the network again (--model clip:…)"
        )
    load(network, state, told)


def _untrusted(model: Any) -> str | None:
    """Why a name in a file is not used as it is; None where it may be."""
    if not isinstance(model, str) or not 0 < len(model) <= LONGEST:
        return f"this is not a name of up to {LONGEST:,} letters"
    family, colon, rest = model.partition(":")
    if model == QUICKSTART or model in CIFAR_MODELS:
        return None
    if not colon or family == "torchvision":
        return None if _PLAIN.fullmatch(rest if colon else model) else _NOT_KNOWN
    if family == "timm":
        return _of_timm(rest)
    if family == "clip":
        return "its text tower comes from Hugging Face's hub" if _of_hub(rest, "hf_model_name") else None
    if family == "hf":
        return "Hugging Face's hub, or a folder, would be asked what it is"
    return "this is code from outside nescio, and a file must not say which code is run"


def _of_timm(text: str) -> str | None:
    name, _, given = text.partition(":")
    if not _PLAIN.fullmatch(name):
        return _NOT_KNOWN
    for option, value in literals(given, text).items():
        if option not in _SHAPING:
            return f"a file must not set timm's option '{option[:40]}'"
        if not _is_plain(value):
            return f"'{option}' must be a word, or numbers up to {_LARGEST}"
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) <= 4 and all(isinstance(v, int | float) and _is_plain(v) for v in value)
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or (isinstance(value, bool | int | float) and 0 <= value <= _LARGEST)


def _of_hub(text: str, key: str) -> bool:
    """Whether a CLIP network takes a part of this name in its configuration from Hugging Face's hub."""
    config = library().get_model_config(Spec.parse(text).arch)
    return any(isinstance(part, dict) and part.get(key) for part in config.values())
