"""Networks that a test trains in a second, for ``--arch tiny_networks:NAME`` as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nescio.models import Classifier, load_classifier


class GroupNet(nn.Module):
    """Two convolutions with group norm, a 4 × 4 map of 16 × 16 images, three classes: batches may be split at will."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GroupNorm(2, 16),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.pool(self.features(x)).flatten(1)))


class BatchNormNet(GroupNet):
    """The same with batch norm, and dropout before the head: everything that a step may draw or remember."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.features[1], self.features[4] = nn.BatchNorm2d(8), nn.BatchNorm2d(16)


def group_net() -> nn.Module:
    return GroupNet()


def batch_norm_net() -> nn.Module:
    return BatchNormNet()


def reopened(run: Path, **options: Any) -> Classifier:
    """What a run on ``batch_norm_net`` left: a run folder may not say which code makes its network, so it is named."""
    return load_classifier("tiny_networks:batch_norm_net", weights=run, device="cpu", **options)
