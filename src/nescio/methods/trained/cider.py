"""Classes that are compact, and far from each other, on a sphere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from nescio.core.bounds import AtLeast, Positive, Share
from nescio.methods.trained.contrast import WIDTH, Contrastive

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier


class CIDERObjective(Contrastive, name="cider"):
    """Compactness and dispersion: views are drawn to their class's prototype, and prototypes pushed from each other.

    The prototypes follow the projections, one after the other: ``μ_y = normalise(m μ_y + (1 - m) z)``. With these,
    ``loss = w · CE(z · μ / τ, y) + mean_c log (1/(C-1) Σ_{j ≠ c} exp(μ_c·μ_j / τ))``; the gradient of the first term
    takes them for constants, that of the second goes through this batch's part of them. The score is ``knn`` on the
    features. With prototypes at rest the first term is the cross entropy of a cosine classifier.

    Args:
        weight: w, the paper's λ_c, 0 or more: 2 in the authors' scripts for CIFAR-10, 1 for CIFAR-100.
        m: share of a prototype that stays, in [0, 1). 0.95 is the authors' for CIFAR-10, 0.5 for CIFAR-100.
        T: τ, above 0. 0.1 is the paper's.

    Source: Ming, Sun, Dia and Li, "How to Exploit Hyperspherical Embeddings for Out-of-Distribution Detection?", ICLR
    2023, equations 4 to 7. Prototypes begin as their class's first projection; the authors' as the class's mean in the
    untrained network.
    """

    prototypes: Tensor

    def __init__(
        self,
        *,
        weight: Annotated[float, AtLeast(0)] = 2.0,
        m: Annotated[float, Share(below_one=True)] = 0.95,
        T: Annotated[float, Positive] = 0.1,
    ) -> None:
        super().__init__()
        self.weight, self.m, self.T = weight, m, T

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """None; and prototypes of the classes, and a projection."""
        n = classifier.head.n_classes
        self.register_buffer("prototypes", torch.zeros(n, WIDTH, device=classifier.device))
        return super().heads(classifier)

    def contrast(self, z: Tensor, labels: Tensor) -> Tensor:
        """Loss of the projections."""
        moved = self.follow(z, labels)
        self.prototypes.copy_(moved.detach())
        compact = nn.functional.cross_entropy(z @ self.prototypes.T / self.T, labels)
        return self.weight * compact + self.dispersion(moved)

    def follow(self, z: Tensor, labels: Tensor) -> Tensor:
        """The prototypes ``(C, 128)`` after one projection after the other, with gradient."""
        earlier = (labels[:, None] == labels).tril(-1).sum(dim=1)  # of the same class
        prototypes = self.prototypes
        for turn in range(int(earlier.max()) + 1):  # the classes take their turns at once
            which = labels[earlier == turn]
            moved = self.m * prototypes[which] + (1 - self.m) * z[earlier == turn]
            prototypes = prototypes.index_copy(0, which, nn.functional.normalize(moved))
        return prototypes

    def dispersion(self, prototypes: Tensor) -> Tensor:
        """How near the prototypes are to each other."""
        n = len(prototypes)
        itself = torch.eye(n, dtype=torch.bool, device=prototypes.device)
        others = (prototypes @ prototypes.T / self.T).masked_fill(itself, -torch.inf).logsumexp(dim=1)
        return others.mean() - math.log(n - 1)
