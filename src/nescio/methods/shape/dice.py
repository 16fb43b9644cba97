"""Sparsification of the head's weights."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from nescio.core.bounds import Share
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import mean_feature
from nescio.core.needs import Needs
from nescio.core.quantiles import quantile
from nescio.core.stage import Shape


class DICE(Shape, name="dice"):
    """Keep the weights that contribute most to the logits of the training images, set the others to zero.

    ``f = (M ⊙ W) h + b``, where ``M`` is 1 where ``W_kl · mean(h_l)`` exceeds its ``p`` quantile over the whole
    matrix. ``weight (C, L) -> (C, L)``. The mean is of raw training features, also behind ``react``: as in the
    authors' DICE + ReAct.

    Args:
        p: share of the weights that is dropped, in [0, 1). 0.9 is the authors' for CIFAR, 0.7 for ImageNet.

    Source: Sun and Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection", ECCV 2022. Their code
    multiplies features and weights per image, ``(B, C, L)``; masking the head gives the same logits.
    """

    needs = Needs(head=True, train=True)

    mask: Tensor

    def __init__(self, *, p: Annotated[float, Share(below_one=True)] = 0.9) -> None:
        super().__init__()
        self.p = p

    def fit(self, data: FeatureSet) -> None:
        """Rank the contributions of all weights together."""
        contribution = data.head.weight * mean_feature(data)
        self.mask = (contribution > quantile(contribution, self.p)).to(data.head.weight.dtype)

    def forward(self, f: Features) -> Features:
        """Mask the head."""
        return f.with_head(f.head.masked(self.mask.to(f.h.dtype)))
