"""Search spaces, proxies, and the choice that they lead to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY_TRANSFORM, coloured, tiny_net
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.needs import Maps
from nescio.core.spec import search_space
from nescio.data import open_source
from nescio.data.source import Source
from nescio.evaluation import metrics, proxies
from nescio.evaluation.proxies import PROXIES, background_probe, proxy_features, proxy_source
from nescio.evaluation.select import recommend, tune
from nescio.models import Classifier
from nescio.run.session import Session


@pytest.mark.parametrize(
    ("spec", "first", "last", "count"),
    [
        ("fm:p=0.1..0.9+energy", "fm:p=0.1+energy", "fm:p=0.9+energy", 9),
        ("react:q=0.8..0.99/20+energy", "react:q=0.8+energy", "react:q=0.99+energy", 20),
        ("knn:k=10|50|200", "knn:k=10", "knn:k=200", 3),
        ("knn:k=5..9/5", "knn:k=5", "knn:k=9", 5),
        (
            "fm:p=0.1..0.9+react:q=0.8..0.995+ls+energy",
            "fm:p=0.1+react:q=0.8+ls+energy",
            "fm:p=0.9+react:q=0.995+ls+energy",
            81,
        ),
        ("mean(fm:p=0.2|0.4+energy,knn:k=5)", "mean(fm:p=0.2+energy,knn:k=5)", "mean(fm:p=0.4+energy,knn:k=5)", 2),
        ("energy", "energy", "energy", 1),
        ("odin:eps=1e-4..1e-3/2+msp", "odin:eps=0.0001+msp", "odin:eps=0.001+msp", 2),
    ],
)
def test_a_search_space_is_its_specs(spec: str, first: str, last: str, count: int) -> None:
    found = search_space(spec)
    assert (found[0], found[-1], len(found), len(set(found))) == (first, last, count, count)
    for s in found:
        Detector(s)


def test_spaces_that_cannot_be_searched_are_refused() -> None:
    with pytest.raises(InputError, match="cannot read the range"):
        search_space("fm:p=0.1..+energy")
    with pytest.raises(InputError, match="gives 160,000 detectors"):
        search_space("fm:p=0.1..0.9/400+react:q=0.1..0.9/400+energy")


@pytest.fixture
def val(tmp_path: Path) -> Source:
    return open_source(coloured(tmp_path, "val", per_class=70, classes=4, side=8))


def of(classifier: Classifier, source: Source) -> torch.Tensor:
    t = classifier.transform
    with torch.no_grad():
        return t.normalise(torch.stack([t.geometry(source_image(source, i)) for i in range(len(source))]))


def source_image(source: Source, i: int):
    from nescio.data.decode import decode

    return decode(source.read(i))


@pytest.mark.parametrize("proxy", [p for p in PROXIES if p != "background"])
def test_an_image_proxy_is_scored_as_images_are(classifier: Classifier, val: Source, proxy: str) -> None:
    choice = tune(Session(classifier, workers=0, progress=False), ["energy", "msp"], val=val, proxy=proxy)
    detector = Detector("energy").fit(FeatureSet(head=classifier.head))
    with torch.no_grad():
        ids, oods = (
            detector(classifier(of(classifier, s))).numpy() for s in (val, proxy_source(proxy, val, classifier))
        )
    found = next(c for c in choice.candidates if c.detector == "energy")
    assert found.auroc[proxy] == pytest.approx(metrics.auroc(ids, oods), abs=1e-3)
    assert choice.proxies == (proxy,)
    assert choice.candidates[0].auroc[proxy] == max(c.auroc[proxy] for c in choice.candidates)
    if choice.best == "energy":
        assert np.allclose(choice.scores[proxy][0], ids, atol=1e-3)


def test_the_background_probe_pools_as_many_sure_positions_as_unsure_ones() -> None:
    # two classes, confidence by position chosen by hand; the network behind the map is its mean
    head = Classifier(tiny_net(2), TINY_TRANSFORM).head
    width = head.weight.shape[1]
    direction = torch.linalg.lstsq(head.weight, torch.tensor([[4.0], [-4.0]])).solution[:, 0]
    strengths = torch.tensor(
        [[1.0, 0.9, -0.8, 0.0], [1.0, 1.0, 1.0, 1.0]]
    )  # times 8: sure, sure that it is not, unsure
    fmap = torch.einsum("bp,k->bkp", strengths, direction).view(2, width, 2, 2)
    offset = torch.linalg.lstsq(head.weight, -head.bias[:, None]).solution[:, 0]
    fmap = fmap + offset[None, :, None, None]
    (probe,) = background_probe(lambda vectors: vectors).values()
    background, foreground, count = probe(Maps([fmap], lambda m: m.mean(dim=(2, 3)), head))
    assert count[:, 0].tolist() == [1, 0]  # the second image has no background
    assert torch.allclose(background[0], fmap[0, :, 1, 0], atol=1e-5)  # the third position
    assert torch.allclose(foreground[0], fmap[0, :, 0, 0], atol=1e-5)  # the surest of two, not their mean


def test_background_and_foreground_come_from_different_images(
    classifier: Classifier, val: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = classifier.head.weight.shape[1]

    def probe(maps: Maps) -> list[torch.Tensor]:
        mean = maps.layers[-1].mean(dim=(2, 3))
        return [mean, mean, torch.ones(len(mean), 1)]

    bank = Session(classifier, workers=0, progress=False).bank(val, probes={"patches-0.95": probe})
    whole = torch.cat([f.h for f in bank.chunks()])
    right = torch.from_numpy(bank.pred == bank.labels)
    monkeypatch.setattr(proxies, "LEAST", 1)
    accept, refuse = (c.record().h for c in proxy_features("background", val, Session(classifier), bank))
    assert accept.shape[1] == width
    assert torch.allclose(accept, whole[::2][right[::2]], atol=1e-6)
    assert torch.allclose(refuse, whole[1::2][right[1::2]], atol=1e-6)


def test_too_few_images_with_a_background_say_so(classifier: Classifier, tmp_path: Path) -> None:
    val = open_source(coloured(tmp_path, "few", per_class=10, classes=4, side=8))
    with pytest.raises(InputError, match="another proxy"):
        tune(Session(classifier, workers=0, progress=False), "energy", val=val, proxy="background")
    choice = tune(Session(classifier, workers=0, progress=False), "energy", val=val, proxy="mixed")
    assert choice.proxies == tuple(p for p in PROXIES if p != "background")


def test_one_pass_serves_every_candidate(classifier: Classifier, val: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    read = Session.read
    monkeypatch.setattr(Session, "read", lambda *a: passes.append(a[-1]) or read(*a))
    choice = tune(
        Session(classifier, workers=0, progress=False),
        "fm:p=0.1..0.9+react:q=0.5..0.9+energy",
        val=val,
        train=val,
        proxy="tiles",
    )
    assert len(choice.candidates) == 81
    assert passes == ["validation", "train", "tiles"]  # the smaller set first: what is wrong with labels shows there
    best = choice.candidates[0].mean("auroc", choice.proxies)
    assert all(best >= c.mean("auroc", choice.proxies) - 1e-4 for c in choice.candidates)


def test_examples_take_the_place_of_proxies(classifier: Classifier, val: Source, tmp_path: Path) -> None:
    examples = open_source(coloured(tmp_path, "mine", per_class=5, classes=3, side=8, seed=9))
    choice = recommend(Session(classifier, workers=0, progress=False), val=val, train=val, examples=examples)
    assert choice.proxies == ("examples",)
    assert len(choice.candidates) > 20
    assert len(choice.scores["examples"][1]) == len(examples)
    assert repr(choice).startswith(f"Choice({choice.best} of {len(choice.candidates)} candidates; AUROC ")
    point = choice.operating_point()
    assert point.cost <= point.trivial_cost


def test_recommend_goes_on_without_a_detector_that_fails(
    classifier: Classifier, val: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three = open_source(coloured(tmp_path, "three", per_class=20, classes=3, side=8))
    classifier.untrained = True  # its random weights call one colour by the number of another
    with caplog.at_level("INFO", logger="nescio"):
        choice = recommend(Session(classifier, workers=0, progress=False), val=val, train=three, proxy="tiles")
    assert {"energy", "react+energy"} <= {c.detector for c in choice.candidates}
    assert "ls+energy" not in {c.detector for c in choice.candidates}
    assert "leaving out ls+energy: stage 'ls' needs training images of each of 4 classes" in caplog.text
    with pytest.raises(InputError, match="none of class 3"):
        tune(Session(classifier, workers=0, progress=False), "ls+energy", val=val, train=three, proxy="tiles")


def test_what_cannot_be_chosen_by_is_refused_before_any_image_is_read(
    val: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "read", lambda *_: pytest.fail("read images"))
    network = tiny_net()
    network.pool = torch.nn.AdaptiveMaxPool2d(1)
    by_maximum = Classifier(network, TINY_TRANSFORM)
    with pytest.raises(InputError, match="does not average its feature map"):
        tune(by_maximum, "energy", val=val, proxy="background")
    with pytest.raises(InputError, match="the validation images themselves"):
        tune(by_maximum, "energy", val=val, examples=val)


def test_recommend_without_training_images_leaves_out_what_is_fitted_on_them(
    classifier: Classifier, val: Source
) -> None:
    choice = recommend(Session(classifier, workers=0, progress=False), val=val, proxy="tiles")
    specs = {c.detector for c in choice.candidates}
    assert {"msp", "energy"} <= specs
    assert not specs & {"knn", "mahalanobis", "odin+msp", "ls+energy"}
    with pytest.raises(InputError, match=r"give train= \(--train\)"):
        tune(Session(classifier, workers=0, progress=False), "knn", val=val)
    with pytest.raises(InputError, match="needs its own pass"):
        tune(Session(classifier, workers=0, progress=False), "odin:eps=0.1+msp", val=val)
