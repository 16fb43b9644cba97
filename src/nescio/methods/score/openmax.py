"""Probability of an unknown class from extreme values."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.bounds import AtLeast
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import class_means_of_right
from nescio.core.needs import Needs
from nescio.core.stage import Score

_SHIFT = 10_000.0
"""Added to the tail's distances before a Weibull distribution is fitted: the constant of the authors' library."""
_STEPS = 200


@of_arrays
def openmax(z: Tensor, means: Tensor, shape: Tensor, scale: Tensor, smallest: Tensor, alpha: int = 10) -> Tensor:
    """``OpenMax`` of logits ``z (B, C)``: scores ``(B,)`` float64.

    ``means (C, C)`` are the classes' mean logits; ``shape``, ``scale (C,)`` the Weibull distribution of each class's
    distances, shifted so that ``smallest (C,)``, the least of its tail, comes to lie at 10,000.
    """
    logits = z.to(torch.float64)
    alpha = min(alpha, logits.shape[1])
    top, which = logits.topk(alpha, dim=1)
    distances = (logits[:, None] - means[which]).norm(dim=2)
    x = (distances - smallest[which] + _SHIFT).clamp(min=0) / scale[which]
    extreme = -torch.expm1(-x.pow(shape[which]))
    rank = torch.arange(alpha, 0, -1, dtype=torch.float64, device=logits.device) / alpha
    moved = top * extreme * rank
    unknown = moved.sum(dim=1, keepdim=True)
    revised = logits.scatter(1, which, top - moved)
    return torch.cat([revised, unknown], dim=1).logsumexp(dim=1) - unknown[:, 0]


class OpenMax(Score, name="openmax"):
    """Negative log-probability of an unknown class that takes a part of each top class's logit.

    ``v_k`` is the mean logit vector of the training images of class k that are classified right (of all, where none
    is), ``d_k = ‖f - v_k‖``, and ``w_k`` the Weibull distribution function, fitted to the ``tail`` largest ``d_k`` of
    class k, at ``d_k`` (one logit wide where these are all alike). The i-th largest logit gives the share
    ``w_k (α + 1 - i) / α`` of itself to the unknown class; the score is ``-log softmax`` of the unknown one among all.
    ``logits (B, C) -> score (B,)``.

    Args:
        tail: number of distances that count as extreme, 2 or more. 20 is the authors'.
        alpha: number α of top classes that give, 1 or more; C where there are fewer. 10 is the authors'.

    Source: Bendale and Boult, "Towards Open Set Deep Networks", CVPR 2016. Their distance also has a cosine part, and
    the logits are those of ten crops.
    """

    needs = Needs(features=False, logits=True, train=True, labels=True)

    means: Tensor
    shape: Tensor
    scale: Tensor
    smallest: Tensor

    def __init__(self, *, tail: Annotated[int, AtLeast(2)] = 20, alpha: Annotated[int, AtLeast(1)] = 10) -> None:
        super().__init__()
        self.tail, self.alpha = tail, alpha

    def fit(self, data: FeatureSet) -> None:
        """Average the logits of each class, then keep its largest distances: two passes."""
        logits = data.map(lambda f: f.with_h(f.logits).with_logits(f.logits))
        self.means, hits = class_means_of_right(logits, self.name)
        distances, classes = [], []
        for f in logits.chunks():
            y = f.pred if f.labels is None else f.labels
            ours = (f.pred == y) | (hits[y] == 0)
            distances.append((f.h[ours].to(torch.float64) - self.means[y[ours]]).norm(dim=1))
            classes.append(y[ours])
        self._fit_weibull(_largest(torch.cat(distances), torch.cat(classes), len(hits), self.tail))

    def _fit_weibull(self, tails: Tensor) -> None:
        """Maximum likelihood, all classes at once: the shape by bisection, the scale follows."""
        known = tails.isfinite()
        count = known.sum(dim=1, keepdim=True)
        self.smallest = torch.where(known, tails, torch.inf).amin(dim=1)
        x = torch.where(known, tails - self.smallest[:, None] + _SHIFT, 1)
        largest = torch.where(known, x, 0).amax(dim=1, keepdim=True)
        log_x = torch.where(known, (x / largest).log(), 0)
        mean_log = log_x.sum(dim=1, keepdim=True) / count
        low, high = torch.full_like(largest, -5), torch.full_like(largest, 20)  # of the shape's logarithm
        for _ in range(_STEPS):
            middle = (low + high) / 2
            powers = torch.where(known, (middle.exp() * log_x).exp(), 0)
            slope = (powers * log_x).sum(dim=1, keepdim=True) / powers.sum(dim=1, keepdim=True)
            rising = slope - (-middle).exp() - mean_log > 0
            low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
        flat = largest == _SHIFT  # all distances alike: one logit wide, not a step
        log_shape = torch.where(flat, math.log(_SHIFT), middle)
        self.shape = log_shape[:, 0].exp()
        mean_power = torch.where(known, (log_shape.exp() * log_x).exp(), 0).sum(dim=1) / count[:, 0]
        self.scale = largest[:, 0] * (mean_power.log() / self.shape).exp()

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return openmax(f.logits, self.means, self.shape, self.scale, self.smallest, self.alpha)


def _largest(values: Tensor, classes: Tensor, n_classes: int, k: int) -> Tensor:
    """The k largest values of each class ``(C, k)``, -inf where there are fewer: values and their classes ``(N,)``."""
    values, order = values.sort(descending=True)
    classes, within = classes[order].sort(stable=True)
    counts = torch.bincount(classes, minlength=n_classes)
    rank = torch.arange(len(classes), device=classes.device) - (counts.cumsum(0) - counts)[classes]
    top = rank < k
    largest = values.new_full((n_classes, k), -torch.inf)
    largest[classes[top], rank[top]] = values[within][top]
    return largest
