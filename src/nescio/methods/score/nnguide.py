"""Energy guided by nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import subsample
from nescio.core.needs import Needs
from nescio.methods.score.knn import KNN


class NNGuide(KNN, name="nnguide"):
    """Energy times the mean, over the k best matches, of cosine × the training image's energy.

    ``E(h) · mean_k (z · z_i) E(h_i)``, ``z = h / ‖h‖``, ``E = logsumexp f``; ``h (B, L), logits (B, C) -> score (B,)``.

    Args:
        k: number of matches, 1 or more; all where there are fewer. 10 is the authors'.
        alpha: share of the training features that is kept, in (0, 1]. The authors' is 0.01 for ImageNet.

    Source: Park, Jung and Teoh, "Nearest Neighbor Guidance for Out-of-Distribution Detection", ICCV 2023.
    """

    needs = Needs(logits=True, train=True)

    def __init__(self, *, k: int = 10, alpha: float = 1.0) -> None:
        super().__init__(k=k, alpha=alpha)

    def fit(self, data: FeatureSet) -> None:
        """Keep the training directions, scaled by their energy."""
        kept = subsample(data, self.alpha)
        self.bank = torch.cat([numerics.normalised(f.h) * f.logits.logsumexp(dim=1, keepdim=True) for f in kept])

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        best, _ = numerics.top_k_products(numerics.normalised(f.h), self.bank.to(f.h.dtype), self.k)
        return best.to(torch.float64).mean(dim=1) * f.logits.to(torch.float64).logsumexp(dim=1)
