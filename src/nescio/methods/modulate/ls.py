"""Logit smoothing by class prototypes."""

from __future__ import annotations

from nescio.core import numerics
from nescio.core.features import Features
from nescio.core.stage import Modulate
from nescio.methods.prototypes import OfPrototypes


class LS(OfPrototypes, Modulate, name="ls"):
    """Scale the logits by the cosine between the raw feature and the prototype of the predicted class.

    ``f̂ = s · f``, ``s = max(0, cos(h, v_c))`` with the *raw* ``h``, the raw prediction ``c`` and the prototype ``v_c``
    = mean training feature of class ``c`` by true label. ``logits (B, C) -> (B, C)``. A zero feature vector has cosine
    0. A negative cosine (possible only where features can be negative, as in a ViT) counts as 0: the paper's formula
    would reverse the logits, and the image opposite to its prototype could get a confident score.

    Args:
        prototypes: ``train``, the means above, or ``head``, the head's own rows instead, which needs no training
            images. What that costs: docs/benchmarks/accuracy.md.

    Source: Sun et al., "Classifier-head Informed Feature Masking and Prototype-based Logit Smoothing for
    Out-of-Distribution Detection", 2024, eqs. 6-8.
    """

    def forward(self, f: Features) -> Features:
        """Smooth a batch."""
        s = numerics.cosine(f.raw.h, self.centres[f.pred].to(f.h.dtype)).clamp(min=0)
        return f.with_logits(f.logits * s[:, None])
