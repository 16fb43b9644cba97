"""Verdicts in the fields of samples; FiftyOne itself needs a database, so its two classes are stood in for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import nescio
from nescio.integrations.fiftyone import add_verdicts
from nescio.models import Classifier


class Sample(dict[str, Any]):
    """Fields by name, and the image's path."""

    def __init__(self, filepath: Path) -> None:
        super().__init__()
        self.filepath = str(filepath)


def test_each_sample_gets_its_verdict(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", SimpleNamespace(Classification=lambda **fields: fields))
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (50 * i, 20, 255 - 50 * i)).save(path)
    deployed = nescio.fit(
        nescio.Session(classifier, progress=False), "energy", calibrate=[str(p) for p in paths], accept=0.5
    )
    samples = [Sample(path) for path in paths]
    assert add_verdicts(iter(samples), deployed, "verdict", batch_size=2) == 5
    for sample, verdict in zip(samples, deployed([str(p) for p in paths]), strict=True):
        assert sample["verdict"]["label"] == verdict.label
        assert sample["verdict"]["confidence"] == pytest.approx(verdict.probability)
        assert sample["verdict"]["score"] == pytest.approx(verdict.score)
        assert sample["verdict"]["accepted"] is verdict.accepted
        assert "p_id" not in sample["verdict"]
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(nescio.InputError, match="pip install fiftyone"):
        add_verdicts(samples, deployed)
