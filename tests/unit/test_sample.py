from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import TINY_TRANSFORM, tiny_net
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.data import open_source
from nescio.evaluation import sample as sampling
from nescio.evaluation.bench import bench
from nescio.evaluation.sample import FeatureSample, SetSample, sample_features
from nescio.models import Classifier
from nescio.run.bank import Bank
from nescio.run.session import Session


@pytest.fixture
def banks(classifier: Classifier, make_folder: Callable[..., Path], tmp_path: Path) -> dict[str, Bank]:
    folders = {
        "id": make_folder("id", per_class=6, classes=("a", "b", "c", "d")),
        "far": make_folder("far", per_class=20, seed=500),
    }
    options = {"cache": tmp_path / "cache", "workers": 0, "progress": False}
    return {name: Session(classifier, **options).bank(open_source(folder)) for name, folder in folders.items()}


def whole(bank: Bank) -> tuple[torch.Tensor, torch.Tensor]:
    chunks = list(bank.chunks())
    return torch.cat([f.h for f in chunks]), torch.cat([f.pred for f in chunks])


def test_a_bank_gives_the_images_that_are_asked_for(banks: dict[str, Bank]) -> None:
    h, pred = whole(banks["far"])
    at = np.array([7, 3, 30])
    taken = banks["far"].take(at)
    assert torch.equal(taken.h, h[at])
    assert torch.equal(taken.pred, pred[at])
    assert taken.labels is not None
    assert taken.labels.tolist() == banks["far"].labels[at].tolist()


def test_the_sample_is_of_the_same_images_every_time(banks: dict[str, Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PER_SET", 25)
    first, again = sample_features(banks, []), sample_features(banks, [])
    assert first.sets["id"].rows.tolist() == list(range(24))  # all of them
    rows = first.sets["far"].rows
    assert len(set(rows.tolist())) == 25
    assert rows.tolist() == sorted(rows.tolist()) == again.sets["far"].rows.tolist()
    h, pred = whole(banks["far"])
    np.testing.assert_allclose(first.sets["far"].h.astype(float), h.numpy()[rows], atol=2e-3)
    assert first.sets["far"].h.dtype == np.float16
    assert first.sets["far"].pred.tolist() == pred[rows].tolist()
    assert first.sets["far"].cosine is None
    assert first.sets["far"].ood is None


def test_cosines_and_activation_are_those_of_a_direct_computation(banks: dict[str, Bank]) -> None:
    h, pred = whole(banks["id"])
    labels = torch.from_numpy(banks["id"].labels)
    centres = torch.stack([h[labels == c].mean(0) for c in range(4)])
    detector = Detector("fm+ls+energy")
    from nescio.core.feature_set import FeatureSet

    detector.fit(FeatureSet.stream(banks["id"].chunks, banks["id"].head))
    sample = sample_features(banks, [Detector("msp"), detector])
    expected = torch.nn.functional.cosine_similarity(h, centres[pred])
    np.testing.assert_allclose(sample.sets["id"].cosine, expected, atol=1e-5)
    far, taken_for = whole(banks["far"])
    common = int(taken_for.bincount().argmax())
    a = sample.activation
    assert a is not None
    assert (a.label, a.labelled, a.n_id, a.n_ood) == (common, True, 6, int((taken_for == common).sum()))
    np.testing.assert_allclose(a.weights, banks["id"].head.weight[common])
    np.testing.assert_allclose(a.id_mean, h[labels == common].mean(0), rtol=1e-5)
    np.testing.assert_allclose(a.ood_mean, far[taken_for == common].mean(0), rtol=1e-5)


def test_a_sample_comes_back_from_its_file(banks: dict[str, Bank], tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    assert FeatureSample.load(path) is None
    sample = sample_features(banks, [])
    sample.save(path)
    loaded = FeatureSample.load(path)
    assert loaded is not None
    assert list(loaded.sets) == ["id", "far"]
    for name, one in sample.sets.items():
        for key, value in vars(one).items():
            np.testing.assert_array_equal(getattr(loaded.sets[name], key), value)
    assert vars(loaded.activation).keys() == vars(sample.activation).keys()
    np.testing.assert_array_equal(loaded.activation.ood_mean, sample.activation.ood_mean)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged and cannot be read as a sample of features"):
        FeatureSample.load(path)


def test_features_beyond_half_precision_stay_what_they_are(tmp_path: Path) -> None:
    large = sampling._compact(torch.tensor([[1e6, 1.0]]))
    assert large.dtype == np.float32
    FeatureSample({"id": SetSample(np.arange(1), large, np.zeros(1, dtype=np.int64))}, None).save(tmp_path / "f")
    loaded = FeatureSample.load(tmp_path / "f")
    assert loaded is not None
    assert loaded.activation is None
    assert loaded.sets["id"].h[0, 0] == 1e6


def test_the_ood_head_is_sampled_and_other_passes_are_not(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folders = {name: make_folder(name, per_class=3, seed=i * 1000) for i, name in enumerate(("id", "far"))}
    torch.manual_seed(0)
    classifier = Classifier(tiny_net(), TINY_TRANSFORM, name="tiny", heads={"ood": nn.Conv2d(6, 1, 1)})
    common = {"id": folders["id"], "ood": {"far": folders["far"]}}
    results = bench(
        Session(classifier, cache=tmp_path / "cache", workers=0, progress=False), detectors=["ssod", "msp"], **common
    )
    assert results.sample is not None
    z = results.sample.sets["far"].ood
    assert z.shape == (6, 64)
    p_id = 1 / (1 + np.exp(-z.astype(float).mean(1)))
    np.testing.assert_allclose(p_id, results.ood_sets[0].scores["ssod"], atol=1e-3)
    alone = bench(
        Session(classifier, cache=tmp_path / "other", workers=0, progress=False), detectors=["odin+msp"], **common
    )
    assert alone.sample is None  # the OOD images never went through the plain pass
