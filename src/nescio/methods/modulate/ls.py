"""Logit smoothing by class prototypes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from nescio.core import numerics
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import prototypes
from nescio.core.needs import Needs
from nescio.core.stage import Modulate


class LS(Modulate, name="ls"):
    """Scale the logits by the cosine between the raw feature and the prototype of the predicted class.

    ``f̂ = s · f``, ``s = max(0, cos(h, v_c))`` with the *raw* ``h``, the raw prediction ``c`` and the prototype ``v_c``
    = mean training feature of class ``c`` by true label. ``logits (B, C) -> (B, C)``. A zero feature vector has cosine
    0. A negative cosine (possible only where features can be negative, as in a ViT) counts as 0: the paper's formula
    would turn the logits round and could call the image opposite to its prototype a confident one.

    Args:
        prototypes: ``train``, the means above, or ``head``: the head's own rows in their place, which needs no training
            images. What that costs is measured in the README.

    Source: Sun et al., "Classifier-head Informed Feature Masking and Prototype-based Logit Smoothing for
    Out-of-Distribution Detection", 2024, eqs. 6-8.
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

    def forward(self, f: Features) -> Features:
        """Smooth a batch."""
        s = numerics.cosine(f.raw.h, self.centres[f.pred].to(f.h.dtype)).clamp(min=0)
        return f.with_logits(f.logits * s[:, None])
