"""Feature masking by the classifier head's own weights."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from nescio.core.bounds import Share
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Shape


class FM(Shape, name="fm"):
    """Keep the features that the head weighs highest for the predicted class, set the others to zero.

    ``h' = m_c ⊙ h``, where ``m_c`` is 1 at the ``k = round(L (1 - p))`` largest *signed* entries of row ``c`` of the
    raw head and ``c`` is the raw prediction. ``h (B, L) -> h' (B, L)``. Learns its masks ``(C, L)`` from the head
    alone: no training images.

    Args:
        p: share of the features that is masked, in [0, 1). 0.6 is the published choice for CIFAR, 0.3 for ImageNet.

    Source: Sun et al., "Classifier-head Informed Feature Masking and Prototype-based Logit Smoothing for
    Out-of-Distribution Detection", 2024, eqs. 1-3.
    """

    needs = Needs(head=True, logits=True)

    mask: Tensor

    def __init__(self, *, p: Annotated[float, Share(below_one=True)] = 0.6) -> None:
        super().__init__()
        self.p = p

    def fit(self, data: FeatureSet) -> None:
        """Rank each row of the head."""
        weight = data.head.weight.detach()
        keep = max(1, round(weight.shape[1] * (1 - self.p)))
        top = weight.topk(keep, dim=1).indices
        self.mask = weight.new_zeros(weight.shape).scatter(1, top, 1)

    def forward(self, f: Features) -> Features:
        """Mask a batch."""
        return f.with_h(f.h * self.mask[f.pred].to(f.h.dtype))
