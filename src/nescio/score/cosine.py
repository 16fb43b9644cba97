"""Cosine to the predicted class's prototype."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio import ops
from nescio.features import Features, TrainingData
from nescio.fitting import prototypes
from nescio.stage import Stage


class Cosine(Stage, name="cosine", place="score"):
    """Cosine between the feature and the prototype of the raw prediction: ``cos(h, v_c)``. ``h (B, L) -> score (B,)``.

    The factor of logit smoothing (``ls``), as a score of its own; here a negative cosine stays negative. Prototypes
    are means of what the stages before it produce. A zero feature vector scores 0.

    Source: Sun et al., "Classifier-head Informed Feature Masking and Prototype-based Logit Smoothing for
    Out-of-Distribution Detection", 2024, eq. 7.
    """

    needs_train = True
    prototypes: Tensor

    def fit(self, data: TrainingData) -> None:
        """Average the training features of each class."""
        self.prototypes = prototypes(data, "cosine")

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return ops.cosine(f.h.to(torch.float64), self.prototypes[f.pred].to(torch.float64))
