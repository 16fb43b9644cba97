"""A classifier that was shown outliers, and learnt to say nothing of them."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from nescio.core.bounds import AtLeast
from nescio.core.needs import Needs
from nescio.methods.objective import Objective, View, from_uniform


class OEObjective(Objective, name="oe"):
    """Outlier exposure: cross entropy of the training images, and of outliers with the uniform distribution.

    ``CE(f(x), y) + λ · mean(-1/C Σ_c log softmax(f(x'))_c)`` with outliers x', which ``--outliers`` gives. With λ = 0
    it is cross entropy. The score is the largest softmax, as in the paper.

    Args:
        weight: λ, 0 or more. 0.5 is the paper's for images.
        outliers: outliers per training image, 1 or more. The authors take 256 beside 128.

    Source: Hendrycks, Mazeika and Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, equation 1 and
    section 3. They fine-tune a trained network for 10 epochs (``--init``), or train one from the start.
    """

    detector = "msp"

    def __init__(self, *, weight: Annotated[float, AtLeast(0)] = 0.5, outliers: Annotated[int, AtLeast(1)] = 2) -> None:
        super().__init__()
        self.weight, self.outliers = weight, outliers

    @property
    def needs(self) -> Needs:
        """The outliers that it is to learn from."""
        return Needs(outliers=self.outliers)

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        own = nn.functional.cross_entropy(view.logits, view.labels)
        term = from_uniform(view.others(view.outputs))
        return own + self.weight * term, {"cls_loss": own.detach(), "outlier_loss": term.detach()}
