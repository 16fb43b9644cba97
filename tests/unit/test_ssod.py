"""Cross entropy and SSOD, beside the same thing written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

from nescio.core.errors import InputError
from nescio.data import Transform
from nescio.methods.background import class_confidence
from nescio.methods.objective import TrainingNetwork, View, parse_objective
from nescio.methods.trained.ssod import SSODHead, resample
from nescio.models import Classifier
from tiny_networks import BatchNormNet, GroupNet

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
SMALL = Transform(crop=64)


def classifier_of(network: nn.Module, *, heads: dict[str, nn.Module] | None = None) -> Classifier:
    return Classifier(network, Transform(crop=16), heads=heads)


def sharp_net() -> GroupNet:
    """With a head that is sure of itself at most positions, so that all kinds of labels occur."""
    torch.manual_seed(0)
    network = GroupNet()
    network.fc.weight.data *= 12
    return network


def setting(spec: str, network: nn.Module, epoch: float = 0.5):
    objective = parse_objective(spec)
    classifier = classifier_of(network)
    torch.manual_seed(1)
    classifier.heads.update(objective.heads(classifier))
    return objective, View(X, Y, TrainingNetwork(classifier, maps=objective.needs.maps), epoch), classifier


def by_hand(network: GroupNet, ood: nn.Conv2d, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of the positions and the OOD head's two losses there, position by position."""
    fmap = network.features(X).detach().numpy()
    W, b = network.fc.weight.detach().numpy(), network.fc.bias.detach().numpy()
    w, c = ood.weight.detach().numpy().ravel(), ood.bias.item()
    kinds, as_id, as_ood = (np.zeros((len(X), 4, 4)) for _ in range(3))
    for i, y in enumerate(Y.tolist()):
        for r, s in np.ndindex(4, 4):
            logits = W @ fmap[i, :, r, s] + b
            confidence = np.exp(logits[y]) / np.exp(logits).sum()
            kinds[i, r, s] = 1 if confidence >= gamma else -1 if confidence < 1 - gamma else 0
            z = w @ fmap[i, :, r, s] + c
            as_id[i, r, s], as_ood[i, r, s] = np.log1p(np.exp(-z)), np.log1p(np.exp(z))
    return kinds, as_id, as_ood


@pytest.mark.parametrize("gamma", [0.6, 0.9])
def test_ssod_is_equations_11_to_15(gamma: float) -> None:
    network = sharp_net()
    objective, view, classifier = setting(f"ssod:gamma={gamma},alpha=0.7", network)
    kinds, as_id, as_ood = by_hand(network, classifier.heads["ood"], gamma)
    assert {-1, 0, 1} == set(np.unique(kinds)), "the test must see all three kinds"
    lwb = (as_id[kinds == 1].mean() + as_ood[kinds == -1].mean()) / 2
    own = functional.cross_entropy(network(X), Y).item()
    loss, watched = objective.loss(view, classifier.heads)
    assert loss.item() == pytest.approx(own + 0.7 * lwb, rel=1e-5)
    assert watched["ood_loss"].item() == pytest.approx(lwb, rel=1e-5)
    assert watched["id_share"].item() == pytest.approx((kinds == 1).mean())
    assert watched["ood_share"].item() == pytest.approx((kinds == -1).mean())


def test_loss_weighting() -> None:
    network = sharp_net()
    objective, view, classifier = setting("ssod:gamma=0.6,balance=lw,weight=0.3", network)
    kinds, as_id, as_ood = by_hand(network, classifier.heads["ood"], 0.6)
    expected = (as_id[kinds == 1].sum() + 0.3 * as_ood[kinds == -1].sum()) / (kinds != 0).sum()
    assert objective.loss(view, classifier.heads)[1]["ood_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_resampling_draws_as_many_of_either_kind() -> None:
    objective = parse_objective("ssod:balance=dr")
    is_id = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]).bool()
    is_ood = torch.tensor([[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).bool()
    z = torch.randn(3, 6, requires_grad=True)
    drawn = torch.zeros(3, 6)
    for seed in range(200):
        torch.manual_seed(seed)
        (gradient,) = torch.autograd.grad(objective.ood_term(z, is_id, is_ood), z)
        used = gradient != 0
        assert (used & is_id).sum(1).tolist() == [1, 0, 1]
        assert (used & is_ood).sum(1).tolist() == [1, 0, 1]
        drawn += used
    assert drawn[0, :3].min() > 40, "each ID position of the first image has its turn"
    assert resample(is_id)[1].sort().values.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("balance", ["lwb", "lw", "dr"])
def test_absent_kinds_give_no_nan(balance: str) -> None:
    objective = parse_objective(f"ssod:balance={balance}")
    z = torch.randn(2, 5, requires_grad=True)
    none, some = torch.zeros(2, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    empty = objective.ood_term(z, none, none)
    assert empty.item() == 0
    assert torch.autograd.grad(empty, z)[0].eq(0).all()
    alone = objective.ood_term(z, none, some).item()
    expected = {"lwb": functional.softplus(z).mean() / 2, "lw": 0.1 * functional.softplus(z).mean(), "dr": 0}[balance]
    assert alone == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-5)


def test_one_output_is_the_two_way_cross_entropy() -> None:
    two, labels = torch.randn(50, 2), torch.randint(0, 2, (50,))
    z = two[:, 1] - two[:, 0]
    expected = functional.cross_entropy(two, labels)
    torch.testing.assert_close(functional.binary_cross_entropy_with_logits(z, labels.float()), expected)
    torch.testing.assert_close(z.sigmoid(), two.softmax(1)[:, 1])


def test_gradients_reach_the_backbone_and_not_the_labels() -> None:
    network = sharp_net()
    objective, view, classifier = setting("ssod:gamma=0.6", network)
    loss, _ = objective.loss(view, classifier.heads)
    own = functional.cross_entropy(network(X), Y)
    head, backbone = network.fc.weight, network.features[0].weight
    of_loss = torch.autograd.grad(loss, [head, backbone], retain_graph=True)
    of_own = torch.autograd.grad(own, [head, backbone])
    torch.testing.assert_close(of_loss[0], of_own[0])  # the labels carry no gradient
    assert (of_loss[1] - of_own[1]).abs().max() > 1e-4


def test_warm_up_is_cross_entropy_alone() -> None:
    network = sharp_net()
    objective, view, classifier = setting("ssod:gamma=0.6,start=2", network, epoch=1.9)
    own = functional.cross_entropy(network(X), Y)
    assert objective.loss(view, classifier.heads)[0].item() == pytest.approx(own.item())
    assert objective.loss(View(X, Y, view.network, 2.1), classifier.heads)[0].item() > own.item()


def test_labels_ignore_dropout_and_the_loss_does_not() -> None:
    torch.manual_seed(0)
    _, view, _ = setting("ssod", BatchNormNet())
    at = view.network.logits_at_positions
    torch.testing.assert_close(at(view.fmap), at(view.fmap))
    again = View(X, Y, view.network, 0.5)
    assert not torch.equal(view.logits, again.logits), "dropout is on in training"


def test_a_step_lowers_the_loss_and_its_gradient_is_right() -> None:
    network = sharp_net().double()
    objective, view, classifier = setting("ssod:gamma=0.6", network.float())
    weight = classifier.heads["ood"].weight

    def loss() -> torch.Tensor:
        return objective.loss(View(X, Y, view.network, 1), classifier.heads)[0]

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        before = loss().item()
        step = 1e-2 * gradient / gradient.norm()
        weight += step
        up = loss().item()
        weight -= 2 * step
        down = loss().item()
    assert down < before < up
    assert (up - down) / 2e-2 == pytest.approx(gradient.norm().item(), rel=1e-2)


LINEAR_NECK = [
    *("timm:resnet18", "timm:resnet34", "timm:resnet50", "timm:resnet101", "timm:resnet50d"),
    *("torchvision:densenet121", "torchvision:regnet_y_800mf", "timm:tf_efficientnet_lite0"),
]
OTHER_NECK = ["torchvision:mobilenet_v3_large", "timm:vit_tiny_patch16_224"]


def published(name: str) -> Classifier:
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        network = torchvision.models.get_model(model, num_classes=5)
    else:
        options = {"global_pool": "avg", "img_size": 64} if "vit" in model else {}
        network = timm.create_model(model, num_classes=5, **options)
    return Classifier(network.eval(), SMALL, name=name)


@pytest.mark.parametrize("name", LINEAR_NECK)
@torch.no_grad()
def test_mean_of_the_patch_logits_is_the_pooled_logits(name: str) -> None:
    classifier = published(name)
    split = classifier.split
    fmap = torch.randn(2, split.backbone(classifier.noise()).shape[1], 3, 3)
    pooled = classifier.head.linear(split.neck(split.pool(fmap)).flatten(1))
    patches = TrainingNetwork(classifier, maps=True).logits_at_positions(fmap)
    torch.testing.assert_close(patches.mean(1), pooled, rtol=1e-4, atol=1e-4)
    if "densenet" in name:
        assert split.backbone(classifier.noise()).min() == 0, "taken after its last ReLU"


@pytest.mark.parametrize("name", OTHER_NECK)
@torch.no_grad()
def test_of_another_neck_on_constant_maps(name: str) -> None:
    classifier = published(name)
    split = classifier.split
    fmap = torch.randn(2, split.backbone(classifier.noise()).shape[1], 1, 1).expand(-1, -1, 4, 4)
    pooled = classifier.head.linear(split.neck(split.pool(fmap)).flatten(1))
    patches = TrainingNetwork(classifier, maps=True).logits_at_positions(fmap)
    torch.testing.assert_close(patches, pooled[:, None].expand_as(patches), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*LINEAR_NECK, *OTHER_NECK, "timm:mobilenetv3_large_100"])
def test_every_backbone_of_the_paper_takes_a_step(name: str) -> None:
    classifier, objective = published(name), parse_objective("ssod:gamma=0.55")
    torch.manual_seed(0)
    classifier.heads.update(objective.heads(classifier))
    view = View(torch.randn(2, 3, 64, 64), torch.tensor([0, 3]), TrainingNetwork(classifier, maps=True), 0.0)
    loss, watched = objective.loss(view, classifier.heads)
    loss.backward()
    first = next(p for p in classifier.body.parameters() if p.requires_grad)
    assert loss.isfinite()
    assert first.grad.abs().max() > 0
    assert classifier.heads["ood"].weight.grad is not None
    assert 0 <= watched["id_share"] + watched["ood_share"] <= 1


def test_warnings() -> None:
    objective = parse_objective("ssod")
    assert objective.warning({"id_share": 0.2, "ood_share": 0.3}) is None
    assert "labelled ID; the OOD head learns from one kind" in objective.warning({"id_share": 0, "ood_share": 0.3})
    assert "ID or OOD; the OOD head learns nothing" in objective.warning({"id_share": 0, "ood_share": 0})
    assert parse_objective("ce").warning({}) is None


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:mobilenet_v3_large", "timm:resnet18"])
def test_training_mode_runs_the_whole_network(name: str) -> None:
    """The parts in training mode give what the network gives in training mode, and share its statistics."""
    classifier = published(name)
    x = torch.randn(4, 3, 64, 64)
    whole, parts = (TrainingNetwork(classifier, maps=maps) for maps in (False, True))
    with torch.no_grad():
        torch.manual_seed(0)
        a = View(x, torch.zeros(4), whole, 0).h
        torch.manual_seed(0)
        b = View(x, torch.zeros(4), parts, 0).h
    torch.testing.assert_close(a, b)
    norms = [m for m in parts.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.training for m in norms)
    assert all(int(m.num_batches_tracked) == 2 for m in norms)


def test_confidence_on_the_true_class() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 2.0]]])
    p = 1 / (1 + np.exp(-2))
    expected = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float32)
    torch.testing.assert_close(class_confidence(logits, torch.tensor([0, 1])), expected)


def test_pooled_head_is_the_mean_of_its_positions() -> None:
    head, fmap = SSODHead(7), torch.randn(3, 7, 4, 5)
    torch.testing.assert_close(head(fmap.mean((2, 3), keepdim=True)).flatten(), head(fmap).mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sod", "unknown objective 'sod'; did you mean 'ssod'"),
        ("ssod:gama=1", "no option 'gama'; did you mean 'gamma'"),
        ("ssod:gamma=0.5", "gamma=0.5 must be in \\(0.5, 1\\)"),
        ("ssod:gamma=1", "must be in"),
        ("ssod:gamma=95", "must be in"),
        ("ssod:alpha=0", "alpha=0 must be"),
        ("ssod:balance=average", "not one of the choices; known: dr, lw, lwb"),
        ("ce:smoothing=1", "smoothing=1"),
    ],
)
def test_bad_objectives_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_objective(spec)


def test_a_network_that_does_not_average_is_refused() -> None:
    network = GroupNet()
    network.pool = nn.AdaptiveMaxPool2d(1)
    with pytest.raises(InputError, match="does not average its feature map"):
        parse_objective("ssod").heads(classifier_of(network))


def test_label_smoothing_and_plain_cross_entropy() -> None:
    network = sharp_net()
    objective, view, classifier = setting("ce:smoothing=0.1", network)
    logp = network(X).log_softmax(1)
    target = functional.one_hot(Y, 3) * 0.9 + 0.1 / 3
    assert objective.loss(view, classifier.heads)[0].item() == pytest.approx(-(logp * target).sum(1).mean().item())
