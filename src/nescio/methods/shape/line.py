"""Important neurons and weights of the predicted class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from nescio.core.bounds import Positive, Share
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import prototypes
from nescio.core.needs import Needs
from nescio.core.quantiles import quantile
from nescio.core.stage import Shape

MOST_EXPORTED = 1 << 21
"""Weights of a head whose masks a graph makes for each image of a batch: 8 MB an image. 1,000 × 2,048 are fewer."""


class LINe(Shape, name="line"):
    """Keep the neurons and the weights that contributed to the predicted class in training, and clip the features.

    The contribution of neuron l to class c is the first-order Taylor estimate of its Shapley value, averaged over the
    training images of class c by true label: ``s_cl = W_cl · mean(h_l)``. For an image predicted as c,
    ``h' = min(h, λ)`` where ``s_cl`` exceeds its ``p_a`` quantile over l, else 0 (activation pruning), and the logits
    read the weights ``W_kl`` where ``|s_cl| W_kl`` exceeds its ``p_w`` quantile over k and l (weight pruning).
    ``h (B, L) -> h' (B, L)``, and a head that depends on the predicted class; its masks are made class by class, from
    one threshold each.

    Args:
        p_a: share of the neurons that is pruned, in [0, 1). The authors': 0.9 for CIFAR-10, 0.1 for CIFAR-100 and
            ImageNet.
        p_w: share of the weights that is pruned, in [0, 1). The authors': 0.9 for CIFAR, 0.1 for ImageNet.
        clip: λ, in units of the features, above 0. The authors': 1.0 for CIFAR, 0.8 for ResNet-50 on ImageNet.

    Source: Ahn, Park and Kim, "LINe: Out-of-Distribution Detection by Leveraging Important Neurons", CVPR 2023. Their
    code takes the prediction from the clipped features, here it is the raw one; it also keeps all masks, ``(C, C, L)``.
    """

    needs = Needs(head=True, logits=True, train=True, labels=True)

    groups_by_class = True
    contribution: Tensor
    active: Tensor
    threshold: Tensor

    def __init__(
        self,
        *,
        p_a: Annotated[float, Share(below_one=True)] = 0.9,
        p_w: Annotated[float, Share(below_one=True)] = 0.9,
        clip: Annotated[float, Positive] = 1.0,
    ) -> None:
        super().__init__()
        self.p_a, self.p_w, self.clip = p_a, p_w, clip

    def fit(self, data: FeatureSet) -> None:
        """Average the features of each class; find a quantile of its neurons and one of its weights."""
        weight = data.head.weight
        self.contribution = weight * prototypes(data, self.name)
        limits = torch.stack([quantile(row, self.p_a) for row in self.contribution])
        self.active = (self.contribution > limits[:, None]).to(weight.dtype)
        self.threshold = torch.stack([quantile(row.abs() * weight, self.p_w) for row in self.contribution])

    def unexportable(self) -> str | None:
        """A graph has no groups of images, so each image has its own masks ``(C, L)`` in memory."""
        learned = self._buffers["contribution"]
        if learned is None or learned.numel() <= MOST_EXPORTED:
            return None
        classes, width = learned.shape
        return f"needs masks of {classes:,} × {width:,} entries per image, more than {MOST_EXPORTED:,}"

    def forward(self, f: Features) -> Features:
        """Prune and clip a batch, and make its head depend on the prediction."""
        h = f.h.clamp(max=self.clip) * self.active[f.pred].to(f.h.dtype)
        head = dataclasses.replace(f.head, keep=self._important(f.raw.head.weight))
        return f.with_h(h).with_head(head)

    def _important(self, weight: Tensor) -> Callable[[int | Tensor], Tensor]:
        return lambda c: self.contribution[c].abs()[..., None, :] * weight > self.threshold[c][..., None, None]
