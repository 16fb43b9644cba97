"""What the OOD head says of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nescio.core.errors import check_choice
from nescio.core.features import Features
from nescio.core.needs import Maps, Needs
from nescio.core.stage import Score

TOP = 0.25
"""Share of the positions that ``pool=top`` averages."""


def _at_positions(maps: Maps) -> Sequence[Tensor]:
    """The OOD head's logit at every position."""
    return [maps.heads["ood"](maps.layers[-1]).flatten(1)]


class SSOD(Score, name="ssod"):
    """Probability of ID from the OOD head that the network was trained with: ``P(ID | x) = sigmoid(f_ood(GAP(X)))``.

    A probe reads the head at every position i of the feature map, ``z (B, H·W)``; the head is linear, so its logit of
    the pooled map is their mean. ``(B, H·W) -> score (B,)`` in [0, 1].

    Args:
        pool: ``image`` is the paper's: the sigmoid of the mean logit. ``mean`` is the mean of the positions'
            probabilities; ``top`` that of the quarter of the positions that look most like ID, for small objects.

    Source: Pei, "Image Background Serves as Good Proxy for Out-of-distribution Data", ICLR 2024, equation 15; ``mean``
    and ``top`` are ours. Train a network for it with ``nescio train --objective ssod``.
    """

    needs = Needs(features=False, probes={"ood": _at_positions}, heads=frozenset({"ood"}))

    def __init__(self, *, pool: str = "image") -> None:
        super().__init__()
        self.pool = check_choice("pool", pool, ("image", "mean", "top"))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        z = f.probed("ood")[0].to(torch.float64)
        if self.pool == "image":
            return z.mean(dim=1).sigmoid()
        if self.pool == "top":
            z = z.topk(max(1, round(TOP * z.shape[1])), dim=1).values
        return z.sigmoid().mean(dim=1)
