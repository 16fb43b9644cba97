"""What Python callers hand over by mistake, and what they are told to give instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

import nescio
from conftest import TINY_TRANSFORM, Pictures, picture, tiny_net
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.data.source import as_source
from nescio.models import Classifier
from nescio.run.session import Session


class Images(Dataset):
    """Twelve pictures in memory, as most users have them."""

    classes = ("a", "b", "c", "d")

    def __init__(self, n: int = 12, start: int = 0) -> None:
        self.pictures, self.targets = [picture(start + i) for i in range(n)], [i % 4 for i in range(n)]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.pictures[i], self.targets[i]


CALLS = {
    "bench": lambda c: nescio.bench(c, id=Pictures(4), ood={"far": Pictures(5)}),
    "fit": lambda c: nescio.fit(c, "energy", calibrate=Pictures(4)),
    "tune": lambda c: nescio.tune(c, "energy", val=Pictures(4)),
    "recommend": lambda c: nescio.recommend(c, val=Pictures(4)),
    "extract": lambda c: nescio.Session(c).bank(Pictures(4)),
    "explain": lambda c: nescio.explain({"mine": c}, Pictures(4), "maps.png"),
    "explain alone": lambda c: nescio.explain(c, Pictures(4), "maps.png"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_network_is_refused(call: Any) -> None:
    with pytest.raises(InputError, match=r"expected a classifier, a network or a name, got int"):
        call(3)


def test_explain_wants_names_for_classifiers(classifier: Classifier) -> None:
    with pytest.raises(InputError, match=r"\{'mine': classifier\}"):
        nescio.explain(classifier, Pictures(2), "maps.png")


@pytest.mark.parametrize(
    ("ood", "got"), [("far/", "'far/'"), (["far/"], "list"), (Pictures(3), "Pictures"), (None, "None")]
)
def test_ood_sets_without_names_are_refused_with_an_example(classifier: Classifier, ood: Any, got: str) -> None:
    with pytest.raises(InputError, match=rf"ood takes sets of images by name, as ood=.'textures': 'FOLDER'.*{got}"):
        nescio.bench(classifier, id=Pictures(4), ood=ood)


def test_a_subset_in_every_role_gives_what_its_images_give(classifier: Classifier, tmp_path: Path) -> None:
    everything, far = Images(), Images(6, start=50)
    results = nescio.bench(
        nescio.Session(classifier, cache=tmp_path, workers=0),
        train=Subset(Images(start=100), range(12)),
        id=Subset(everything, [5, 0, 3, 6]),
        ood={"far": far, "again": Subset(far, np.arange(3))},
        detectors=["fmls"],
    )
    assert [(r.ood, r.n_id, r.n_ood) for r in results.rows] == [("far", 4, 6), ("again", 4, 3)]
    source = as_source(Subset(everything, [5, 0, 3, 6]))
    assert source.labels.tolist() == [1, 0, 3, 2]
    assert source.classes == list(everything.classes)
    bank = Session(classifier, cache=tmp_path, workers=0).bank(Subset(everything, [5, 0]))
    whole = Session(classifier, cache=tmp_path, workers=0).bank(everything)
    torch.testing.assert_close(next(bank.chunks()).h, next(whole.chunks()).h[[5, 0]], rtol=1e-5, atol=1e-6)
    choice = nescio.tune(
        nescio.Session(classifier, cache=tmp_path, workers=0), "energy", val=everything, examples=Subset(far, [0, 1])
    )
    assert choice.best == "energy"


def test_what_is_no_set_of_images_is_refused(classifier: Classifier) -> None:
    with pytest.raises(InputError, match=r"shuffles.*give its data set \(loader\.dataset\) or .* shuffle=False"):
        Session(classifier).bank(DataLoader(Images(), shuffle=True))
    with pytest.raises(InputError, match=r"int is no image and no set of images: give a path"):
        Session(classifier).bank(3)
    with pytest.raises(InputError, match=r"no such file: a\.png"):
        Session(classifier).bank(["a.png"])


@pytest.mark.parametrize("given", [7, [None], [type(Detector("msp").steps[0])]])
def test_what_is_no_detector_is_refused(classifier: Classifier, given: Any) -> None:
    for call in (
        lambda: nescio.bench(classifier, id=Pictures(4), ood={"far": Pictures(5)}, detectors=given),
        lambda: nescio.tune(classifier, given, val=Pictures(4)),
        lambda: nescio.fit(classifier, given, calibrate=Pictures(4)),
    ):
        with pytest.raises(InputError, match="expected a detector as a spec string"):
            call()


def test_a_row_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    classifier = Classifier(tiny_net(), TINY_TRANSFORM)
    results = nescio.bench(
        nescio.Session(classifier, cache=tmp_path, workers=0),
        id=Pictures(8),
        ood={"far": Pictures(9)},
        detectors=["energy", "msp"],
    )
    assert results.row("energy", "far").n_ood == 9
    for call in (results.row, results.judged, results.id_scores):
        with pytest.raises(InputError, match=r"no detector 'enrgy' in these results; did you mean 'energy'\?"):
            call("enrgy", "far")
        with pytest.raises(InputError, match=r"no OOD set 'near' in these results; known: far|did you mean 'far'"):
            call("energy", "near")


def test_a_classifier_of_a_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"made of an nn\.Module and a nescio\.Transform, got str and Transform"):
        Classifier("resnet18", TINY_TRANSFORM)
