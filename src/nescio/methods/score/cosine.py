"""Cosine to the predicted class's prototype."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.arrays import of_arrays
from nescio.core.features import Features
from nescio.core.stage import Score
from nescio.methods.prototypes import OfPrototypes


@of_arrays
def cosine(h: Tensor, pred: Tensor, centres: Tensor) -> Tensor:
    """``Cosine`` of features ``h (B, L)``, predictions ``(B,)`` and prototypes ``(C, L)``: scores ``(B,)``."""
    return numerics.cosine(h.to(torch.float64), centres[pred].to(torch.float64))


class Cosine(OfPrototypes, Score, name="cosine"):
    """Cosine between the feature and the prototype of the raw prediction: ``cos(h, v_c)``. ``h (B, L) -> score (B,)``.

    The factor of logit smoothing (``ls``), as a score of its own; here a negative cosine stays negative. Prototypes
    are means of what the stages before it produce. A zero feature vector scores 0.

    Args:
        prototypes: ``train``, or ``head`` for the head's own rows, which needs no training images.

    Source: Sun et al., "Classifier-head Informed Feature Masking and Prototype-based Logit Smoothing for
    Out-of-Distribution Detection", 2024, eq. 7.
    """

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return cosine(f.h, f.pred, self.centres)
