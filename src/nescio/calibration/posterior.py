"""Classification and OOD detection as one probability over M + 1 classes.

Pei, "Image Background Serves as Good Proxy for Out-of-distribution Data", ICLR 2024, equations 1-10: with the classes
``w_1 … w_M`` of the classifier and ``w_{M+1}`` for all else, ``P(w_i | x) = P(w_i | x ∈ ID, x) · P(x ∈ ID | x)`` (7).
The softmax of a classifier is the first factor; every detector is a way to estimate the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from nescio.core.errors import InputError

_STEPS, _CLOSE = 100, 1e-10


def posterior(probability: Tensor, p_id: Tensor) -> Tensor:
    """Probabilities of the M classes and of "none of them": equation 7.

    Args:
        probability: ``P(w_i | x ∈ ID, x)`` ``(B, M)``, rows that sum to one: the softmax of the classifier's logits.
        p_id: ``P(x ∈ ID | x)`` ``(B,)`` in [0, 1]: an OOD head's, a calibrator's, or ``hard_factor``.

    Returns:
        ``(B, M + 1)``, rows that sum to one; the last column is ``P(w_{M+1} | x) = 1 - P(x ∈ ID | x)``.

    Raises:
        InputError: the shapes do not fit, or ``p_id`` is no probability.
    """
    if probability.ndim != 2 or p_id.shape != probability.shape[:1]:
        shapes = f"{tuple(probability.shape)} and {tuple(p_id.shape)}"
        raise InputError(f"expected probabilities (B, M) and p_id (B,), got {shapes}")
    if not bool(((p_id >= 0) & (p_id <= 1)).all()):
        raise InputError("p_id must be in [0, 1]; a score is not a probability: calibrate it, or use hard_factor")
    p = p_id.to(probability.dtype)[:, None]
    return torch.cat([probability * p, 1 - p], dim=1)


def binary_posterior(g: Tensor) -> Tensor:
    """The same from M binary classifiers ``P_b(w_i | x) = sigmoid(g_i)`` by Dempster and Shafer: equations 1-5.

    ``P(w_i | x) = P_b(w_i) Π_{j≠i} (1 - P_b(w_j)) / Z``, which is the softmax of ``(g_1, …, g_M, 0)``: that of a
    classifier with one logit more, of which ``g`` are the distances.

    Args:
        g: scores ``g_i(x) = T - s_i`` ``(B, M)``.

    Returns:
        ``(B, M + 1)``, rows that sum to one.
    """
    return torch.cat([g, g.new_zeros(len(g), 1)], dim=1).softmax(dim=1)


def hard_factor(scores: Tensor, threshold: float) -> Tensor:
    """The second factor of a method that only has scores: 1 where ``score ≥ threshold``, else 0. Equations 8-10.

    Args:
        scores: a detector's ``(B,)``; higher means more in-distribution.
        threshold: the smallest accepted score.
    """
    return (scores >= threshold).to(torch.float64)


@dataclass(frozen=True)
class ProxyCalibrator:
    """``P(x ∈ ID | x) = sigmoid(a · score + b)`` for any detector, fitted against a named stand-in for OOD.

    The probability is one against images *like the proxy*, at the stated prior; it says nothing of other OOD images.

    Attributes:
        a, b: of the logistic function of the score; ``b`` contains the prior.
        proxy: what the OOD scores were taken from, for whoever reads the probability.
        prior: ``P(ID)`` that is assumed, in (0, 1).
    """

    a: float
    b: float
    proxy: str
    prior: float

    def __post_init__(self) -> None:
        numbers = (self.a, self.b, self.prior)
        if not all(isinstance(n, float) and math.isfinite(n) for n in numbers) or not 0 < self.prior < 1:
            raise InputError("a calibrator needs finite numbers a and b, and a prior in (0, 1)")
        if not isinstance(self.proxy, str):
            raise InputError("a calibrator needs the name of its proxy")

    @classmethod
    def fit(cls, id_scores: Tensor, proxy_scores: Tensor, *, proxy: str, prior: float = 0.5) -> Self:
        """Maximum likelihood with both sets weighted alike, and Platt's targets, which keep it finite.

        Platt, "Probabilistic Outputs for Support Vector Machines", 1999; Newton's method.

        Args:
            id_scores: of ID images that nothing was fitted on ``(N,)``.
            proxy_scores: of the stand-in ``(M,)``.
            proxy: its name.
            prior: ``P(ID)``, in (0, 1).

        Raises:
            InputError: scores are missing or not finite, the prior is none, or the proxy scores as high as ID does.
        """
        if not 0 < prior < 1:
            raise InputError(f"prior={prior:g} must be in (0, 1)")
        prior = float(prior)
        both = [s.detach().to("cpu", torch.float64).flatten() for s in (id_scores, proxy_scores)]
        if any(len(s) == 0 or not bool(s.isfinite().all()) for s in both):
            raise InputError("a calibrator needs finite scores of ID images and of the proxy")
        if both[0].mean() <= both[1].mean():
            raise InputError(
                f"the proxy '{proxy}' scores as high as ID images, so it gives no probability; give another proxy= "
                "(--proxy)"
            )
        x = torch.cat(both)
        centre, spread = x.mean(), x.std(correction=0)
        z = torch.stack([(x - centre) / spread, torch.ones_like(x)], dim=1)
        counts = [len(s) for s in both]
        target = torch.cat([x.new_full((n,), t) for n, t in zip(counts, _platt(*counts), strict=True)])
        weight = torch.cat([x.new_full((n,), 0.5 / n) for n in counts])
        slope, offset = _logistic(z, target, weight).tolist()
        a = slope / float(spread)
        return cls(a, offset - a * float(centre) + float(torch.logit(torch.tensor(prior).double())), proxy, prior)

    def __call__(self, scores: Tensor) -> Tensor:
        """``P(x ∈ ID | x)`` ``(B,)`` float64 of a detector's scores ``(B,)``."""
        return (self.a * scores.to(torch.float64) + self.b).sigmoid()


def _platt(n_id: int, n_ood: int) -> tuple[float, float]:
    return (n_id + 1) / (n_id + 2), 1 / (n_ood + 2)


def _logistic(z: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted logistic regression by Newton's method, its steps halved while they do not lower the loss."""

    def loss(theta: Tensor) -> Tensor:
        return (weight * (torch.nn.functional.softplus(z @ theta) - target * (z @ theta))).sum()

    theta = z.new_zeros(z.shape[1])
    for _ in range(_STEPS):
        p = (z @ theta).sigmoid()
        gradient = z.mT @ (weight * (p - target))
        hessian = (z * (weight * p * (1 - p))[:, None]).mT @ z + _CLOSE * torch.eye(len(theta), dtype=z.dtype)
        step = torch.linalg.solve(hessian, gradient)
        while loss(theta - step) > loss(theta) and step.norm() > _CLOSE:
            step = step / 2
        theta = theta - step
        if step.norm() < _CLOSE:
            break
    return theta
