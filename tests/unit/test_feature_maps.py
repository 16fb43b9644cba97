"""Whatever reads feature maps, on the networks that are copied most: each writes its global pooling in another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nescio
from conftest import coloured
from copied_networks import NETWORKS, DenseNet, Mean, ResNet
from nescio.core.errors import InputError
from nescio.data import Transform, open_source
from nescio.data.source import Source
from nescio.evaluation import proxies, select
from nescio.evaluation.select import recommend, tune
from nescio.explanation.maps import patch_maps
from nescio.methods.objective import TrainingNetwork, View, parse_objective
from nescio.models import Classifier
from nescio.models.split import Split
from nescio.run.session import Session

T = Transform(crop=16)
QUICK: dict[str, Any] = {"workers": 0, "progress": False}
every_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.__name__)


@torch.no_grad()
def made(network: type[nn.Module]) -> tuple[nn.Module, Classifier]:
    """A network whose positions are sure of one class or the other."""
    torch.manual_seed(0)
    model = network().eval()
    head = head_of(model)
    mean = model.features(torch.randn(4, 3, 16, 16)).mean((0, 2, 3))
    head.weight.mul_(200)
    head.bias.copy_(-head.weight @ mean)
    return model, Classifier(model, T, name=network.__name__)


def head_of(model: nn.Module) -> nn.Linear:
    (head,) = (m for m in model.modules() if isinstance(m, nn.Linear))
    return head


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    root = tmp_path_factory.mktemp("sets")
    return {n: open_source(coloured(root, n, 8, classes=4, seed=s)) for s, n in enumerate(("train", "val"))} | {
        "unlabelled": open_source(f"{root}/val/*/*.png")
    }


@every_network
@torch.no_grad()
def test_each_position_is_a_small_image_of_its_own(network: type[nn.Module]) -> None:
    model, classifier = made(network)
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)  # not as many images as it was traced with
    fmap = model.features(T.normalise(pixels))
    expected = head_of(model)(fmap.flatten(2).mT).softmax(dim=2)
    maps = patch_maps(classifier, pixels, torch.tensor([3, 0, 1]))
    for i, label in enumerate((3, 0, 1)):
        torch.testing.assert_close(maps.confidence[i].flatten(), expected[i, :, label], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps.probability, model(T.normalise(pixels)).softmax(1), rtol=1e-4, atol=1e-5)


@every_network
@torch.no_grad()
def test_probes_see_a_map_of_each_resolution(network: type[nn.Module]) -> None:
    model, classifier = made(network)
    x = T.normalise(torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8))
    detector = nescio.Detector("mean(rankfeat+energy,gram,multimahalanobis)")
    aux = classifier.optimised().probed(detector.needs.probes)(x).aux
    fmap = model.features(x)
    widths = [8, 8, 12] if network is DenseNet else [8, 12, 16]
    assert [aux[f"mean.{i}"].shape[1] for i in range(3)] == widths
    assert [aux[f"gram10.{i}"].shape[1] for i in range(3)] == [10 * w for w in widths]
    torch.testing.assert_close(aux["mean.2"], fmap.mean((2, 3)), rtol=1e-3, atol=1e-4)
    u, s, vh = torch.linalg.svd(fmap.flatten(2), full_matrices=False)
    deflated = fmap.flatten(2) - s[:, :1, None] * u[:, :, :1] @ vh[:, :1]
    torch.testing.assert_close(aux["rankfeat.0"], deflated.mean(2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", NETWORKS[:4], ids=lambda n: n.__name__)
def test_recommend_judges_by_the_background_and_tune_what_reads_maps(
    network: type[nn.Module], images: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, classifier = made(network)
    monkeypatch.setattr(proxies, "LEAST", 1)
    monkeypatch.setattr(select, "all_specs", lambda: ["energy", "msp", "gram"])
    choice = recommend(Session(classifier, **QUICK), val=images["unlabelled"], train=images["train"])
    assert "background" in choice.proxies
    assert {c.detector for c in choice.candidates} == {"energy", "msp"}  # the background is no map that gram could read
    specs = ["rankfeat+energy", "gram", "multimahalanobis"]
    tuned = tune(Session(classifier, **QUICK), specs, val=images["val"], train=images["train"], proxy="tiles")
    assert {c.detector for c in tuned.candidates} == set(specs)


@every_network
def test_ssod_reads_and_trains_the_positions(network: type[nn.Module]) -> None:
    model, classifier = made(network)
    objective = parse_objective("ssod:gamma=0.6")
    heads = nn.ModuleDict(objective.heads(classifier))
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    view = View(x, y, TrainingNetwork(classifier, maps=True), 1)
    objective.loss(view, heads)[0].backward()
    for p in (*model.parameters(), *heads.parameters()):
        assert p.grad.abs().sum() > 0
    with torch.no_grad():
        positions = head_of(model)(view.fmap.flatten(2).mT).softmax(dim=2)
        own = positions[torch.arange(6), :, y]
        sure, sure_not = objective.label(view)
        assert torch.equal(sure, own >= 0.6)
        assert torch.equal(sure_not, own < 0.4)
        assert sure.any()
        assert sure_not.any()
        torch.testing.assert_close(view.logits, head_of(model)(view.fmap.mean((2, 3))), rtol=1e-4, atol=1e-3)


def test_a_proxy_that_fails_is_a_line_whatever_it_was(
    images: dict[str, Source], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, classifier = made(ResNet)

    def broken(*_: object) -> None:
        raise RuntimeError("Given input size: (342x1x1).\nmore of it")

    monkeypatch.setattr(Split, "behind_pool", broken)
    monkeypatch.setattr(select, "all_specs", lambda: ["energy", "gram"])
    caplog.set_level("INFO", logger="nescio")
    choice = recommend(Session(classifier, **QUICK), val=images["val"], train=images["train"])
    assert "background" not in choice.proxies
    assert len(choice.proxies) == 5
    assert {c.detector for c in choice.candidates} == {"energy", "gram"}  # which nothing keeps from its maps now
    assert "leaving out the proxy background: RuntimeError: Given input size: (342x1x1)." in caplog.messages
    with pytest.raises(InputError, match="the proxy 'background' cannot be used: RuntimeError"):
        recommend(Session(classifier, **QUICK), val=images["val"], proxy="background")


def test_a_proxy_that_fails_on_its_images_is_a_line_too(
    images: dict[str, Source], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, classifier = made(Mean)

    def broken(proxy: str, *_: object, **__: object) -> None:
        if proxy != "tiles":
            raise ZeroDivisionError
        return proxy_features(proxy, *_, **__)

    proxy_features = select.proxy_features
    monkeypatch.setattr(select, "proxy_features", broken)
    caplog.set_level("INFO", logger="nescio")
    assert tune(Session(classifier, **QUICK), "energy", val=images["val"]).proxies == ("tiles",)
    assert sum("ZeroDivisionError" in line for line in caplog.messages) == 5
    monkeypatch.setattr(select, "proxy_features", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match="no proxy works"):
        tune(Session(classifier, **QUICK), "energy", val=images["val"])
