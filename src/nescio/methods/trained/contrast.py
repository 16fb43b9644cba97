"""Features that are learnt by comparing images with each other, and a classifier that reads them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from nescio.core.bounds import Positive
from nescio.core.needs import Needs
from nescio.methods.objective import Objective, View, exactly, gathered, precise

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier

WIDTH = 128
"""Numbers that a projection has, as in SimCLR and after it."""


class Contrastive(Objective):
    """Two views of each image go through the network, and a projection of their features is compared.

    The projection is linear, ReLU, linear to 128, scaled to length one; it is thrown away. The classification layer
    learns by cross entropy from the features as they are, without gradient for them: so the network has a label, and
    what is contrasted alone makes the features. The authors train that layer afterwards. With several processes
    the images of the whole batch are compared; with gradient accumulation, those of each part.
    """

    # the score, ``knn``, is fitted on training features, which validation after an epoch has none of
    detector = "energy"
    needs = Needs(views=2)

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """None; and a new projection."""
        width = classifier.head.weight.shape[1]
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, WIDTH))
        self.to(classifier.device)
        return {}

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        h, labels = self.compared(view)
        with exactly(h):
            z = nn.functional.normalize(self.projection(h))
            term = self.contrast(gathered(z), gathered(labels))
            own = nn.functional.cross_entropy(view.head.linear(precise(view.h).detach()), view.labels)
        return term + own, {"contrast_loss": term.detach(), "cls_loss": own.detach()}

    def compared(self, view: View) -> tuple[Tensor, Tensor]:
        """Features ``(M, L)`` and labels of what is compared: the views."""
        return precise(view.h), view.labels

    @abstractmethod
    def contrast(self, z: Tensor, labels: Tensor) -> Tensor:
        """The loss of projections ``(M, 128)`` of length one."""


class SupConObjective(Contrastive, name="supcon"):
    """Supervised contrastive learning: each view is drawn to the others of its class, and pushed from all the rest.

    ``-1/|P(i)| Σ_{p ∈ P(i)} log (exp(z_i·z_p / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ))``, mean over the views i, where P(i)
    are the other views of i's class. The score is ``knn`` on the features: "KNN w/" of the SSOD paper's tables.

    Args:
        T: τ, above 0. 0.1 is the paper's.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2; their code also multiplies it by
    τ / 0.07.
    """

    def __init__(self, *, T: Annotated[float, Positive] = 0.1) -> None:
        super().__init__()
        self.T = T

    def contrast(self, z: Tensor, labels: Tensor) -> Tensor:
        """Loss of the projections."""
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        log_p = (z @ z.T / self.T).masked_fill(itself, -torch.inf).log_softmax(dim=1)
        same = (labels[:, None] == labels) & ~itself
        drawn = log_p.masked_fill(~same, 0).sum(dim=1)
        return -(drawn / same.sum(dim=1)).mean()
