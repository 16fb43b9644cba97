"""How sure every group of classes is that an image is none of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


class MOS(Score, name="mos"):
    """The least of the probabilities of "others" over the groups of classes, negative: ``-min_g p(others | g)``.

    An ID image belongs to one group, which knows it; an OOD image to none. ``log p (B, G) -> score (B,)`` in [-1, 0].

    Source: Huang and Li, "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space", CVPR 2021,
    equation 5. Train a network for it with ``nescio train --objective mos``.
    """

    needs = Needs(features=False, heads=frozenset({"mos"}))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return -f.probed("mos")[0].to(torch.float64).amin(dim=1).exp()
