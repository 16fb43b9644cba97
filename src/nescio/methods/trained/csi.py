"""Features that are learnt by comparing images with each other, and with themselves when they are turned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Self

import torch
from torch import Tensor, nn

from nescio.core import numerics
from nescio.core.bounds import Positive
from nescio.core.features import Columns, Features, Head
from nescio.core.needs import Needs
from nescio.core.stage import Chain, InputStage, Network
from nescio.methods.objective import View, precise
from nescio.methods.trained.contrast import SupConObjective
from nescio.models.heads import FeatureHead, head_of

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier


class CSIHead(FeatureHead, name="csi"):
    """A linear layer to a logit for each class and each turn of an image by 90°: class y turned k times is ``k C + y``.

    As a column: the logits, ``(B, 4 C)``.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, numerics.TURNS * n_classes)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """Of the same width and classes."""
        outputs, width = state["linear.weight"].shape
        return cls(width, outputs // numerics.TURNS)

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """Logits of classes and turns."""
        z: Tensor = self.linear(h)
        return z


class CSIObjective(SupConObjective, name="csi"):
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
    needs = Needs(views=2, heads=frozenset({"csi"}))

    def __init__(self, *, T: Annotated[float, Positive] = 0.07) -> None:
        super().__init__(T=T)

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """A new head for classes and turns; and a projection."""
        n, width = classifier.head.weight.shape
        return super().heads(classifier) | {"csi": CSIHead(width, n).to(classifier.device)}

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        view.add(torch.cat(numerics.turned(view.x)[1:]))
        loss, watched = super().loss(view, heads)
        h, labels = self.compared(view)
        joint = nn.functional.cross_entropy(head_of(heads, CSIHead)(h.detach(), view.head), labels)
        return loss + joint, watched | {"joint_loss": joint.detach()}

    def compared(self, view: View) -> tuple[Tensor, Tensor]:
        """Features of both views at all turns, and their classes among the 4 C."""
        n = len(view.head.weight)
        return precise(view.features), torch.cat([view.labels + turn * n for turn in range(numerics.TURNS)])


class CSI(InputStage, name="csi"):
    """Average the logits of each class over the image at 0°, 90°, 180° and 270°, each from the head's part for it.

    ``f_y = 1/4 Σ_k g_{k C + y}(turn_k x)`` takes the place of the logits, g being the head of 4 C classes that the
    network was trained with; ``csi+msp`` is the paper's score. Features are those of the image at 0°; a stage that
    changes features would lose the average, and is refused. Images ``(B, 3, H, H) -> f (B, C)``; four forward passes
    per image.

    Source: Tack, Mo, Jeong and Shin, "CSI: Novelty Detection via Contrastive Learning on Distributionally Shifted
    Instances", NeurIPS 2020, section 2.3. Train a network for it with ``nescio train
    --objective csi``.
    """

    needs = Needs(features=False, heads=frozenset({"csi"}), rerun="options")

    replaces_logits = True

    def forward(self, f: Features) -> Features:
        """Read the mean logits."""
        return f.with_logits(f.probed(self.name)[0])

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Features at 0°, prediction of the mean logits, and these as the head's column."""
        turned = [network(image) for image in numerics.turned(x)]
        logits = [f.probed(self.name)[0].chunk(numerics.TURNS, dim=1)[turn] for turn, f in enumerate(turned)]
        f, mean = turned[0], torch.stack(logits).mean(dim=0)
        return Features(f.h, f.head, mean.argmax(dim=1), aux=Columns.of({**f.aux, f"{self.name}.0": mean}))
