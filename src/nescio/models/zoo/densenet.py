"""DenseNet-BC as torchvision builds it, without torchvision: importing that takes a second of each start."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _DenseLayer(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        inner = 4 * growth
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(width, inner, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        inner = self.conv1(self.relu1(self.norm1(torch.cat(maps, 1))))
        made: Tensor = self.conv2(self.relu2(self.norm2(inner)))
        return made


class _DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, width: int, growth: int) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", _DenseLayer(width + i * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class _Transition(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(width, width // 2, kernel_size=1, bias=False)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al. 2017) for small images: a 3 × 3 stem and no first pooling.

    Names of layers and tensors, printed form and the order of random draws are torchvision's, so that weights, keys of
    banks and trainings from a seed hold.

    Args:
        growth: feature maps that each layer adds.
        blocks: layers of each block.
        num_classes: outputs.
    """

    def __init__(self, growth: int, blocks: Sequence[int], num_classes: int) -> None:
        super().__init__()
        width = 2 * growth
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv0=nn.Conv2d(3, width, kernel_size=7, bias=False))
        for i, layers in enumerate(blocks, 1):
            parts[f"denseblock{i}"] = _DenseBlock(layers, width, growth)
            width += layers * growth
            if i < len(blocks):
                parts[f"transition{i}"] = _Transition(width)
                width //= 2
        parts["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        # last, as the stem of torchvision's ImageNet network was replaced: what is drawn before stays the same
        self.features.conv0 = nn.Conv2d(3, 2 * growth, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to logits ``(B, C)``."""
        maps = nn.functional.relu(self.features(x), inplace=True)
        pooled = nn.functional.adaptive_avg_pool2d(maps, (1, 1))
        logits: Tensor = self.classifier(torch.flatten(pooled, 1))
        return logits
