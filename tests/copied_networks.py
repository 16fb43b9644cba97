"""The ends of the CIFAR networks that are copied most, on bodies of a few channels: 3 × 16 × 16 images, four classes.

Each pools its last map of 4 × 4 by the mean, and each writes that in another way. ``features`` gives that map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it, and as the copied code does
from torch import Tensor, nn


class Shortcut(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


class Block(nn.Module):
    """A residual block, with a convolution in the shortcut, or, as akamaster has it, padded channels."""

    def __init__(self, channels: int, out: int, stride: int, *, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        more = (out - channels) // 2
        self.shortcut = (
            Shortcut(lambda x: F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more, more)))
            if padded
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """kuangliu's: a pooling of fixed size."""

    padded = False

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = Block(8, 8, 1, padded=self.padded)
        self.layer2 = Block(8, 12, 2, padded=self.padded)
        self.layer3 = Block(12, 16, 2, padded=self.padded)
        self.linear = nn.Linear(16, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        out = F.avg_pool2d(self.features(x), 4)
        out = out.view(out.size(0), -1)
        return self.linear(out)


class PaddedResNet(ResNet):
    """akamaster's: a pooling of the map's own size."""

    padded = True

    def forward(self, x: Tensor) -> Tensor:
        out = self.features(x)
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class WideResNet(ResNet):
    """A view of as many channels as there are."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.avg_pool2d(self.features(x), 4)
        out = out.view(-1, 16)
        return self.linear(out)


class PoolingLayer(ResNet):
    """A layer of fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.avgpool = nn.AvgPool2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.avgpool(self.features(x))
        return self.linear(out.view(out.size()[0], -1))


class Mean(ResNet):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean([2, 3]))


class MeanOfMeans(ResNet):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean(3).mean(2))


class Flattened(ResNet):
    """As many channels as positions: which of the two is averaged is not to be told from the shape."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.features(x)
        return self.linear(out.view(out.size(0), out.size(1), -1).mean(dim=2))


class Adaptive(ResNet):
    """Behind the pooling, the size of what was before it is read."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.features(x)
        return self.linear(F.adaptive_avg_pool2d(out, (1, 1)).reshape(out.shape[0], -1))


class CountedImages(ResNet):
    def forward(self, x: Tensor) -> Tensor:
        n, _, _, _ = x.shape
        return self.linear(F.avg_pool2d(self.features(x), 4).view(n, -1))


class DenseNet(nn.Module):
    """The DICE authors': concatenated maps, a pooling of fixed size, a view of as many channels as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(8, 4, 3, 1, 1, bias=False) for _ in range(3))
        self.trans = nn.ModuleList(nn.Conv2d(12, 8, 1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (8, 8, 8, 12))
        self.in_planes = 12
        self.fc = nn.Linear(12, 4)

    def features(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for i, conv in enumerate(self.convs):
            out = torch.cat([out, conv(F.relu(self.norms[i](out)))], 1)
            if i < 2:
                out = F.avg_pool2d(self.trans[i](out), 2)
        return F.relu(self.norms[3](out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.avg_pool2d(self.features(x), 4)
        out = out.view(-1, self.in_planes)
        return self.fc(out)


NETWORKS = [
    *(ResNet, PaddedResNet, WideResNet, DenseNet),
    *(PoolingLayer, Mean, MeanOfMeans, Flattened, Adaptive, CountedImages),
]
