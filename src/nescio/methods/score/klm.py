"""Match of the softmax with typical softmaxes."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score

_FLOOR = -1e30


@of_arrays
def klm(z: Tensor, log_templates: Tensor) -> Tensor:
    """``KLM`` of logits ``z (B, C)`` and the logarithms of the templates ``(K, C)``: scores ``(B,)``."""
    log_p = z.to(torch.float64).log_softmax(dim=1)
    p = log_p.exp()
    return -((p * log_p).sum(dim=1, keepdim=True) - p @ log_templates.T).amin(dim=1)


class KLM(Score, name="klm"):
    """Negative Kullback-Leibler divergence to the nearest class template.

    ``-min_k KL(p ‖ d_k)``, ``d_k`` = mean softmax of the training images predicted as class k; a class that is never
    predicted has no template. ``logits (B, C) -> score (B,)``, in nats.

    Source: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022. They average
    over a validation set; on training images the templates are a little sharper.
    """

    needs = Needs(features=False, logits=True, train=True)

    log_templates: Tensor

    def fit(self, data: FeatureSet) -> None:
        """Average the softmax by prediction."""
        n = data.n_classes
        sums = torch.zeros(n, n, dtype=torch.float64, device=data.device)
        for f in data.chunks():
            sums.index_add_(0, f.pred, f.logits.to(torch.float64).softmax(dim=1))
        self.log_templates = (sums / sums.sum(dim=1, keepdim=True)).log().nan_to_num(nan=_FLOOR, neginf=_FLOOR)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return klm(f.logits, self.log_templates)
