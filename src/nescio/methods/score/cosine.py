"""Cosine to the predicted class's prototype."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.errors import check_choice
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import prototypes
from nescio.core.needs import Needs
from nescio.core.stage import Score


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

    def __init__(self, *, prototypes: str = "train") -> None:
        super().__init__()
        self.prototypes = check_choice("prototypes", prototypes, ("train", "head"))

    @property
    def needs(self) -> Needs:
        """By its options."""
        return Needs(logits=True) | (Needs(train=True, labels=True) if self.prototypes == "train" else Needs(head=True))

    def fit(self, data: FeatureSet) -> None:
        """Average the training features of each class, or take the head's rows."""
        self.centres = prototypes(data, self.name) if self.needs.train else data.head.weight.clone()

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return numerics.cosine(f.h.to(torch.float64), self.centres[f.pred].to(torch.float64))
