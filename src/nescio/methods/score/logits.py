"""Scores that read nothing but the logits. All are computed in float64: in float32 nearly half of the ID MSPs of a
good classifier are exactly 1 and tie.
"""  # noqa: D205

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.arrays import of_arrays
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score

LOGITS = Needs(features=False, logits=True)


@of_arrays
def msp(z: Tensor) -> Tensor:
    """``MSP`` of logits ``z (B, C)``: scores ``(B,)`` float64."""
    return z.to(torch.float64).softmax(dim=1).amax(dim=1)


@of_arrays
def maxlogit(z: Tensor) -> Tensor:
    """``MaxLogit`` of logits ``z (B, C)``: scores ``(B,)`` float64."""
    return z.to(torch.float64).amax(dim=1)


@of_arrays
def energy(z: Tensor) -> Tensor:
    """``Energy`` of logits ``z (B, C)``: scores ``(B,)`` float64."""
    return z.to(torch.float64).logsumexp(dim=1)


@of_arrays
def entropy(z: Tensor) -> Tensor:
    """``Entropy`` of logits ``z (B, C)``: scores ``(B,)`` float64."""
    log_p = z.to(torch.float64).log_softmax(dim=1)
    return (log_p.exp() * log_p).sum(dim=1)


class MSP(Score, name="msp"):
    """Maximum softmax probability: ``max_k softmax(f)_k``. ``logits (B, C) -> score (B,)`` in (0, 1].

    Source: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks", ICLR 2017.
    """

    needs = LOGITS

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return msp(f.logits)


class MaxLogit(Score, name="maxlogit"):
    """The largest logit: ``max_k f_k``. ``logits (B, C) -> score (B,)``.

    Source: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022.
    """

    needs = LOGITS

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return maxlogit(f.logits)


class Energy(Score, name="energy"):
    """The negative free energy: ``log Σ_k exp f_k``. ``logits (B, C) -> score (B,)``.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020 (T = 1, their default; another
    temperature is the stage ``temperature`` before it, up to the factor T, which changes no ranking).
    """

    needs = LOGITS

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return energy(f.logits)


class Entropy(Score, name="entropy"):
    """The negative Shannon entropy of the softmax: ``Σ_k p_k log p_k``. ``logits (B, C) -> score (B,)``, in nats.

    Source: Chan et al., "Entropy Maximization and Meta Classification for Out-of-Distribution Detection in Semantic
    Segmentation", ICCV 2021.
    """

    needs = LOGITS

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return entropy(f.logits)
