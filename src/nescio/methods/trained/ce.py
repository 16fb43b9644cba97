"""The classifier's own loss."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from nescio.core.bounds import Share
from nescio.methods.objective import Objective, View


class CEObjective(Objective, name="ce"):
    """Cross entropy of the logits and the true class: ``-log softmax(ŷ)_y``, mean over the batch.

    Args:
        smoothing: share of the target that is spread over all classes, in [0, 1).

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7, for the
    smoothing.
    """

    detector = "energy"

    def __init__(self, *, smoothing: Annotated[float, Share(below_one=True)] = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        return nn.functional.cross_entropy(view.logits, view.labels, label_smoothing=self.smoothing), {}
