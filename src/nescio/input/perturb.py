"""Input perturbation towards a higher score."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio import ops
from nescio.errors import InputError, check_at_least
from nescio.features import Features
from nescio.stage import Chain, InputStage, Network


class Perturb(InputStage, name="perturb"):
    """Move each image a small step that raises the detector's own score, then score what comes out.

    ``x' = x + ε · sign(∇_x score(x))``, the score being that of the whole fitted detector: before ``mahalanobis`` or
    ``multimahalanobis`` this is the input perturbation of the Mahalanobis detector. ID images gain more than OOD images
    do. Images ``(B, 3, H, W) -> (B, 3, H, W)``; two forward passes and one backward pass per image.

    Args:
        eps: step ε in units of the *normalised* input, 0 or more. The authors choose it on OOD data, from 0 to 0.01.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018, eq. 3. They perturb anew for each layer; here one step raises the combined score.
    """

    reads = "score"

    def __init__(self, *, eps: float = 0.0014) -> None:
        super().__init__()
        self.eps = check_at_least("eps", eps, 0)

    def forward(self, f: Features) -> Features:
        """Change nothing: the pass has done it."""
        return f

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Features of the perturbed images."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            score = chain(network(x)).sum()
            if not score.requires_grad:
                raise InputError(f"the score of '{chain!r}' has no gradient, so 'perturb' cannot raise it; drop one")
            (gradient,) = torch.autograd.grad(score, x)
        with torch.no_grad():
            return network(x.detach() + ops.sign_step(gradient, self.eps))
