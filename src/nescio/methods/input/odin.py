"""Input perturbation towards higher confidence."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.bounds import AtLeast, Positive
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Chain, InputStage, Network


class ODIN(InputStage, name="odin"):
    """Move each image a small step that raises the confidence of its predicted class, then score the result.

    ``x' = x + ε · sign(∇_x log softmax(f(x) / T)_c)``: ``f`` are the logits of the *whole fitted pipeline* (with
    ``odin+fm+ls+msp``, after masking and smoothing), whatever the final score is; ``c`` is the raw prediction on ``x``.
    The features, the prediction and the score are then those of ``x'``. The other stages are fitted on unperturbed
    training features. Before an ensemble the pipeline ends where its members begin, and T divides what they all read:
    use ``T=1`` there. Images ``(B, 3, H, W) -> (B, 3, H, W)``; two forward passes and one backward pass per image.

    T also divides the logits that the score reads: ``odin+msp`` is the paper's detector. With a score that is not a
    softmax (energy), a large T leaves only the mean logit: use ``T=1`` there.

    Args:
        eps: step ε in units of the *normalised* input, 0 or more. 0.0014 is the authors' for DenseNet-BC on CIFAR-10.
        T: temperature, above 0. 1000 is the paper's.
        per_std: divide the step by each channel's std, so that it is the same in every channel of the unnormalised
            image: what the authors' code does after taking the sign (and its ε refers to). The paper's formula, and
            the default here, is the plain step.

    Source: Liang, Li and Srikant, "Enhancing the Reliability of Out-of-distribution Image Detection in Neural
    Networks", ICLR 2018. A gradient of exactly 0 moves nothing here; the authors' code moves such a pixel by +ε.
    """

    needs = Needs(head=True, logits=True, gradients=True, rerun="pipeline")

    def __init__(
        self,
        *,
        eps: Annotated[float, AtLeast(0)] = 0.0014,
        T: Annotated[float, Positive] = 1000.0,
        per_std: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.T, self.per_std = eps, T, per_std

    def forward(self, f: Features) -> Features:
        """Divide the head by T, and with it every logit computed from it."""
        return f.with_head(f.head.scaled(1 / self.T))

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Features of the perturbed images."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            f = chain.pipeline(network(x))
            confidence = f.logits.log_softmax(dim=1).gather(1, f.pred[:, None]).sum()
            (gradient,) = torch.autograd.grad(confidence, x)
        step = numerics.sign_step(gradient, self.eps)
        if self.per_std:
            step = step / network.std.to(step)[:, None, None]
        with torch.no_grad():
            return network(x.detach() + step)
