"""Objectives beside cross entropy and SSOD: against closed forms, finite differences, and cross entropy itself."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import nescio
from conftest import coloured
from nescio.cli import main
from nescio.data import Transform
from nescio.detector import Detector
from nescio.errors import InputError
from nescio.extraction import pass_of
from nescio.features import TrainingData
from nescio.input.perturb import STEPS
from nescio.models import Classifier, load_classifier
from nescio.models.classifier import seen
from nescio.objectives import View, parse_objective
from nescio.objectives.base import TrainingNetwork
from nescio.objectives.mos import kmeans, read_groups
from nescio.objectives.oe import from_uniform
from nescio.objectives.ssod import true_class_confidence
from nescio.objectives.vos import VOS
from nescio.options import parse_named
from nescio.training import Hardware, Interrupted, Recipe, train
from nescio.training.augment import AUGMENTS
from nescio.training.images import Images
from nescio.training.loop import Loop
from nescio.training.stream import Stream
from tiny_networks import GroupNet, batch_norm_net

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
OUTLIERS = 2 * torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))


SPECS = (
    *("ce", "logitnorm", "godin", "godin:similarity=inner", "godin:similarity=euclid"),
    *("mos:groups=random,k=2", "oe", "ssod:gamma=0.6,outliers=1"),
    *("vos:start=0,queue=30", "conf:outliers=1"),
)


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
        if isinstance(self.objective, VOS):
            self.objective.queued.normal_()
            self.objective.counts += self.objective.queue
            self.objective.remember = lambda *_: None  # the same virtual outliers in every step
        self.parts = TrainingNetwork(self.classifier, maps=self.objective.needs_maps)  # traced in float32
        self.network.double()
        self.classifier.heads.double()
        self.objective.double()

    def loss(self, epoch: float = 0.5) -> torch.Tensor:
        torch.manual_seed(2)  # what a step draws
        x = torch.cat([X, OUTLIERS[: len(X) * self.objective.outliers]]).double()
        x, y = (torch.cat([X, X.flip(3)]).double(), Y.repeat(2)) if self.objective.views == 2 else (x, Y)
        return self.objective.loss(View(x, y, self.parts, epoch), self.classifier.heads)[0]

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


@pytest.mark.parametrize("spec", SPECS)
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


@pytest.mark.parametrize("similarity", ["cosine", "inner", "euclid"])
def test_godin_is_its_formula(similarity: str) -> None:
    """In training mode, where the batch norm of g takes the batch's own mean and variance."""
    setting = Setting(f"godin:similarity={similarity}")
    network, head = setting.network, setting.classifier.heads["godin"]
    head.norm.weight.data.fill_(1.7)
    h = network.pool(network.features(X.double())).flatten(1).detach().numpy()
    W, b = network.fc.weight.detach().numpy(), network.fc.bias.detach().numpy()
    numerators = {
        "cosine": h @ W.T / np.linalg.norm(h, axis=1, keepdims=True) / np.linalg.norm(W, axis=1),
        "inner": h @ W.T + b,
        "euclid": -((h[:, None] - W / 2) ** 2).sum(axis=2),
    }[similarity]
    z = h @ head.linear.weight.detach().numpy().T + head.linear.bias.item()
    g = 1 / (1 + np.exp(-1.7 * (z - z.mean()) / np.sqrt(z.var() + 1e-5)))
    f = numerators / g
    expected = np.mean([np.log(np.exp(row).sum()) - row[c] for row, c in zip(f, Y.tolist(), strict=True)])
    assert setting.loss().item() == pytest.approx(expected, rel=1e-8)
    setting.objective.settle(setting.classifier)
    assert setting.loss().item() == pytest.approx(expected, rel=1e-8), "tying the layer changes no numerator"
    raw = setting.classifier.head.linear(torch.from_numpy(h))
    assert torch.equal(raw.argmax(1), torch.from_numpy(f.argmax(1))), "the layer predicts what the quotients do"


def test_godin_is_cross_entropy_where_the_denominator_is_one() -> None:
    setting = Setting("godin:similarity=inner")
    norm = setting.classifier.heads["godin"].norm
    norm.weight.data.zero_()
    norm.bias.data.fill_(800)
    assert setting.loss().item() == pytest.approx(Setting("ce").loss().item(), rel=1e-12)


def test_godin_says_what_a_layer_lacks() -> None:
    network = GroupNet()
    network.fc = nn.Linear(16, 3, bias=False)
    classifier = Classifier(network, Transform(crop=16))
    with pytest.raises(InputError, match="has no bias, which similarity=euclid needs"):
        parse_objective("godin:similarity=euclid").heads(classifier)
    objective = parse_objective("godin")
    classifier.heads.update(objective.heads(classifier))
    objective.settle(classifier)
    torch.testing.assert_close(classifier.head.weight.norm(dim=1), torch.ones(3))


def test_mos_is_its_formula() -> None:
    setting = Setting("mos:groups=random,k=2")
    network, head = setting.network, setting.classifier.heads["mos"]
    h = network.pool(network.features(X.double())).flatten(1)
    logits, others = (layer(h).detach().numpy() for layer in (network.fc, head.linear))
    group, total = head.group.tolist(), 0.0
    best, least_others = np.full((6, 3), -np.inf), np.ones((6, 2))
    for g in (0, 1):
        classes = [c for c in range(3) if group[c] == g]
        p = np.exp(np.concatenate([logits[:, classes], others[:, g : g + 1]], axis=1))
        p /= p.sum(axis=1, keepdims=True)
        best[:, classes], least_others[:, g] = p[:, :-1], p[:, -1]
        target = [classes.index(y) if y in classes else len(classes) for y in Y.tolist()]
        total -= np.log(p[range(6), target]).mean()
    assert setting.loss().item() == pytest.approx(total, rel=1e-10)
    f = seen(h.detach(), setting.classifier.head, setting.classifier.heads)
    assert f.pred.tolist() == best.argmax(axis=1).tolist(), "the label is the surest class within its group"
    assert Detector.parse("mos")(f).tolist() == pytest.approx((-least_others.min(axis=1)).tolist())


def test_mos_is_cross_entropy_with_one_group_and_no_others() -> None:
    setting = Setting("mos:k=1")
    others = setting.classifier.heads["mos"].linear
    others.weight.data.zero_()
    others.bias.data.fill_(-1e9)
    assert setting.loss().item() == pytest.approx(Setting("ce").loss().item(), rel=1e-12)


def test_groups_of_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[9.0, 0], [0, 9], [-9, -9]])
    rows = centres[torch.arange(12) % 3] + torch.randn(12, 2)
    group = kmeans(rows, 3)
    assert {tuple(sorted(group[i::3].unique().tolist())) for i in range(3)} == {(0,), (1,), (2,)}
    assert kmeans(torch.ones(5, 2), 4).unique().tolist() == [0, 1, 2, 3], "none is empty"
    file = tmp_path / "groups.csv"
    file.write_text("dog,pet\n2, wild\ncat,pet\n")
    assert read_groups(file, ["cat", "dog", "emu"]).tolist() == [0, 0, 1]
    for text, told in (
        ("0,a\n0,b\n", "stands there twice"),
        ("emu\n", "'emu' is no class and its group"),
        ("3,a\n", "'3,a' is no class"),
        ("0,a\n2,b\n", "gives no group to 1"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=told):
            read_groups(file, 3)
    with pytest.raises(InputError, match=r"groups=kmean cannot be read .*write kmeans, random"):
        Setting("mos:groups=kmean")
    with pytest.raises(InputError, match="k=9 groups are more than the 3 classes"):
        Setting("mos:k=9")


def test_outlier_exposure_is_its_formula() -> None:
    network = Setting("oe").network
    with torch.no_grad():
        logits, out = network(X.double()).numpy(), network(OUTLIERS.double()).numpy()
    own = np.mean([np.log(np.exp(row).sum()) - row[c] for row, c in zip(logits, Y.tolist(), strict=True)])
    uniform = np.mean([np.log(np.exp(row).sum()) - row.mean() for row in out])
    assert Setting("oe").loss().item() == pytest.approx(own + 0.5 * uniform, rel=1e-8)
    assert Setting("oe:weight=0").loss().item() == pytest.approx(Setting("ce").loss().item(), rel=1e-12)
    assert from_uniform(torch.zeros(4, 7)).item() == pytest.approx(np.log(7)), "its least value"


def test_all_positions_of_outliers_are_ood() -> None:
    """The mean loss of the OOD positions, the training images' and the outliers', by hand."""
    setting = Setting("ssod:gamma=0.6,outliers=1")
    network, head = setting.network, setting.classifier.heads["ood"]
    with torch.no_grad():
        fmap, far = network.features(X.double()), network.features(OUTLIERS[:6].double())
        confidence = true_class_confidence(network.fc(fmap.flatten(2).mT), Y)
        z, z_far = head(fmap).flatten(1), head(far).flatten(1)
        is_id, is_ood = confidence >= 0.6, confidence < 0.4
        as_id = functional.softplus(-z)[is_id].mean() if is_id.any() else 0
        as_ood = torch.cat([functional.softplus(z)[is_ood], functional.softplus(z_far).flatten()]).mean()
    own = Setting("ce").loss().item()
    assert setting.loss().item() == pytest.approx(own + float(as_id + as_ood) / 2, rel=1e-6)
    with pytest.raises(InputError, match="balance=dr draws as many"):
        parse_objective("ssod:balance=dr,outliers=1")


def test_outliers_are_given_where_they_are_read(sets: dict[str, Path], tmp_path: Path) -> None:
    options = {"recipe": QUICK, "size": 16, "hardware": CPU, "progress": False, "model": "tiny_networks:batch_norm_net"}
    pair = {name: sets[name] for name in ("train", "val")}
    for objective, outliers, told in (
        ("oe", None, "'oe' learns from outliers; give some \\(--outliers SET\\)"),
        ("ce", sets["outliers"], "'ce' reads no outliers; 'oe' does"),
        ("ssod", sets["outliers"], "'ssod' reads no outliers; 'oe' does, and 'ssod:outliers=1'"),
        ("oe", sets["train"], "the outliers are the train images"),
    ):
        with pytest.raises(InputError, match=told):
            train(tmp_path / "run", **pair, objective=objective, outliers=outliers, **options)
    assert not (tmp_path / "run").exists()


def test_the_command_takes_outliers(sets: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [f"--{name}={folder}" for name, folder in sets.items()]
    options = ["--arch=tiny_networks:group_net", "--size=16", "--epochs=1", "--batch-size=24", "--workers=0"]
    done = CliRunner().invoke(main, ["-q", "train", *sources, *options, "--objective=oe:outliers=1", "--out=run"])
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "run/run.json").read_text())
    assert stored["settings"]["outliers"] == nescio.open_source(sets["outliers"]).identity
    assert load_classifier("run", device="cpu").seen["outliers"] == stored["settings"]["outliers"]


def test_outliers_that_are_tested_on_are_noticed(
    folder_of: Callable[[str], Path], sets: dict[str, Path], caplog
) -> None:
    classifier = load_classifier(str(folder_of("oe")), device="cpu")
    with caplog.at_level("WARNING", "nescio"):
        nescio.bench(classifier, id=sets["val"], ood={"far": sets["outliers"]}, detectors=["msp"], workers=0)
    assert "trained with the images of 'far' as outliers" in caplog.text


@pytest.mark.parametrize("views", [1, 2])
def test_a_stream_gives_the_same_parts_to_any_number_of_processes(sets: dict[str, Path], views: int) -> None:
    source, transform = nescio.open_source(sets["outliers"]), Transform(crop=16)
    images = Images(source, transform, device=torch.device("cpu"), hardware=CPU, progress=False)
    augment = parse_named("shift", AUGMENTS)

    def batches(done: int, rank: int, world: int, parts: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        stream = Stream(images, torch.Generator().manual_seed(0), 5, 20, views)  # 100 of 30 images
        return list(stream.parts(done, rank, world, parts, augment, transform))

    whole = batches(0, 0, 1, 1)
    assert [len(numbers) for _, numbers in whole] == [20] * 5
    assert torch.cat([n for _, n in whole])[:30].sort().values.tolist() == list(range(30)), (
        "each before one comes again"
    )
    for (x, numbers), (second, _) in zip(whole[2:], batches(2, 0, 1, 1), strict=True):
        assert torch.equal(x, second)
        assert len(x) == views * len(numbers)
    first, other = batches(0, 0, 2, 2), batches(0, 1, 2, 2)
    shown = [x[: len(n)] for x, n in (first[0], first[1], other[0], other[1])]
    mine = torch.cat([whole[0][0][:20][0::2], whole[0][0][:20][1::2]])
    assert torch.equal(torch.cat(shown), mine)
    if views == 2:
        assert not torch.equal(whole[0][0][:20], whole[0][0][20:]), "two views of the same images"


def test_the_confidence_loss_is_its_formula() -> None:
    setting = Setting("conf:outliers=1,weight=0.7")
    with torch.no_grad():
        p = setting.network(OUTLIERS[:6].double()).softmax(1).numpy()
    kl = np.mean([sum(1 / 3 * np.log(1 / 3 / q) for q in row) for row in p])
    ce = Setting("ce").loss().item()
    assert setting.loss().item() == pytest.approx(ce + 0.7 * kl, rel=1e-8)
    assert Setting("conf:outliers=1,weight=0").loss().item() == pytest.approx(ce, rel=1e-12)


def test_each_of_the_three_has_a_loss_of_its_own() -> None:
    """Generator, discriminator and network, whose losses are one sum and whose gradients must not mix."""
    setting = Setting("conf:weight=0.3")
    conf, network = setting.objective, setting.network
    gradients = dict(zip(setting.names, torch.autograd.grad(setting.loss(), setting.parameters), strict=True))
    torch.manual_seed(2)
    x = X.double()
    made = 255 * conf.generator(torch.randn(6, 100, 1, 1).double())
    made = setting.classifier.transform.normalise(made).double()
    D = conf.discriminator
    large = functional.interpolate(x, (32, 32), mode="bilinear")
    bce, one, zero = functional.binary_cross_entropy_with_logits, torch.ones(6).double(), torch.zeros(6).double()
    of_d = bce(D(large).flatten(), one) + bce(D(made.detach()).flatten(), zero)
    kl = -network(functional.interpolate(made, (16, 16), mode="bilinear")).log_softmax(1).mean() - np.log(3)
    of_g = bce(D(made).flatten(), one) + 0.3 * kl
    of_network = functional.cross_entropy(network(x), Y) + 0.3 * kl
    for owner, loss in (("discriminator", of_d), ("generator", of_g), ("network", of_network)):
        module = network if owner == "network" else getattr(conf, owner)
        expected = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        for (name, _), wanted in zip(module.named_parameters(), expected, strict=True):
            torch.testing.assert_close(gradients[f"{owner}.{name}"], wanted, rtol=1e-4, atol=1e-7)


def test_virtual_outliers_are_the_least_likely_of_many_samples() -> None:
    """Against whole samples: the distribution of their Mahalanobis distance, and their mean and covariance."""
    torch.manual_seed(0)
    objective = parse_objective("vos:queue=400,draws=50,select=2")
    objective.queued = torch.randn(3, 400, 4) @ torch.randn(4, 4) + 5 * torch.randn(3, 1, 4)
    means = objective.queued.mean(1)
    spread = (objective.queued - means[:, None]).flatten(0, 1)
    cov = spread.T @ spread / len(spread) + 1e-4 * torch.eye(4)
    found = torch.stack([objective.virtual().view(3, 2, 4) for _ in range(400)]) - means[:, None]
    normal = torch.distributions.MultivariateNormal(torch.zeros(4), cov)
    samples = normal.sample((1200, 50))
    least = normal.log_prob(samples).topk(2, dim=1, largest=False).indices
    wanted = samples.gather(1, least[..., None].expand(-1, -1, 4))
    ours, theirs = (normal.log_prob(s.reshape(-1, 4)).sort().values for s in (found, wanted))
    assert (ours - theirs).abs().mean() < 0.1 * theirs.std()
    flat, other = found.reshape(-1, 4), wanted.reshape(-1, 4)
    assert flat.mean(0).abs().max() < 0.15 * flat.std(0).max()
    assert (flat.T.cov() - other.T.cov()).norm() < 0.12 * other.T.cov().norm()


def test_queues_keep_the_latest() -> None:
    objective = parse_objective("vos:queue=3")
    objective.queued, objective.counts = torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.int64)
    for start in (0, 6):
        numbers = torch.arange(start, start + 6)
        objective.remember(numbers[:, None].float(), (numbers >= 5).long())
    assert objective.queued[0, :, 0].sort().values.tolist() == [2, 3, 4]
    assert objective.queued[1, :, 0].sort().values.tolist() == [9, 10, 11]
    assert objective.counts.tolist() == [5, 7]


def test_vos_is_cross_entropy_until_it_begins_and_its_formula_then(caplog) -> None:
    ce = Setting("ce").loss().item()
    assert Setting("vos:start=1,queue=30").loss(0.9).item() == pytest.approx(ce, rel=1e-12)
    assert Setting("vos:start=0,weight=0,queue=30").loss().item() == pytest.approx(ce, rel=1e-12)
    setting = Setting("vos:start=0,queue=30")
    w = setting.classifier.heads["vos"].weight.data
    w[1] = -1  # counts as 0
    torch.manual_seed(2)
    v = setting.objective.virtual()
    with torch.no_grad():
        a, b = (p.item() for p in setting.classifier.heads["vos"].linear.parameters())
        logits = [setting.network(X.double()).numpy(), setting.network.fc(v).numpy()]
    z_in, z_out = (a * np.log((np.maximum(w.numpy(), 0) * np.exp(f)).sum(axis=1)) + b for f in logits)
    p_in, p_out = (1 / (1 + np.exp(-z)) for z in (z_in, z_out))
    expected = -np.concatenate([np.log(p_in), np.log(1 - p_out)]).mean()
    assert setting.loss().item() == pytest.approx(ce + 0.1 * expected, rel=1e-6)
    f = seen(v, setting.classifier.head, setting.classifier.heads)
    assert Detector.parse("vos")(f).tolist() == pytest.approx(p_out.tolist())
    assert setting.objective.concern({}) is None
    setting.objective.counts[1] = 29
    assert setting.loss().item() == pytest.approx(ce, rel=1e-12)
    assert "has not had 30 images yet" in setting.objective.concern({})
    with pytest.raises(InputError, match="select=5 of draws=4"):
        parse_objective("vos:select=5,draws=4")


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
    assert loss.item() == pytest.approx(compact + 0.7 * dispersion, rel=1e-10)
    assert np.allclose(objective.prototypes.numpy(), prototypes)
    assert torch.autograd.grad(loss, z)[0].isfinite().all()
    objective.prototypes = start.clone()
    direction = functional.normalize(torch.randn(7, 128, dtype=torch.float64), dim=1)
    (gradient,) = torch.autograd.grad(objective.dispersion(objective.follow(z, labels)), z)
    up, down = (objective.dispersion(objective.follow(z.detach() + e * direction, labels)) for e in (1e-6, -1e-6))
    assert ((up - down) / 2e-6).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_cider_at_rest_is_cross_entropy_of_cosines() -> None:
    objective = parse_objective("cider:weight=0")
    torch.manual_seed(0)
    objective.prototypes = functional.normalize(torch.randn(3, 128, dtype=torch.float64), dim=1)
    objective.follow = lambda *_: objective.prototypes
    z = functional.normalize(torch.randn(6, 128, dtype=torch.float64), dim=1)
    assert objective.contrast(z, Y).item() == pytest.approx(
        functional.cross_entropy(10 * z @ objective.prototypes.T, Y).item(), rel=1e-12
    )


@pytest.mark.parametrize("spec", ["supcon", "cider"])
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


# trained, stored and loaded

QUICK = Recipe(2, 24, "adamw:lr=1e-2", "constant", "shift:by=0.125", ema=0.5)
CPU = Hardware(device="cpu", workers=0)
TRAINED = (
    *("logitnorm", "godin", "godin:similarity=euclid", "mos:groups=random,k=2", "oe", "ssod:gamma=0.6,outliers=1"),
    *("vos:start=1,queue=20", "conf", "conf:outliers=1", "supcon", "cider"),
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    return {
        "train": coloured(root, "train", 24),
        "val": coloured(root, "val", 10, seed=1),
        "outliers": coloured(root, "outliers", 5, classes=6, seed=2),
    }


def run(out: Path, sets: dict[str, Any], objective: str, **options: Any) -> None:
    sets = {name: s for name, s in sets.items() if name != "outliers" or parse_objective(objective).outliers}
    settings = {"recipe": QUICK, "size": 16, "hardware": CPU, "progress": False, "objective": objective}
    train(out, model="tiny_networks:batch_norm_net", **sets, **(settings | options))


@pytest.fixture(scope="module")
def folder_of(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def made(objective: str) -> Path:
        out = tmp_path_factory.mktemp("runs") / "run"
        run(out, sets, objective)
        return out

    return made


@pytest.mark.parametrize("objective", TRAINED)
def test_a_trained_classifier_is_judged_as_it_was_in_training(
    objective: str, folder_of: Callable[[str], Path], sets: dict[str, Path]
) -> None:
    out = folder_of(objective)
    kept = json.loads((out / "run.json").read_text())["selected"]["kept"]
    detector = parse_objective(objective).detector
    results = nescio.bench(
        load_classifier(str(out), device="cpu"), id=sets["val"], ood={"other": sets["train"]},
        detectors=["energy", detector], train=sets["train"], workers=0,
    )  # fmt: skip
    assert results.rows[0].id_accuracy == pytest.approx(kept["val_accuracy"])
    assert kept["val_accuracy"] > 0.5


@pytest.mark.parametrize("objective", TRAINED)
def test_an_interrupted_run_resumes_to_the_same_bits(
    objective: str, folder_of: Callable[[str], Path], sets: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_agree", lambda loop, _: loop.state.step == 2)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", sets, objective)
    run(tmp_path / "run", sets, objective, resume=True)
    whole, resumed = (load_file(p / "last.safetensors") for p in (folder_of(objective), tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_godins_file_of_weights_predicts_the_same_in_a_plain_network(
    folder_of: Callable[[str], Path], sets: dict[str, Path]
) -> None:
    out = folder_of("godin")
    classifier = load_classifier(str(out), device="cpu")
    plain = batch_norm_net().eval()
    plain.load_state_dict({k: t for k, t in load_file(out / "model.safetensors").items() if "nescio" not in k})
    x = torch.randn(20, 3, 16, 16)
    f = classifier(x)
    head = classifier.heads["godin"]
    assert not head.training, "its batch norm is at rest"
    quotients = head.numerators(f.h, f.head) / head.denominator(f.h)
    assert torch.equal(quotients.argmax(1), plain(x).argmax(1))
    assert torch.equal(f.pred, plain(x).argmax(1))
    torch.testing.assert_close(classifier.head.weight.norm(dim=1), torch.ones(3))
    detector = nescio.Detector.parse
    cosines = functional.cosine_similarity(f.h[:, None], f.head.weight[None], dim=2)
    torch.testing.assert_close(detector("godin")(f).float(), cosines.amax(1))
    torch.testing.assert_close(detector("godin:read=g")(f).float(), head.denominator(f.h)[:, 0])


def test_a_head_is_taken_over_where_it_fits(
    folder_of: Callable[[str], Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    recipe = Recipe(1, 24, "sgd:lr=1e-9", "constant", "none")
    init = load_classifier(str(folder_of("godin")), device="cpu").heads["godin"].linear.weight
    for objective, same in (("godin", True), ("godin:similarity=inner", False)):
        run(tmp_path / objective, sets, objective, init=str(folder_of("godin")), recipe=recipe)
        made = load_classifier(str(tmp_path / objective), device="cpu").heads["godin"]
        assert torch.allclose(made.linear.weight, init, atol=1e-5) == same


# the perturbation


def test_the_step_is_the_one_that_raises_the_score_most(classifier: Classifier) -> None:
    detector = Detector.parse("perturbid+energy").fit(TrainingData(classifier.head))
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="'perturbid' has no step yet"):
        pass_of(detector).run(classifier, x)
    detector.input_stage.choose(classifier, detector, [x[:5], x[5:]])
    means = {eps: Detector.parse(f"perturb:eps={eps}+energy").fit(TrainingData(classifier.head)) for eps in STEPS}
    means = {eps: d(pass_of(d).run(classifier, x)).mean().item() for eps, d in means.items()}
    assert detector.settings()["perturbid"]["step"] == pytest.approx(max(means, key=means.get))
    torch.testing.assert_close(detector(pass_of(detector).run(classifier, x)).mean().item(), max(means.values()))


def test_the_step_is_chosen_on_id_images_by_bench_and_fit(
    folder_of: Callable[[str], Path], sets: dict[str, Path], tmp_path: Path
) -> None:
    classifier = load_classifier(str(folder_of("godin")), device="cpu")
    spec, ood = "perturbid+godin", {"other": sets["train"]}
    results = nescio.bench(classifier, id=sets["val"], ood=ood, detectors=[spec], train=sets["train"], workers=0)
    assert results.manifest["detectors"][spec]["settings"]["perturbid"]["step"] in [pytest.approx(s) for s in STEPS]
    with pytest.raises(InputError, match="training images"):
        nescio.bench(classifier, id=sets["val"], ood=ood, detectors=[spec], workers=0)
    with pytest.raises(InputError, match="training images"):
        nescio.fit(classifier, spec, calibrate=sets["val"], accept=0.8, workers=0)
    deployed = nescio.fit(classifier, spec, calibrate=sets["val"], train=sets["train"], accept=0.8, workers=0)
    deployed.save(tmp_path / "d.nescio")
    step = nescio.load(
        tmp_path / "d.nescio", model="tiny_networks:batch_norm_net", device="cpu"
    ).detector.input_stage.step
    assert float(step) == float(deployed.detector.input_stage.step)
