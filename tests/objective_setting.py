"""An objective on a network so small that finite differences of its loss are cheap."""

from __future__ import annotations

import torch
from torch import nn

from nescio.data import Transform
from nescio.methods.objective import TrainingNetwork, View, parse_objective
from nescio.methods.trained.vos import VOSObjective
from nescio.models import Classifier
from tiny_networks import GroupNet

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
OUTLIERS = 2 * torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Setting:
    """An objective on a tiny network in float64, which a finite difference needs."""

    def __init__(self, spec: str) -> None:
        torch.manual_seed(0)
        self.network = GroupNet()
        self.network.fc.weight.data *= 3
        self.classifier = Classifier(self.network, Transform(crop=16))
        self.objective = parse_objective(spec)
        torch.manual_seed(1)
        self.classifier.heads.update(self.objective.heads(self.classifier))
        self.classifier.heads.train()
        if isinstance(self.objective, VOSObjective):
            self.objective.queued.normal_()
            self.objective.counts += self.objective.queue
            self.objective.remember = lambda *_: None  # the same virtual outliers in every step
        self.parts = TrainingNetwork(self.classifier, maps=self.objective.needs.maps)  # traced in float32
        self.network.double()
        self.classifier.heads.double()
        self.objective.double()

    def loss(self, epoch: float = 0.5) -> torch.Tensor:
        torch.manual_seed(2)  # what a step draws
        x = torch.cat([X, OUTLIERS[: len(X) * self.objective.needs.outliers]]).double()
        x, y = (torch.cat([X, X.flip(3)]).double(), Y.repeat(2)) if self.objective.needs.views == 2 else (x, Y)
        loss, self.watched = self.objective.loss(View(x, y, self.parts, epoch), self.classifier.heads)
        return loss

    @property
    def named(self) -> dict[str, nn.Parameter]:
        trained = {f"network.{name}": p for name, p in self.network.named_parameters()}
        trained |= dict(self.classifier.heads.named_parameters()) | dict(self.objective.named_parameters())
        return {name: p for name, p in trained.items() if p.requires_grad}

    @property
    def names(self) -> list[str]:
        return list(self.named)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.named.values())


def loss_of_logits(spec: str, logits: torch.Tensor, labels: torch.Tensor) -> float:
    view = View(logits, labels, None, 0.5)
    view.__dict__["logits"] = logits
    return parse_objective(spec).loss(view, nn.ModuleDict())[0].item()


def moved(setting: Setting, step: float) -> torch.Tensor:
    """Go a step along the gradient, whose length it returns."""
    gradients = torch.autograd.grad(setting.loss(), setting.parameters, allow_unused=True)
    pairs = [(p, g) for p, g in zip(setting.parameters, gradients, strict=True) if g is not None]
    length = torch.sqrt(sum(g.square().sum() for _, g in pairs))
    for p, g in pairs:
        p.data += step * g / length
    return length
