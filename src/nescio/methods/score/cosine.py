"""Cosine to the predicted class's prototype."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.arrays import of_arrays
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import prototypes
from nescio.core.needs import Needs
from nescio.core.stage import Score


@of_arrays
def cosine(h: Tensor, pred: Tensor, centres: Tensor) -> Tensor:
    """``Cosine`` of features ``h (B, L)``, predictions ``(B,)`` and prototypes ``(C, L)``: scores ``(B,)``."""
    return numerics.cosine(h.to(torch.float64), centres[pred].to(torch.float64))


class Cosine(Score, name="cosine"):
    """Cosine between the feature and the prototype of the raw prediction: ``cos(h, v_c)``. ``h (B, L) -> score (B,)``.

    The factor of logit smoothing (``ls``), as a score of its own; here a negative cosine stays negative. Prototypes
    are means of what the stages before it produce. A zero feature vector scores 0.

    Args:
        prototypes: ``train``, or ``head`` for the head's own rows, which needs no training images.

    Source: Sun et al., "Classifier-head Informed Feature Masking and Prototype-based Logit Smoothing for
    Out-of-Distribution Detection", 2024, eq. 7.
    """

    centres: Tensor

    def __init__(self, *, prototypes: Literal["train", "head"] = "train") -> None:
        super().__init__()
        self.prototypes = prototypes

    @property
    def needs(self) -> Needs:
        """By its options."""
        return Needs(logits=True) | (Needs(train=True, labels=True) if self.prototypes == "train" else Needs(head=True))

    def fit(self, data: FeatureSet) -> None:
        """Average the training features of each class, or take the head's rows."""
        self.centres = prototypes(data, self.name) if self.needs.train else data.head.weight.clone()

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return cosine(f.h, f.pred, self.centres)
