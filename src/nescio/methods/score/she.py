"""Hopfield energy of stored patterns."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import class_means_of_right
from nescio.core.needs import Needs
from nescio.core.stage import Score


@of_arrays
def she(h: Tensor, pred: Tensor, patterns: Tensor) -> Tensor:
    """``SHE`` of features ``h (B, L)``, predictions ``(B,)`` and the classes' patterns ``(C, L)``: scores ``(B,)``."""
    return (h.to(torch.float64) * patterns[pred].to(torch.float64)).sum(dim=1)


class SHE(Score, name="she"):
    """Inner product with the stored pattern of the predicted class: ``h · S_c``. ``h (B, L) -> score (B,)``.

    ``S_c`` is the mean training feature of class ``c`` over the images that the classifier gets right (over all of the
    class where it gets none right).

    Source: Zhang et al., "Out-of-Distribution Detection Based on In-Distribution Data Patterns Memorization with Modern
    Hopfield Energy", ICLR 2023.
    """

    needs = Needs(logits=True, train=True, labels=True)

    patterns: Tensor

    def fit(self, data: FeatureSet) -> None:
        """Average the correctly classified training features of each class."""
        self.patterns = class_means_of_right(data, self.name)[0].to(data.dtype)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return she(f.h, f.pred, self.patterns)
