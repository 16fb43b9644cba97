"""Cross entropy of logits whose length says nothing."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from nescio.core.bounds import Positive
from nescio.methods.objective import Objective, View

_LEAST = 1e-7
"""Added to a norm, as the authors do, so that logits of 0 have a gradient."""


class LogitNormObjective(Objective, name="logitnorm"):
    """Logit normalization: ``-log softmax(f / (τ ‖f‖))_y``, mean over the batch, with the logits ``f (B, C)``.

    Cross entropy falls as long as all logits of a correctly classified image grow, so a network becomes confident of
    everything; here only their direction counts. Where ``‖f‖ = 1/τ`` it is cross entropy. The logits at test are the
    network's own: the score is their largest softmax, as in the paper.

    Args:
        T: τ, above 0. 0.04 is the paper's for CIFAR-10; the authors' example for a WideResNet takes 0.01.

    Source: Wei et al., "Mitigating Neural Network Overconfidence with Logit Normalization", ICML 2022, equation 5.
    """

    detector = "msp"

    def __init__(self, *, T: Annotated[float, Positive] = 0.04) -> None:
        super().__init__()
        self.T = T

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        norm = view.logits.norm(dim=1, keepdim=True)
        loss = nn.functional.cross_entropy(view.logits / ((norm + _LEAST) * self.T), view.labels)
        return loss, {"norm": norm.detach().mean()}
