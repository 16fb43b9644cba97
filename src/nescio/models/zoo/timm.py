"""timm's networks by name: ``timm:NAME`` or ``timm:NAME:option=value``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import timm
from torch import nn

from nescio.core.errors import InputError, nearest
from nescio.data.transform import INTERPOLATIONS, Transform
from nescio.models.zoo.architecture import NAME, UNKNOWN, Architecture, as_they_are, downloaded, literals

resolved = as_they_are
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


def architecture(text: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says."""
    name, _, written = text.partition(":")
    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())[:80]}")
    own = literals(written, text)

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        options = own if classes is None else own | {"num_classes": classes}
        try:
            return downloaded(lambda: timm.create_model(name, pretrained=pretrained, **options), name)
        except TypeError as e:  # an option that this architecture lacks
            raise InputError(f"model 'timm:{text}': {e}") from None

    return Architecture(f"timm:{text}", build, transform_of, class_names=imagenet_names)


def untrusted(text: str) -> str | None:
    """As ``Library`` says."""
    name, _, written = text.partition(":")
    if not NAME.fullmatch(name):
        return UNKNOWN
    for option, value in literals(written, text).items():
        if option not in _SHAPING:
            return f"a file must not set timm's option '{option[:40]}'"
        if not _is_plain(value):
            return f"'{option}' must be a word, or numbers up to {_LARGEST}"
    return None


def knows(name: str) -> bool:
    """As ``Library`` says."""
    return bool(timm.is_model(name))


def bare_names() -> Sequence[str]:
    """As ``Library`` says."""
    names: list[str] = timm.list_models()
    return names


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) <= 4 and all(isinstance(v, int | float) and _is_plain(v) for v in value)
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or (isinstance(value, bool | int | float) and 0 <= value <= _LARGEST)


def imagenet_names(network: nn.Module, pretrained: bool) -> list[str] | None:
    """Where the weights are of ImageNet or of a part of it that timm knows."""
    subset = timm.data.infer_imagenet_subset(network) if pretrained else None
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    return [info.index_to_description(i).partition(",")[0] for i in range(info.num_classes())]


def transform_of(network: nn.Module) -> Transform | None:
    """From timm's data config; None for a network that timm did not make."""
    if not hasattr(network, "pretrained_cfg"):
        return None
    config = timm.data.resolve_model_data_config(network)
    crop = config["input_size"][-1]
    interpolation = config["interpolation"]
    return Transform(
        crop=crop,
        resize=math.floor(crop / config["crop_pct"]),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
