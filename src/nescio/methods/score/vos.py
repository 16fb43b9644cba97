"""What a logistic regression on the energy says of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


class VOS(Score, name="vos"):
    """Probability of ID from the energy head that was trained on virtual outliers: ``sigmoid(a · E_w(x) + b)``.

    ``E_w`` is the logarithm of a weighted sum of the exponential logits. A logit ``(B, 1) -> score (B,)`` in [0, 1].

    Source: Du, Wang, Cai and Li, "VOS: Learning What You Don't Know by Virtual Outlier Synthesis", ICLR 2022, equation
    7; the authors' code for CIFAR scores with the plain ``energy``. Train a network for it with ``nescio train
    --objective vos``.
    """

    needs = Needs(features=False, heads=frozenset({"vos"}))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return f.probed("vos")[0][:, 0].to(torch.float64).sigmoid()
