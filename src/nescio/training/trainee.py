"""Network, heads and objective as the one module that is trained."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, some
from nescio.methods.objective import Objective, TrainingNetwork, View
from nescio.models import Classifier
from nescio.models.heads import decide
from nescio.models.last_layer import shallow_copy
from nescio.training.state import State

log = logging.getLogger(__name__)


class Trainee(nn.Module):
    """What is wrapped for several processes: one call gives the loss."""

    def __init__(self, classifier: Classifier, objective: Objective) -> None:
        super().__init__()
        self.network = TrainingNetwork(classifier, maps=objective.needs.maps)
        classifier.heads.eval()  # as the body there: it is judged between epochs
        self.heads = nn.ModuleDict({name: shallow_copy(head).train() for name, head in classifier.heads.items()})
        self.objective = objective

    def forward(self, x: Tensor, labels: Tensor, epoch: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and what is watched: means over the batch."""
        view = View(x, labels, self.network, epoch)
        loss, watched = self.objective.loss(view, self.heads)
        with torch.no_grad():
            right = (decide(self.heads, view.h, view.head).argmax(dim=1) == labels).float().mean()
        return loss, {"loss": loss.detach(), "accuracy": right, **watched}


def try_step(fabric: Any, trainee: Trainee, state: State, n: int) -> None:
    """Take a step's loss and gradients on noise, and leave no trace but this: what has no gradient is not trained.

    Raises:
        InputError: the network cannot be run in training mode.
    """
    side, before = state.classifier.transform.crop, [t.clone() for t in state.all_tensors()]
    try:
        needs = trainee.objective.needs
        x = torch.randn(n * (needs.views + needs.outliers), 3, side, side, device=fabric.device)
        with fabric.autocast():
            loss, _ = trainee(x, torch.zeros(n * needs.views, dtype=torch.int64, device=fabric.device), 0.0)
        loss.backward()
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as e:
        what = f"{state.classifier.name} cannot be trained on {n} images at a time by '{trainee.objective.name}'"
        raise InputError(f"{what}: {e}") from None
    unused = [name for name, p in trainee.named_parameters() if p.requires_grad and p.grad is None]
    for name in unused:
        trainee.get_parameter(name).requires_grad = False
    if unused:
        log.warning("%d tensors do not affect the loss and stay unchanged: %s", len(unused), some(unused))
    trainee.zero_grad(set_to_none=True)
    with torch.no_grad():
        for t, value in zip(state.all_tensors(), before, strict=True):
            t.copy_(value)
