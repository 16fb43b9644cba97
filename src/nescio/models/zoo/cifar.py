"""The networks of the CIFAR papers: library networks whose stem is changed for 32 × 32 images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from nescio.data.transform import Transform
from nescio.models.zoo.architecture import Architecture, as_they_are

resolved = as_they_are
CIFAR_TRANSFORM = Transform.parse("crop=32,mean=cifar10")


def densenet_bc_100_12(num_classes: int = 10) -> nn.Module:
    """DenseNet-BC, 100 layers, growth rate 12 (Huang et al. 2017), with a 3 × 3 stem and no first pooling."""
    from torchvision.models import DenseNet

    model: nn.Module = DenseNet(
        growth_rate=12, block_config=(16, 16, 16), num_init_features=24, bn_size=4, num_classes=num_classes
    )
    body = OrderedDict(model.get_submodule("features").named_children())
    for name in ("norm0", "relu0", "pool0"):
        del body[name]
    body["conv0"] = nn.Conv2d(3, 24, kernel_size=3, stride=1, padding=1, bias=False)
    model.features = nn.Sequential(body)
    return model


def resnet18_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-18 (He et al. 2016) with a 3 × 3 stem of stride 1 and no first pooling."""
    from torchvision.models import resnet18

    model: nn.Module = resnet18(weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


CIFAR_MODELS = {"densenet-bc-100-12": densenet_bc_100_12, "resnet18-cifar": resnet18_cifar}


def architecture(name: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says."""
    build = CIFAR_MODELS[name]
    return Architecture(name, lambda c, _: build(c or 10), lambda _: CIFAR_TRANSFORM, has_pretrained=False)


def untrusted(name: str) -> str | None:
    """As ``Library`` says."""
    return None


def knows(name: str) -> bool:
    """As ``Library`` says."""
    return name in CIFAR_MODELS


def bare_names() -> Sequence[str]:
    """As ``Library`` says."""
    return list(CIFAR_MODELS)
