from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nescio
from conftest import random_features, training
from nescio.core.artifact import read, write
from nescio.core.detector import Detector, fit_all
from nescio.core.detector_file import KIND
from nescio.core.errors import InputError, NotFitted
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.stage import Score


def test_files_that_are_not_detectors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    (tmp_path / "folder").mkdir()
    for name, told in {"gone": "no such file", "text": "cannot be read", "other": "is not a detector"}.items():
        with pytest.raises(InputError, match=told):
            Detector.load(tmp_path / name)


def test_files_that_do_not_fit_their_own_spec_are_refused(tmp_path: Path) -> None:
    f = random_features()
    path = tmp_path / "d"
    Detector("fm+mean(energy,knn)").fit(training(f)).save(path)
    file = read(path, KIND)
    tensors, other = file.tensors, file.tensors["head.weight"] + 1
    for meta, changed, told in (
        ({}, {**tensors, "stages.9.mask": torch.ones(1)}, r"are not those that detector .*stages\.9\.mask"),
        ({}, {k: v for k, v in tensors.items() if "mask" not in k}, r"stages\.0\.mask"),
        ({}, {**tensors, "head.weight": other}, "not the one that detector"),
        ({}, {k: v for k, v in tensors.items() if k != "head.bias"}, "damaged and cannot be read as a detector.*bias"),
        ({"width": 7}, tensors, "width 7 .*differs from that of its head"),
        ({"width": "wide"}, tensors, "width 'wide'"),
        ({"head": 3}, tensors, "not the one that"),
        ({"spec": None}, tensors, "expected a detector"),
        ({"spec": "nope"}, tensors, "unknown stage 'nope'"),
    ):
        write(path, KIND, file.meta | meta, changed)
        with pytest.raises(InputError, match=told):
            Detector.load(path)
    write(path, KIND, {}, tensors)
    with pytest.raises(InputError, match="damaged and cannot be read as a detector"):
        Detector.load(path)


def test_an_unfitted_detector_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFitted, match="not fitted"):
        Detector("fm+energy").save(tmp_path / "d")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", ["fmls", "react:q=0.9+energy", "fm+mean(msp,knn:k=3)", "vim", "maxlogit"])
def test_a_file_is_enough_to_score_arrays(tmp_path: Path, spec: str) -> None:
    f = random_features(200)
    h, head = f.h.numpy(), (f.head.weight.numpy(), f.head.bias.numpy())
    detector = Detector(spec).fit(h, np.arange(len(h)) % 5, head=head)
    detector.save(tmp_path / "d.nescio")
    again = nescio.load(tmp_path / "d.nescio")
    assert isinstance(again, Detector)
    np.testing.assert_array_equal(again(h), detector(h))
    assert (again.width, again.fitted_to, repr(again)) == (h.shape[1], detector.fitted_to, repr(detector))
    with pytest.raises(InputError, match=r"was fitted on features of|expected features"):
        again(h[:, 1:])


def test_a_detector_of_features_alone_needs_no_head_and_stores_none(tmp_path: Path) -> None:
    f = random_features(200)
    for head in (None, f.head):
        detector = Detector("mahalanobis").fit(f.h, torch.arange(len(f)) % 5, head=head)
        detector.save(tmp_path / "d.nescio")
        again = nescio.load(tmp_path / "d.nescio")
        assert torch.equal(again(f.h), detector(f.h))
        assert not any(name.startswith("head.") for name in read(tmp_path / "d.nescio", KIND).tensors)
        with pytest.raises(InputError, match="was fitted on features of length 12, but these have length 11"):
            again(f.h[:, 1:])


def test_a_detector_that_learns_nothing_is_saved_as_it_is(tmp_path: Path) -> None:
    logits = random_features().logits
    Detector("msp").save(tmp_path / "d.nescio")
    again = nescio.load(tmp_path / "d.nescio")
    assert again.fitted_to is None
    assert torch.equal(again(logits=logits), Detector("msp")(logits=logits))


class Unnamed(Score):
    """A score that no spec can name."""

    name = "unnamed"

    def forward(self, f: Features) -> torch.Tensor:
        """Score a batch."""
        return f.h.norm(dim=1)


@pytest.mark.parametrize("part", [Unnamed(), lambda f: f.h.norm(dim=1)], ids=["stage", "function"])
def test_code_without_a_name_is_not_saved(tmp_path: Path, part: object) -> None:
    with pytest.raises(InputError, match=r"cannot be saved: '.*write it as a class with one.*name='my-score'"):
        Detector(["fm", part]).save(tmp_path / "d")  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())


def test_equal_stages_are_fitted_once_and_shared() -> None:
    f = random_features()
    passes = 0

    def counted():
        nonlocal passes
        passes += 1
        return training(f).chunks()

    data = training(f)
    detectors = [Detector(s) for s in ("ls+energy", "fm+ls+msp", "react:q=0.9+ls+energy", "ls+maxlogit")]
    fit_all(detectors, FeatureSet.stream(counted, data.head))
    assert passes == 2  # the quantile takes two, and the prototypes come from the first
    assert detectors[0].stages[0] is detectors[1].stages[1] is detectors[3].stages[0]
    alone = Detector("fm+ls+msp").fit(training(f))
    assert torch.equal(alone(f), detectors[1](f))
