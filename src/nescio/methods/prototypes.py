"""What a stage that compares features with the prototype of the predicted class learns."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from nescio.core.feature_set import FeatureSet
from nescio.core.fitting import prototypes
from nescio.core.needs import Needs
from nescio.core.stage import Stage


class OfPrototypes(Stage):
    """Keeps a prototype for each class ``(C, L)``: the mean of its training features, or the head's own row."""

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
