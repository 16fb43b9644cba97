"""Probes and passes that change the network, on small networks, each beside the same thing written out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_extraction import Pictures
from torch import nn

from conftest import TINY_TRANSFORM, tiny_net, training
from nescio.core.detector import Detector, score_all
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.data import Transform
from nescio.methods.score.gram import Gram
from nescio.models import Classifier
from nescio.models.zoo.cifar import densenet_bc_100_12, resnet18_cifar
from nescio.run.passes import check_model, pass_of, training_pass
from nescio.run.session import Session

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def maps_by_hand(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(net.norm(net.conv(x)))


def unlabelled_fit(spec: str, classifier: Classifier) -> Detector:
    return Detector(spec).fit(FeatureSet(head=classifier.head))


@torch.no_grad()
def run(detector: Detector, classifier: Classifier, x: torch.Tensor) -> Features:
    network_pass = pass_of(detector)
    return network_pass.run(classifier.with_body(network_pass.prepare).optimised().probed(detector.needs.probes), x)


def test_rankfeat_removes_the_largest_singular_value(classifier: Classifier) -> None:
    net, detector = tiny_net(), unlabelled_fit("rankfeat+energy", classifier)
    fmap = maps_by_hand(net, X).flatten(2)
    u, s, v = torch.linalg.svd(fmap, full_matrices=False)
    deflated = fmap - s[:, :1, None] * u[:, :, :1] @ v[:, :1]
    f = run(detector, classifier, X)
    torch.testing.assert_close(f.probed("rankfeat")[0], deflated.mean(2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detector(f), net.fc(deflated.mean(2)).double().logsumexp(1), rtol=1e-4, atol=1e-5)
    wide = torch.randn(2, 3, 8, 8)  # more channels than positions goes the other way round
    assert run(detector, classifier, wide).h.shape == (2, 6)


def test_gram_and_layer_means_of_a_map(classifier: Classifier) -> None:
    fmap = maps_by_hand(tiny_net(), X)
    probes = {**Gram(orders=3).needs.probes, **Detector("multimahalanobis").needs.probes}
    f = classifier.optimised().probed(probes)(X)
    torch.testing.assert_close(f.probed("mean")[0], fmap.mean((2, 3)), rtol=1e-4, atol=1e-5)
    flat = fmap.flatten(2)
    expected = [(flat**p @ (flat**p).mT).sum(2) ** (1 / p) for p in (1, 2, 3)]
    torch.testing.assert_close(f.probed("gram3")[0], torch.cat(expected, 1), rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="lack the probe 'rankfeat'"):
        f.probed("rankfeat")


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        (densenet_bc_100_12, [(108, 32), (150, 16), (342, 8)]),
        (resnet18_cifar, [(64, 32), (128, 16), (256, 8), (512, 4)]),
    ],
)
def test_taps_are_the_outputs_of_the_stages(network, shapes: list[tuple[int, int]]) -> None:
    classifier = Classifier(network().eval(), Transform(crop=32))
    maps = classifier.taps.maps(torch.randn(1, 3, 32, 32))
    assert [(m.shape[1], m.shape[2]) for m in maps] == shapes


def test_a_branch_inside_a_block_is_no_tap() -> None:
    """As in a bottleneck block whose first convolution still works at the resolution before."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 9, 1)
            self.down, self.skip = nn.Conv2d(9, 5, 3, 2, 1), nn.Conv2d(4, 5, 1, 2)
            self.fc = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.fc((self.down(self.inner(x)) + self.skip(x)).mean((2, 3)))

    maps = Classifier(Branching().eval(), TINY_TRANSFORM).taps.maps(X)
    assert [m.shape[1] for m in maps] == [4, 5]


@pytest.mark.parametrize("last", [0, 1])
def test_bats_truncates_batch_norms(classifier: Classifier, last: int) -> None:
    net, lam = tiny_net(), 0.6
    spec = f"bats:lam={lam},last={last}+energy"
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    gamma, beta = (t.detach().view(1, -1, 1, 1) for t in (net.norm.weight, net.norm.bias))
    z = torch.minimum(torch.maximum(net.norm(net.conv(X)), beta - lam * gamma.abs()), beta + lam * gamma.abs())
    f = run(unlabelled_fit(spec, classifier), classifier, X)
    torch.testing.assert_close(f.h, torch.relu(z).mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(f.h, classifier(X).h)
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    assert training_pass(Detector(spec)).key == pass_of(Detector(f"{spec[:-6]}msp")).key


def test_bats_keeps_what_timm_norms_do_after() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    classifier = Classifier(model, Transform(crop=64))
    x = torch.randn(2, 3, 64, 64)
    far = run(unlabelled_fit("bats:lam=1e6+energy", classifier), classifier, x)
    torch.testing.assert_close(far.h, classifier(x).h, rtol=1e-3, atol=1e-4)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.last = nn.Conv2d(3, 6, 3), nn.Dropout2d(0.3), nn.Dropout(0.4)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(self.drop(self.conv(x)).relu().mean((2, 3))))


def test_mcdropout_averages_networks_thinned_alike_for_every_image() -> None:
    torch.manual_seed(0)
    net = WithDropout().eval()
    classifier = Classifier(net, TINY_TRANSFORM)
    detector = unlabelled_fit("mcdropout:n=4+msp", classifier)
    scores = detector(run(detector, classifier, X))
    total = 0
    for s in range(4):
        torch.manual_seed(s)
        maps = torch.rand(6, 1, 1) >= 0.3
        z = (net.conv(X) * maps / 0.7).relu().mean((2, 3))
        total = total + net.fc(z * (torch.rand(6) >= 0.4) / 0.6).softmax(1) / 4
    torch.testing.assert_close(scores, total.amax(1).double(), rtol=1e-4, atol=1e-6)
    alone = torch.cat([detector(run(detector, classifier, X[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(alone, scores[:3], rtol=1e-5, atol=1e-7)
    state = torch.random.get_rng_state()
    run(detector, classifier, X)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_mcdropout_thins_the_network_under_probes_too() -> None:
    torch.manual_seed(0)
    classifier = Classifier(WithDropout().eval(), TINY_TRANSFORM)
    detector = unlabelled_fit("mcdropout:n=4+msp", classifier)
    network_pass = pass_of(detector)
    network = classifier.with_body(network_pass.prepare).optimised().probed(Detector("multimahalanobis").needs.probes)
    with torch.no_grad():
        f = network_pass.run(network, X)
        torch.testing.assert_close(detector(f), detector(run(detector, classifier, X)), rtol=1e-5, atol=1e-7)
        total = 0
        for s in range(4):
            torch.manual_seed(s)
            total = total + network(X).probed("mean")[0] / 4
    torch.testing.assert_close(f.probed("mean")[0], total, rtol=1e-5, atol=1e-6)


def test_operations_in_place_keep_their_effect_under_probes() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 7, 3, stride=2), nn.ReLU(inplace=True)
            self.fc = nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            self.act(x)
            return self.fc(self.b(x).mean((2, 3)))

    torch.manual_seed(0)
    classifier = Classifier(InPlace().eval(), TINY_TRANSFORM)
    with torch.no_grad():
        f = classifier.probed(Detector("multimahalanobis").needs.probes)(X)
        torch.testing.assert_close(f.h, classifier(X).h)


@pytest.mark.parametrize("score", ["gram:orders=3", "rankfeat+energy"])
def test_perturb_has_a_gradient_where_channels_are_dead(classifier: Classifier, score: str) -> None:
    with torch.no_grad():
        classifier.body.norm.weight[:3], classifier.body.norm.bias[:3] = 0, 0  # three channels are 0 everywhere
        detector = Detector(f"perturb:eps=0.05+{score}")
        network = classifier.probed(detector.needs.probes)
        images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        detector.fit(FeatureSet.stream(lambda: iter([network(images)]), classifier.head))
        moved = pass_of(detector).run(network, X * 3)
        assert moved.h.isfinite().all()
        assert not torch.allclose(moved.h, network(X * 3).h)


def test_an_image_that_is_not_finite_does_not_stop_a_probe(classifier: Classifier) -> None:
    x = X.clone()
    x[2, 0, 0, 0] = torch.nan
    with torch.no_grad():
        f = classifier.probed(Detector("rankfeat+energy").needs.probes)(x)
    assert f.probed("rankfeat")[0].isfinite().all(dim=1).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4)]
)
def test_bats_leaves_norms_alone_that_have_no_distribution(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match="no batch norms"):
        check_model(Detector("bats+msp"), Classifier(net, TINY_TRANSFORM))


def test_mcdropout_before_the_head_where_the_network_has_none(classifier: Classifier) -> None:
    detector = unlabelled_fit("mcdropout:n=500,p=0.5+entropy", classifier)
    f = run(detector, classifier, X)
    torch.testing.assert_close(f.h, classifier(X).h, rtol=0.2, atol=0.05)
    assert (detector(f) < unlabelled_fit("entropy", classifier)(classifier(X)) + 1e-3).all()


@pytest.mark.parametrize(
    ("spec", "told"),
    [("mcdropout+msp", "no dropout.*mcdropout:p=0.5"), ("bats+msp", "no batch norms")],
)
def test_a_network_without_the_layers_is_refused_by_name(spec: str, told: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match=told):
        check_model(Detector(spec), Classifier(net, TINY_TRANSFORM))


def test_a_network_without_feature_maps_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    classifier = Classifier(net, TINY_TRANSFORM, name="mlp")
    with pytest.raises(InputError, match="mlp has no global pooling"):
        check_model(Detector("gram"), classifier)
    check_model(Detector("energy"), classifier)


def test_perturb_follows_the_gradient_of_the_whole_score(classifier: Classifier) -> None:
    with torch.no_grad():
        raw = classifier(torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(4)))
    data = training(Features(raw.h, raw.head, raw.pred, torch.arange(40) % 4))
    detector = Detector("perturb:eps=0.05+mahalanobis").fit(data)
    x = X.clone().requires_grad_()
    plain = Detector("mahalanobis").fit(data)
    plain(classifier(x)).sum().backward()
    moved = (X + 0.05 * x.grad.sign()).detach()
    network_pass = pass_of(detector)
    f = network_pass.run(classifier, X)
    torch.testing.assert_close(detector(f), plain(classifier(moved)), rtol=1e-5, atol=1e-6)
    assert detector(f).mean() > plain(classifier(X)).mean()
    assert network_pass.key != pass_of(Detector("perturb:eps=0.05+energy").fit(data)).key
    assert not detector.input_stage.fixed


def test_perturb_refuses_a_score_without_gradient(classifier: Classifier) -> None:
    detector = Detector("perturb+energy").fit(FeatureSet(head=classifier.head))
    frozen = torch.no_grad()(lambda f: f.logits[:, 0].double())
    detector.stages[-1].forward = frozen
    with pytest.raises(InputError, match="no gradient"):
        pass_of(detector).run(classifier, X)


INPUT_STAGES = ["bats+energy", "odin:T=1+msp", "perturb:eps=0.05+msp", "perturbid+msp", "mcdropout:p=0.5,n=3+msp"]


@pytest.mark.parametrize("spec", INPUT_STAGES)
def test_features_of_the_plain_pass_are_refused_by_a_detector_with_its_own(classifier: Classifier, spec: str) -> None:
    """They scored as if the input stage was not there."""
    detector = unlabelled_fit(spec, classifier)
    with torch.no_grad():
        plain = classifier(X)
        if detector.input_stage.needs.images:
            detector.input_stage.choose(classifier, detector, [X])
    with pytest.raises(InputError, match=r"reads features of the pass that '.*' makes.*nescio\.bench, nescio\.fit"):
        detector(plain)
    with pytest.raises(InputError, match="reads features of the pass that"):
        score_all([detector], [plain])
    own = run(detector, classifier, X)
    assert detector(own).isfinite().all()
    for changed in (own.rows(torch.tensor([2, 1])), own.rows(slice(3)).with_h(own.h[:3])):
        assert torch.equal(detector(changed.raw), detector(own)[[2, 1] if len(changed) == 2 else slice(3)])
    with pytest.raises(InputError, match="runs the unchanged network"):
        unlabelled_fit("energy", classifier)(own)


def test_a_fixed_pass_is_checked_when_its_detector_is_fitted(classifier: Classifier) -> None:
    detector = Detector("bats:lam=0.5+react:q=0.9+knn:k=2")
    with torch.no_grad():
        plain = classifier(X)
    with pytest.raises(InputError, match=r"training features do not come from the pass that.*'bats:lam=0\.5\+react"):
        detector.fit(training(plain))
    detector.fit(training(run(detector, classifier, X)))
    other = Detector("bats:lam=0.6+react:q=0.9+knn:k=2")
    with pytest.raises(InputError, match=r"reads features of the pass that 'bats:lam=0\.5' makes"):
        detector(run(other, classifier, X))
    with pytest.raises(InputError, match="do not come from the pass"):
        Detector("perturb+knn:k=2").fit(training(run(detector, classifier, X)))


def test_a_bank_says_which_pass_its_features_are_of(classifier: Classifier, tmp_path: Path) -> None:
    detector = unlabelled_fit("bats:lam=0.5+energy", classifier)
    bank = Session(classifier, cache=tmp_path, workers=0).bank(Pictures(6), network_pass=pass_of(detector))
    f = next(bank.chunks())
    assert torch.equal(detector(bank.take(np.array([4, 1]))), detector(f)[[4, 1]])
    with pytest.raises(InputError, match="these come from another"):
        detector(next(Session(classifier, cache=tmp_path, workers=0).bank(Pictures(6)).chunks()))


def test_a_network_in_half_precision_gives_features_in_float32(classifier: Classifier) -> None:
    half = Classifier(tiny_net(), TINY_TRANSFORM)
    half.body.to(torch.bfloat16)
    half.layer.to(torch.bfloat16)
    with torch.no_grad():
        f = half(X.to(torch.bfloat16))
        assert (f.h.dtype, f.logits.dtype) == (torch.float32, torch.float32)
        torch.testing.assert_close(f.logits, classifier(X).logits, rtol=0.05, atol=0.05)


def test_a_bank_with_probes_serves_those_who_want_fewer(classifier: Classifier, tmp_path: Path) -> None:
    def extracted(spec: str):
        return Session(classifier, cache=tmp_path, workers=0).bank(Pictures(20), probes=Detector(spec).needs.probes)

    both = extracted("mean(gram:orders=2,multimahalanobis)")
    assert {len(b.path.name) for b in (both, extracted("gram:orders=2"), extracted("energy"))} == {len(both.path.name)}
    assert extracted("gram:orders=2").path == both.path == extracted("energy").path
    more = extracted("rankfeat+energy")
    assert more.path != both.path
    f, g = next(both.chunks()), next(more.chunks())
    assert set(f.aux) == {"gram2.0", "mean.0"}
    assert set(g.aux) == {"rankfeat.0"}
    torch.testing.assert_close(f.h, g.h, rtol=1e-5, atol=1e-6)
    assert both.path.joinpath("gram2.0.npy").is_file()


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:mobilenet_v3_small"])
def test_truncated_batch_norms_under_probes(name: str) -> None:
    """The features are those of the pass without probes."""
    from nescio.models.load import new_network

    made = new_network(name, 5, size=64)
    classifier = Classifier(made.network, made.transform)
    x = torch.randn(2, 3, 64, 64)
    plain = run(unlabelled_fit("bats+energy", classifier), classifier, x)
    network_pass = pass_of(unlabelled_fit("bats+energy", classifier))
    body = classifier.with_body(network_pass.prepare).optimised()
    with torch.no_grad():
        probed = network_pass.run(body.probed(Gram(orders=2).needs.probes), x)
    torch.testing.assert_close(probed.h, plain.h, rtol=1e-4, atol=1e-5)
    assert len(probed.aux) > 0
