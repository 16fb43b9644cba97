"""Objectives that compare images with each other: against their formulas and finite differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.methods.objective import View, parse_objective
from nescio.run.passes import pass_of
from objective_setting import Setting, X, Y

HALVES = [(torch.cat([X[i::2], X[i::2].flip(3)]).double(), Y[i::2].repeat(2)) for i in (0, 1)]
"""Both views of the images that each of two processes has."""


def test_supervised_contrast_is_its_formula() -> None:
    z = functional.normalize(torch.randn(8, 128, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 1, 0, 2, 0, 1, 0, 2])
    total = 0.0
    for i in range(8):
        others = [a for a in range(8) if a != i]
        bottom = sum(np.exp(float(z[i] @ z[a]) / 0.2) for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        total -= np.mean([np.log(np.exp(float(z[i] @ z[p]) / 0.2) / bottom) for p in positives]) / 8
    assert parse_objective("supcon:T=0.2").contrast(z, labels).item() == pytest.approx(total, rel=1e-10)
    apart = torch.eye(128)[[0, 1, 0, 1]]  # two classes at right angles: -log(e^(1/τ) / (e^(1/τ) + 2))
    expected = np.log(1 + 2 * np.exp(-10))
    found = parse_objective("supcon").contrast(apart, torch.tensor([0, 1, 0, 1])).item()
    assert found == pytest.approx(expected, rel=1e-3)
    direction = torch.randn(8, 128, dtype=torch.float64)
    contrast, z = parse_objective("supcon").contrast, z.requires_grad_()
    (gradient,) = torch.autograd.grad(contrast(z, labels), z)
    up, down = (contrast(z.detach() + e * direction, labels).item() for e in (1e-6, -1e-6))
    assert (up - down) / 2e-6 == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_the_classifier_beside_a_contrast_leaves_the_features_alone() -> None:
    setting = Setting("supcon")
    gradients = dict(zip(setting.names, torch.autograd.grad(setting.loss(), setting.parameters), strict=True))
    setting.objective.contrast = lambda z, _: 0 * z.sum()
    alone = dict(zip(setting.names, torch.autograd.grad(setting.loss(), setting.parameters), strict=True))
    assert alone["network.features.0.weight"].abs().max() == 0
    assert gradients["network.features.0.weight"].abs().max() > 0
    torch.testing.assert_close(alone["network.fc.weight"], gradients["network.fc.weight"])


def test_cider_is_its_formula() -> None:
    """Prototypes one projection after the other, as the authors' loop; and its two terms."""
    objective = parse_objective("cider:weight=0.7,m=0.9,T=0.2")
    torch.manual_seed(0)
    start = functional.normalize(torch.randn(4, 128, dtype=torch.float64), dim=1)
    start[3] = 0  # a class that was not seen yet
    objective.prototypes = start.clone()
    z = functional.normalize(torch.randn(7, 128, dtype=torch.float64), dim=1).requires_grad_()
    labels = torch.tensor([0, 1, 0, 3, 0, 3, 1])
    prototypes = start.numpy().copy()
    for row, c in zip(z.detach().numpy(), labels.tolist(), strict=True):
        moved = 0.9 * prototypes[c] + 0.1 * row
        prototypes[c] = moved / np.linalg.norm(moved)
    logits = z.detach().numpy() @ prototypes.T / 0.2
    compact = np.mean([np.log(np.exp(r).sum()) - r[c] for r, c in zip(logits, labels.tolist(), strict=True)])
    near = np.exp(prototypes @ prototypes.T / 0.2)
    dispersion = np.log((near.sum(axis=1) - near.diagonal()) / 3).mean()
    loss = objective.contrast(z, labels)
    assert loss.item() == pytest.approx(0.7 * compact + dispersion, rel=1e-10)
    assert np.allclose(objective.prototypes.numpy(), prototypes)
    assert torch.autograd.grad(loss, z)[0].isfinite().all()
    objective.prototypes = start.clone()
    direction = functional.normalize(torch.randn(7, 128, dtype=torch.float64), dim=1)
    (gradient,) = torch.autograd.grad(objective.dispersion(objective.follow(z, labels)), z)
    up, down = (objective.dispersion(objective.follow(z.detach() + e * direction, labels)) for e in (1e-6, -1e-6))
    assert ((up - down) / 2e-6).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_cider_at_rest_is_cross_entropy_of_cosines() -> None:
    objective = parse_objective("cider:weight=1")
    torch.manual_seed(0)
    objective.prototypes = functional.normalize(torch.randn(3, 128, dtype=torch.float64), dim=1)
    objective.follow, objective.dispersion = lambda *_: objective.prototypes, lambda _: 0
    z = functional.normalize(torch.randn(6, 128, dtype=torch.float64), dim=1)
    assert objective.contrast(z, Y).item() == pytest.approx(
        functional.cross_entropy(10 * z @ objective.prototypes.T, Y).item(), rel=1e-12
    )


@pytest.mark.parametrize("spec", ["supcon", "cider", "csi"])
def test_a_step_lowers_a_contrastive_loss(spec: str) -> None:
    setting = Setting(spec)
    start = {name: t.clone() for name, t in setting.objective.named_buffers()}
    before = setting.loss().item()
    gradients = torch.autograd.grad(setting.loss(), setting.parameters)
    for name, t in start.items():
        setattr(setting.objective, name, t)
    for p, gradient in zip(setting.parameters, gradients, strict=True):
        p.data -= 1e-3 * gradient
    assert setting.loss().item() < before


def parts_of_a_batch(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss and gradients of objectives that look across the batch, and what VOS remembers of it."""
    found = {}
    for spec in ("supcon", "cider", "csi", "vos"):
        setting = Setting(spec)
        if spec == "vos":
            setting.objective.queued.zero_(), setting.objective.counts.zero_()
            del setting.objective.remember  # the class's own again
        loss, _ = setting.objective.loss(View(x, y, setting.parts, 0.5), setting.classifier.heads)
        gradients = torch.autograd.grad(loss, setting.parameters)
        found |= {f"{spec}/{name}": g for name, g in zip(setting.names, gradients, strict=True)}
        found |= {f"{spec}/{name}": t for name, t in setting.objective.named_buffers()} | {f"{spec}/loss": loss}
    return {name: t.detach().double().contiguous() for name, t in found.items()}


def one_of_two(rank: int, folder: Path) -> None:
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    x, y = HALVES[rank]
    save_file(parts_of_a_batch(x, y), folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_look_across_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    whole = parts_of_a_batch(*(torch.cat(parts) for parts in zip(*HALVES, strict=True)))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, t in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, t, rtol=1e-5, atol=1e-9)
    for name in ("cider/prototypes", "vos/queued", "vos/counts"):
        assert torch.equal(first[name], second[name])
        assert first[name].abs().sum() > 0


def test_csi_compares_turned_images_as_classes_of_their_own() -> None:
    setting = Setting("csi:T=0.3")
    total = setting.loss().item()
    parts = {name: value.item() for name, value in setting.watched.items()}
    x, y = torch.cat([X, X.flip(3)]).double(), Y.repeat(2)
    h = torch.cat([setting.network.features(torch.rot90(x, k, (2, 3))).mean((2, 3)) for k in range(4)])
    joint = torch.cat([y + 3 * k for k in range(4)])
    z = functional.normalize(setting.objective.projection(h))
    near = (z @ z.T / 0.3).exp().fill_diagonal_(0)
    same = (joint[:, None] == joint).double().fill_diagonal_(0)
    expected = -((near / near.sum(1, keepdim=True) + (same == 0)).log() * same).sum(1) / same.sum(1)
    assert parts["contrast_loss"] == pytest.approx(expected.mean().item(), rel=1e-6)
    assert parts["cls_loss"] == pytest.approx(functional.cross_entropy(setting.network(x), y).item(), rel=1e-6)
    ce = functional.cross_entropy(setting.classifier.heads["csi"].linear(h), joint)
    assert parts["joint_loss"] == pytest.approx(ce.item(), rel=1e-6)
    assert total == pytest.approx(sum(parts.values()), rel=1e-6)


def test_csis_linear_heads_leave_the_features_alone() -> None:
    setting = Setting("csi")
    setting.objective.contrast = lambda z, _: 0 * z.sum()
    gradients = dict(zip(setting.names, torch.autograd.grad(setting.loss(), setting.parameters), strict=True))
    assert gradients["network.features.0.weight"].abs().max() == 0
    assert gradients["csi.linear.weight"].abs().max() > 0


def test_csis_score_averages_over_the_turns() -> None:
    """And so is the same for an image that comes turned, up to which head reads it."""
    setting = Setting("csi")
    classifier, head = setting.classifier, setting.classifier.heads["csi"].eval()
    setting.network.eval()
    detector = Detector("csi+msp")
    with torch.no_grad():
        f = pass_of(detector).run(classifier, X.double())
        turned = [setting.network.features(torch.rot90(X.double(), k, (2, 3))).mean((2, 3)) for k in range(4)]
        mean = sum(head.linear(h)[:, 3 * k : 3 * k + 3] for k, h in enumerate(turned)) / 4
    assert torch.equal(f.pred, mean.argmax(1))
    torch.testing.assert_close(detector(f), mean.softmax(1).amax(1))
    torch.testing.assert_close(f.h, turned[0])
    with pytest.raises(InputError, match="csi"):
        Detector("csi+react+msp")
