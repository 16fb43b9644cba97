"""Objectives beside cross entropy and SSOD: against closed forms, finite differences, and cross entropy itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nescio.data import Transform
from nescio.models import Classifier
from nescio.objectives import View, parse_objective
from nescio.objectives.base import TrainingNetwork
from tiny_networks import GroupNet

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


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
        self.network.double()
        self.classifier.heads.double()
        self.objective.double()
        self.parts = TrainingNetwork(self.classifier, maps=self.objective.needs_maps)

    def loss(self, epoch: float = 0.5) -> torch.Tensor:
        torch.manual_seed(2)  # what a step draws
        return self.objective.loss(View(X.double(), Y, self.parts, epoch), self.classifier.heads)[0]

    @property
    def parameters(self) -> list[nn.Parameter]:
        trained = [*self.network.parameters(), *self.classifier.heads.parameters(), *self.objective.parameters()]
        return [p for p in trained if p.requires_grad]


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


@pytest.mark.parametrize("spec", ["ce", "logitnorm"])
def test_the_gradient_is_a_finite_difference_and_a_step_lowers_the_loss(spec: str) -> None:
    setting, eps = Setting(spec), 1e-5
    start = [p.detach().clone() for p in setting.parameters]
    losses = {}
    for step in (eps, -eps, -1e-3):
        for p, value in zip(setting.parameters, start, strict=True):
            p.data.copy_(value)
        length = moved(setting, step)
        losses[step] = setting.loss().item()
        assert torch.isfinite(length)
    for p, value in zip(setting.parameters, start, strict=True):
        p.data.copy_(value)
    assert (losses[eps] - losses[-eps]) / (2 * eps) == pytest.approx(length.item(), rel=1e-4)
    assert losses[-1e-3] < setting.loss().item()


def test_logitnorm_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    f, y = rng.normal(size=(5, 4)), np.array([0, 3, 1, 2, 2])
    scaled = f / np.linalg.norm(f, axis=1, keepdims=True) / 0.04
    expected = np.mean([np.log(np.exp(row).sum()) - row[c] for row, c in zip(scaled, y, strict=True)])
    logits, labels = torch.tensor(f), torch.tensor(y)
    assert loss_of_logits("logitnorm", logits, labels) == pytest.approx(expected, rel=1e-5)
    assert loss_of_logits("logitnorm", 7 * logits, labels) == pytest.approx(expected, rel=1e-5), "of any length"


def test_logitnorm_is_cross_entropy_where_the_length_is_one_over_t() -> None:
    logits = functional.normalize(torch.randn(6, 3, dtype=torch.float64), dim=1) / 0.3
    assert loss_of_logits("logitnorm:T=0.3", logits, Y) == pytest.approx(loss_of_logits("ce", logits, Y), rel=1e-6)
    zero = torch.zeros(6, 3, requires_grad=True)
    view = View(zero, Y, None, 0.5)
    view.__dict__["logits"] = zero
    loss, _ = parse_objective("logitnorm").loss(view, nn.ModuleDict())
    assert torch.autograd.grad(loss, zero)[0].isfinite().all()
