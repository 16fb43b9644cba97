"""Features that are learnt by comparing images with each other, and with themselves when they are turned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nescio.core import numerics
from nescio.methods.objective import View, precise
from nescio.methods.trained.contrast import SupCon
from nescio.models.classifier import Classifier
from nescio.models.heads import TurnedHead, head_of


class CSI(SupCon, name="csi"):
    """Contrasting shifted instances, with labels: ``supcon`` in which an image turned by 90° is of another class.

    Each of the two views is seen at 0°, 90°, 180° and 270°; class y turned k times is the class ``k C + y`` of 4 C, and
    images are drawn to those of the same class and turn. A linear head learns these 4 C classes by cross entropy, from
    the features as they are, without gradient for them. The score is ``csi+msp``: the largest softmax of that head's
    logits, averaged over the turns. Eight images pass through the network for each of the batch.

    Args:
        T: τ, above 0. 0.07 is the authors'.

    Source: Tack, Mo, Jeong and Shin, "CSI: Novelty Detection via Contrastive Learning on Distributionally Shifted
    Instances", NeurIPS 2020, section 2.3 (labelled multi-class). The authors train the linear heads afterwards, and
    count among an image's positives itself, which adds a constant and changes their number by one.
    """

    detector = "csi+msp"

    def __init__(self, *, T: float = 0.07) -> None:
        super().__init__(T=T)

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """A new head for classes and turns; and a projection."""
        n, width = classifier.head.weight.shape
        return super().heads(classifier) | {"csi": TurnedHead(width, n).to(classifier.device)}

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        view.add(torch.cat(numerics.turned(view.x)[1:]))
        loss, watched = super().loss(view, heads)
        h, labels = self.compared(view)
        joint = nn.functional.cross_entropy(head_of(heads, TurnedHead)(h.detach(), view.head), labels)
        return loss + joint, watched | {"joint_loss": joint.detach()}

    def compared(self, view: View) -> tuple[Tensor, Tensor]:
        """Features of both views at all turns, and their classes among the 4 C."""
        n = len(view.head.weight)
        return precise(view.features), torch.cat([view.labels + turn * n for turn in range(numerics.TURNS)])
