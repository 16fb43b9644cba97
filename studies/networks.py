"""A network that two cores can train: for ``--arch studies.networks:small_resnet`` from the repository's root."""

from __future__ import annotations

from timm.models.resnet import BasicBlock
from torch import Tensor, nn

WIDTHS = (32, 96)


class SmallResNet(nn.Module):
    """Two residual blocks for 32 × 32 images: a feature map of 8 × 8 with 96 channels, 10 classes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, WIDTHS[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
        down = nn.Sequential(nn.Conv2d(*WIDTHS, 1, stride=2, bias=False), nn.BatchNorm2d(WIDTHS[1]))
        blocks = [BasicBlock(WIDTHS[0], WIDTHS[0]), BasicBlock(*WIDTHS, stride=2, downsample=down)]
        self.features = nn.Sequential(*stem, *blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, 32, 32)`` to logits ``(B, 10)``."""
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


def small_resnet() -> nn.Module:
    """A new one."""
    return SmallResNet()
