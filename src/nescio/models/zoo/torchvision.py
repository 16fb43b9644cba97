"""torchvision's classifiers by name: ``torchvision:NAME``."""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import nn

from nescio.core.errors import InputError, nearest
from nescio.data.transform import Transform
from nescio.models.zoo.architecture import NAME, UNKNOWN, Architecture, as_they_are, downloaded

resolved = as_they_are


def architecture(name: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says."""
    known = bare_names()
    if name not in known:
        raise InputError(f"torchvision has no classifier '{name}'{nearest(name, known)}")
    published = next(iter(torchvision.models.get_model_weights(name)))

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        options = {} if classes is None else {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            options |= {"init_weights": False, "aux_logits": True}
        chosen = published if pretrained else None
        return downloaded(lambda: torchvision.models.get_model(name, weights=chosen, **options), name)

    def transform(_: nn.Module) -> Transform:
        t = published.transforms()
        return Transform(
            crop=t.crop_size[0],
            resize=t.resize_size[0],
            interpolation=t.interpolation.value,
            mean=tuple(t.mean),
            std=tuple(t.std),
        )

    def class_names(_: nn.Module, pretrained: bool) -> list[str] | None:
        return list(published.meta["categories"]) if pretrained else None

    top1 = published.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    accuracy = None if top1 is None else (top1 / 100, "torchvision states for ImageNet's validation images")
    return Architecture(f"torchvision:{name}", build, transform, class_names=class_names, accuracy=accuracy)


def untrusted(name: str) -> str | None:
    """As ``Library`` says."""
    return None if NAME.fullmatch(name) else UNKNOWN


def knows(name: str) -> bool:
    """As ``Library`` says."""
    return name in bare_names()


def bare_names() -> Sequence[str]:
    """As ``Library`` says."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names
