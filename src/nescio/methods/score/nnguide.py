"""Energy guided by nearest neighbours."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.arrays import of_arrays
from nescio.core.bounds import AtLeast, Share
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import subsample
from nescio.core.needs import Needs
from nescio.methods.score.knn import KNN
from nescio.methods.score.logits import energy


@of_arrays
def nnguide(h: Tensor, z: Tensor, bank: Tensor, k: int = 10) -> Tensor:
    """``NNGuide`` of features ``h (B, L)`` and logits ``z (B, C)``: scores ``(B,)`` float64.

    ``bank (N, L)`` holds training features at length 1, each times its energy.
    """
    best, _ = numerics.top_k_products(numerics.normalised(h), bank.to(h.dtype), k)
    return best.to(torch.float64).mean(dim=1) * energy(z)


class NNGuide(KNN, name="nnguide"):
    """Energy times the mean, over the k best matches, of cosine × the training image's energy.

    ``E(h) · mean_k (z · z_i) E(h_i)``, ``z = h / ‖h‖``, ``E = logsumexp f``; ``h (B, L), logits (B, C) -> score (B,)``.

    Args:
        k: number of matches, 1 or more; all where there are fewer. 10 is the authors'.
        alpha: share of the training features that is kept, in (0, 1]. The authors' is 0.01 for ImageNet.

    Source: Park, Jung and Teoh, "Nearest Neighbor Guidance for Out-of-Distribution Detection", ICCV 2023.
    """

    needs = Needs(logits=True, train=True)

    def __init__(
        self, *, k: Annotated[int, AtLeast(1)] = 10, alpha: Annotated[float, Share(above_zero=True)] = 1.0
    ) -> None:
        super().__init__(k=k, alpha=alpha)

    def fit(self, data: FeatureSet) -> None:
        """Keep the training directions, scaled by their energy."""
        kept = subsample(data, self.alpha)
        self.bank = torch.cat([numerics.normalised(f.h) * f.logits.logsumexp(dim=1, keepdim=True) for f in kept])

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return nnguide(f.h, f.logits, self.bank, self.k)
