"""Confidence within a learnt boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


class BAL(Score, name="bal"):
    """Probability of lying within the features' boundary times the largest softmax: ``σ(D(h)) · max softmax(f)``.

    D is the discriminator that was trained on made-up features. Its logit ``(B, 1)`` and logits ``(B, C) -> score
    (B,)`` in [0, 1].

    Source: Pei, Zhang, Fan and Meng, "Out-of-distribution Detection with Boundary Aware Learning", ECCV 2022; the
    product is that of the authors' code. Train a network for it with ``nescio train --objective bal``.
    """

    needs = Needs(features=False, logits=True, heads=frozenset({"bal"}))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        confidence = f.logits.to(torch.float64).softmax(dim=1).amax(dim=1)
        return confidence * f.probed("bal")[0][:, 0].to(torch.float64).sigmoid()
