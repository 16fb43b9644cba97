"""Input perturbation towards a higher score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.bounds import AtLeast
from nescio.core.errors import InputError, NotFitted
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Chain, InputStage, Network

STEPS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
"""What ``perturbid`` chooses from."""


class Perturb(InputStage, name="perturb"):
    """Move each image a small step that raises the detector's own score, then score the result.

    ``x' = x + ε · sign(∇_x score(x))``, the score being that of the whole fitted detector: before ``mahalanobis`` or
    ``multimahalanobis`` this is the input perturbation of the Mahalanobis detector. ID images gain more than OOD images
    do. Images ``(B, 3, H, W) -> (B, 3, H, W)``; two forward passes and one backward pass per image.

    Args:
        eps: step ε in units of the *normalised* input, 0 or more. The authors choose it on OOD data, from 0 to 0.01.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018, eq. 3. They perturb again for each layer; here one step raises the combined score.
    """

    needs = Needs(features=False, gradients=True, rerun="score")

    def __init__(self, *, eps: Annotated[float, AtLeast(0)] = 0.0014) -> None:
        super().__init__()
        self.eps = eps

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Features of the perturbed images."""
        return _moved(network, chain, x, self.eps)


class PerturbID(InputStage, name="perturbid"):
    """Move each image as ``perturb`` does, by the step that raises the score of ID images the most.

    Of ``ε = 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08`` the one with the highest mean score of the perturbed images, over a
    thousand ID images: no OOD image takes part. ``perturbid+godin`` is Generalized ODIN's detector. Images
    ``(B, 3, H, W) -> (B, 3, H, W)``; two forward passes and one backward pass per image, and eight on those of the
    choice.

    Source: Hsu, Shen, Jin and Kira, "Generalized ODIN: Detecting Out-of-distribution Image without Learning from
    Out-of-distribution Data", CVPR 2020, equation 9. The images are those given for calibration, or else training
    images, where the paper takes ID validation images; ε is in units of the normalised input.
    """

    needs = Needs(features=False, gradients=True, images=True, rerun="score")
    step: Tensor

    def fit(self, data: FeatureSet) -> None:
        """Know of no step yet: that takes images."""
        self.step = torch.tensor(0.0)

    def choose(self, network: Network, chain: Chain, batches: Iterable[Tensor]) -> None:
        """Take the best of the steps."""
        totals = torch.zeros(len(STEPS), dtype=torch.float64)
        for x in batches:
            gradient = _gradient(network, chain, x)
            with torch.no_grad():
                moved = [chain.of_any_pass(network(x + numerics.sign_step(gradient, eps))).cpu() for eps in STEPS]
            scores = torch.stack(moved)
            totals += scores[:, scores.isfinite().all(dim=0)].sum(dim=1)  # an image that is not finite has no say
        self.step = torch.tensor(STEPS[int(totals.argmax())])

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Features of the perturbed images."""
        if self.step == 0:
            raise NotFitted(f"stage '{self.name}' has no step yet: call choose with ID images first")
        return _moved(network, chain, x, float(self.step))


def _moved(network: Network, chain: Chain, x: Tensor, eps: float) -> Features:
    """Features of images after a step of that size."""
    gradient = _gradient(network, chain, x)
    with torch.no_grad():
        return network(x.detach() + numerics.sign_step(gradient, eps))


def _gradient(network: Network, chain: Chain, x: Tensor) -> Tensor:
    """Of the score, by the images.

    Raises:
        InputError: the score has none.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        score = chain.of_any_pass(network(x)).sum()
        if not score.requires_grad:
            perturb = chain.steps[0].name
            raise InputError(
                f"the score of '{chain!r}' has no gradient, so '{perturb}' cannot raise it; drop one of them"
            )
        (gradient,) = torch.autograd.grad(score, x)
    return gradient
