"""Objectives beside cross entropy and SSOD: against closed forms, finite differences, and cross entropy itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.features import Columns, Features
from nescio.data import Transform
from nescio.methods.background import class_confidence
from nescio.methods.objective import View, from_uniform, parse_objective
from nescio.methods.trained.mos import kmeans, read_groups
from nescio.models import Classifier
from nescio.models.classifier import seen
from objective_setting import OUTLIERS, Setting, X, Y, loss_of_logits, moved
from tiny_networks import GroupNet

SPECS = (
    *("ce", "logitnorm", "godin", "godin:similarity=inner", "godin:similarity=euclid"),
    *("mos:groups=random,k=2", "oe", "ssod:gamma=0.6,outliers=1"),
    *("vos:start=0,queue=30", "conf:outliers=1"),
)


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
    setting.objective.after_step(setting.classifier)
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
    objective.after_step(classifier)
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
    assert Detector("mos")(f).tolist() == pytest.approx((-least_others.min(axis=1)).tolist())


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
        ("0,a\n0,b\n", "repeats a class"),
        ("emu\n", "'emu' is not a class and its group"),
        ("3,a\n", "'3,a' is not a class"),
        ("0,a\n2,b\n", "has no group for 1"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=told):
            read_groups(file, 3)
    with pytest.raises(InputError, match=r"groups=kmean cannot be read .*give kmeans, random"):
        Setting("mos:groups=kmean")
    with pytest.raises(InputError, match="k=9 groups, but only 3 classes"):
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
        confidence = class_confidence(network.fc(fmap.flatten(2).mT), Y)
        z, z_far = head(fmap).flatten(1), head(far).flatten(1)
        is_id, is_ood = confidence >= 0.6, confidence < 0.4
        as_id = functional.softplus(-z)[is_id].mean() if is_id.any() else 0
        as_ood = torch.cat([functional.softplus(z)[is_ood], functional.softplus(z_far).flatten()]).mean()
    own = Setting("ce").loss().item()
    assert setting.loss().item() == pytest.approx(own + float(as_id + as_ood) / 2, rel=1e-6)
    with pytest.raises(InputError, match="balance=dr draws as many"):
        parse_objective("ssod:balance=dr,outliers=1")


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
    assert Detector("vos")(f).tolist() == pytest.approx(p_out.tolist())
    assert setting.objective.warning({}) is None
    setting.objective.counts[1] = 29
    assert setting.loss().item() == pytest.approx(ce, rel=1e-12)
    assert "has had fewer than 30 images so far" in setting.objective.warning({})
    with pytest.raises(InputError, match="select=5 is more than draws=4"):
        parse_objective("vos:select=5,draws=4")


def test_each_part_of_bal_has_a_loss_of_its_own() -> None:
    """Network, discriminator and generator, whose losses are one sum and whose gradients must not mix."""
    setting = Setting("bal:weight=0.3,eps=0.5")
    gradients = dict(zip(setting.names, torch.autograd.grad(setting.loss(), setting.parameters), strict=True))
    head, generator = setting.classifier.heads["bal"], setting.objective.generator
    head.mean.zero_(), head.var.fill_(1)
    total = setting.loss().item()
    torch.manual_seed(2)
    h = setting.network.features(X.double()).mean((2, 3)).detach()
    assert torch.allclose(head.mean, 0.1 * h.mean(0))
    assert torch.allclose(head.var, 0.9 + 0.1 * h.var(0, correction=0))
    h = (h - head.mean) / (head.var + head.var.mean() / 100).sqrt() / h.shape[1] ** 0.5
    made = generator(torch.randn(6, 64).double())  # of the spread of training images
    made = made * (head.var / (head.var + head.var.mean() / 100)).sqrt() / h.shape[1] ** 0.5
    low, high = h.amin(0), h.amax(0)
    trivial = (1.5 * low - 0.5 * high) + 2 * (high - low) * torch.rand(h.shape).double()
    start = made.detach().requires_grad_()
    (slope,) = torch.autograd.grad(head.layers(start).sigmoid().log().sum(), start)
    hard = start.detach() - 0.5 / h.shape[1] ** 0.5 * slope.sign()
    assert (head.layers(hard) < head.layers(start)).all(), "across the boundary"

    def bce(t: torch.Tensor, target: float) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(head.layers(t), torch.full((6, 1), target).double())

    of_network = functional.cross_entropy(setting.network(X.double()), Y)
    of_d = bce(h, 1) + 0.3 * (bce(trivial, 0) + bce(made.detach(), 0) + bce(hard, 0))
    of_g = bce(made, 1)
    assert total == pytest.approx((of_network + of_d + of_g).item(), rel=1e-8)
    for owner, module, loss in (("network", setting.network, of_network), ("generator", generator, of_g)):
        expected = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        for (name, _), wanted in zip(module.named_parameters(), expected, strict=True):
            torch.testing.assert_close(gradients[f"{owner}.{name}"], wanted, rtol=1e-4, atol=1e-7)
    expected = torch.autograd.grad(of_d, list(head.parameters()))
    for (name, _), wanted in zip(head.named_parameters(), expected, strict=True):
        torch.testing.assert_close(gradients[f"bal.{name}"], wanted, rtol=1e-4, atol=1e-7)


def test_bal_learns_the_boundary_of_the_authors_example() -> None:
    """Two Gaussians in the plane: what lies far from both, or between them, is not taken for ID."""
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)), Transform(crop=1))
    objective = parse_objective("bal:eps=0.3")
    head = objective.heads(classifier)["bal"]
    optimizer = torch.optim.Adam([*head.parameters(), *objective.parameters()], lr=2e-3)
    labels = torch.arange(256) % 2

    def drawn() -> torch.Tensor:
        return torch.randn(256, 2) + torch.tensor([3.5, -3.5])[labels][:, None]

    for _ in range(600):
        view = View(torch.zeros(256, 3, 1, 1), labels, None, 0.5)
        view.__dict__.update(h=drawn(), logits=torch.zeros(256, 2))
        optimizer.zero_grad()
        objective.loss(view, nn.ModuleDict({"bal": head}))[0].backward()
        optimizer.step()
    with torch.no_grad():
        inside = head(drawn(), None).sigmoid().mean()
        far = torch.tensor([[7.0, -7.0], [-7.0, 7.0], [4.0, -4.0], [-4.0, 4.0], [12.0, 12.0]])
        outside = head(far, None).sigmoid()
    assert inside > 0.6  # half of what looks like ID comes from the generator, or is across the boundary
    assert outside.max() < 0.1


def test_bals_score_is_its_formula(classifier: Classifier) -> None:
    with torch.no_grad():
        f = classifier(torch.randn(5, 3, 8, 8))
    z = torch.tensor([[0.0], [3.0], [-3.0], [40.0], [-40.0]])
    f = Features(f.h, f.head, f.pred, aux=Columns.of({"bal.0": z}))
    p, d = f.logits.double().softmax(1).amax(1).numpy(), 1 / (1 + np.exp(-z[:, 0].double().numpy()))
    assert np.allclose(Detector("bal")(f).numpy(), p * d, rtol=1e-12)
