"""Logit smoothing by class prototypes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nescio import ops
from nescio.errors import InputError, some
from nescio.features import Features, TrainingData
from nescio.stage import Stage


def prototypes(data: TrainingData, wanted_by: str) -> Tensor:
    """Mean raw training feature of each class by true label, ``(C, L)``, in the head's dtype.

    Raises:
        InputError: a label is missing or outside the head's range, or a class has no image; the class is named.
    """
    n = data.head.n_classes

    def labelled() -> Iterator[tuple[Tensor, Tensor]]:
        for f in data():
            if f.labels is None or (f.labels < 0).any() or (f.labels >= n).any():
                raise InputError(f"{wanted_by} needs training images with labels in 0…{n - 1}")
            yield f.h, f.labels

    means, counts = ops.class_means(labelled(), n)
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if empty:
        raise InputError(
            f"{wanted_by} needs a prototype for each of {n} classes, but these have no training image: "
            f"class {some(empty)}; add images of them to the training set"
        )
    return means.to(data.head.weight.dtype)


class LogitSmoothing(Stage, name="ls", place="modulate"):
    """Scale the logits by the cosine between the raw feature and the prototype of the predicted class.

    ``f̂ = s · f``, ``s = max(0, cos(h, v_c))`` with the *raw* ``h``, the raw prediction ``c`` and the prototype ``v_c``
    = mean training feature of class ``c`` by true label. ``logits (B, C) -> (B, C)``. A zero feature vector has cosine
    0. A negative cosine (possible only where features can be negative, as in a ViT) counts as 0: the paper's formula
    would turn the logits round and could call the image opposite to its prototype a confident one.

    Source: Sun et al., "Classifier-head Informed Feature Masking and Prototype-based Logit Smoothing for
    Out-of-Distribution Detection", 2024, eqs. 6-8.
    """

    needs_train = True
    prototypes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prototypes", None)

    def fit(self, data: TrainingData) -> None:
        """Average the training features of each class."""
        self.prototypes = prototypes(data, "stage 'ls'")

    def forward(self, f: Features) -> Features:
        """Smooth a batch."""
        s = ops.cosine(f.raw.h, self.prototypes[f.pred].to(f.h.dtype)).clamp(min=0)
        return f.with_logits(f.logits * s[:, None])
