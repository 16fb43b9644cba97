from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import random_features, training
from nescio.core.detector import Detector, fit_all
from nescio.core.errors import InputError


def test_files_that_are_not_detectors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    (tmp_path / "folder").mkdir()
    for name, told in {"gone": "no detector file", "text": "cannot be read", "other": "not a detector file"}.items():
        with pytest.raises(InputError, match=told):
            Detector.load(tmp_path / name)


def test_files_that_do_not_fit_their_own_spec_are_refused(tmp_path: Path) -> None:
    f = random_features()
    path = tmp_path / "d"
    Detector("fm+mean(energy,knn)").fit(training(f)).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for changed, told in (
        ({**tensors, "stages.9.mask": torch.ones(1)}, r"are not what detector .*stages\.9\.mask"),
        ({k: v for k, v in tensors.items() if "mask" not in k}, r"stages\.0\.mask"),
    ):
        save_file(changed, path, metadata)
        with pytest.raises(InputError, match=told):
            Detector.load(path)
    save_file(tensors, path, {"format": metadata["format"]})
    with pytest.raises(InputError, match="does not say what detector"):
        Detector.load(path)


def test_an_unfitted_detector_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not fitted"):
        Detector("fm+energy").save(tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_equal_stages_are_fitted_once_and_shared() -> None:
    f = random_features()
    passes = 0

    def counted():
        nonlocal passes
        passes += 1
        return training(f)()

    data = training(f)
    detectors = [Detector(s) for s in ("ls+energy", "fm+ls+msp", "react:q=0.9+ls+energy", "ls+maxlogit")]
    fit_all(detectors, type(data)(data.head, counted))
    assert passes == 3  # one for the prototypes, two for the quantile
    assert detectors[0].stages[0] is detectors[1].stages[1] is detectors[3].stages[0]
    alone = Detector("fm+ls+msp").fit(training(f))
    assert torch.equal(alone(f), detectors[1](f))
