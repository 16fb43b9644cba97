"""What Python callers hand over by mistake, and what they are told to give instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import Compose, Resize, ToTensor

import nescio
from conftest import TINY_TRANSFORM, Pictures, picture, tiny_net
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.data.source import as_source
from nescio.methods import KNN, MSP, Energy
from nescio.models import Classifier
from nescio.models.coerce import as_classifier
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
def test_what_is_no_classifier_is_refused_with_the_way_to_one(call: Any) -> None:
    with pytest.raises(InputError, match=r"unknown model 'resnet18-cifr'; did you mean 'resnet18-cifar'\?"):
        call("resnet18-cifr")
    with pytest.raises(InputError, match=r"the size of its images is unknown.*transform of its test images"):
        call(tiny_net())
    with pytest.raises(InputError, match=r"expected a classifier, a network or a name, got int"):
        call(3)


def test_explain_takes_sessions_and_classifiers_with_a_name_or_alone(classifier: Classifier, tmp_path: Path) -> None:
    given = {"mine": classifier, "session": Session(classifier)}, Session(classifier), classifier
    found = [np.load(nescio.explain(one, Pictures(2), tmp_path / f"{i}.png")) for i, one in enumerate(given)]
    maps = [found[0]["mine/confidence"], found[0]["session/confidence"], *(f["tiny/confidence"] for f in found[1:])]
    assert maps[0].shape[0] == 2
    for other in maps[1:]:
        np.testing.assert_array_equal(other, maps[0])


@pytest.mark.parametrize(
    ("ood", "got"), [("far/", "'far/'"), (["far/"], "list"), (Pictures(3), "Pictures"), (None, "None")]
)
def test_ood_sets_without_names_are_refused_with_an_example(classifier: Classifier, ood: Any, got: str) -> None:
    with pytest.raises(InputError, match=rf"ood: expected sets of images by name, as ood=.'textures': 'FOLDER'.*{got}"):
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
    with pytest.raises(InputError, match=r"int is not an image or a set of images: give a path"):
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
        with pytest.raises(InputError, match="expected a detector: a spec string"):
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
        with pytest.raises(InputError, match=r"these results have no detector 'enrgy'; did you mean 'energy'\?"):
            call("enrgy", "far")
        with pytest.raises(InputError, match=r"these results have no OOD set 'near'; known: far|did you mean 'far'"):
            call("energy", "near")


def test_a_classifier_of_a_name_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"expected an nn\.Module to make a classifier of, got str; .*load_classifier\(NAME\)"
    ):
        Classifier("resnet18", TINY_TRANSFORM)


GREY = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
FEATURES = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)


class Stream(IterableDataset):
    """Batches that come one after the other."""

    def __iter__(self) -> Any:
        yield from ((torch.full((3, 8, 8), float(i)), i % 4) for i in range(6))


def grey_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


def test_what_is_empty_is_said_to_be(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no training features, and detector 'knn' is fitted on them"):
        Detector("knn").fit(FEATURES[:0])
    with pytest.raises(InputError, match="there are no images"):
        Session(classifier, cache=tmp_path).features([])
    with pytest.raises(InputError, match="there are no images: the data set is empty"):
        Session(tiny_net()).features(TensorDataset(torch.zeros(0, 3, 8, 8)))
    assert Detector("knn").fit(FEATURES)(FEATURES[:0]).shape == (0,)


def test_a_stream_of_normalised_images_is_read_in_its_order() -> None:
    features = Session(tiny_net()).features(Stream())
    assert features.labels.tolist() == [0, 1, 2, 3, 0, 1]
    whole = Session(tiny_net()).features(torch.stack([x for x, _ in Stream()]))
    torch.testing.assert_close(features.record().h, whole.record().h)


def test_a_device_that_is_not_there_is_refused(classifier: Classifier) -> None:
    with pytest.raises(InputError, match=r"device 'cuda:99' cannot be used"):
        Session(classifier, device="cuda:99").features(Pictures(2))


def test_a_stage_alone_says_how_to_make_a_detector_of_it() -> None:
    for name, call in {
        "KNN": lambda: KNN(k=5).fit(FEATURES),
        "Energy": lambda: Energy()(logits=FEATURES),
        "MSP": lambda: MSP().fit(FEATURES, np.zeros(40)),
    }.items():
        with pytest.raises(InputError, match=rf"make it a detector, nescio\.Detector\({name}\(…\)\)\.fit\(h\)"):
            call()


def test_the_row_of_a_label_that_is_none_is_named() -> None:
    labels = np.arange(40) % 4
    with pytest.raises(InputError, match=r"needs images with labels in 0…3, but row 7 has the label -1"):
        Detector("mahalanobis").fit(FEATURES, np.where(np.arange(40) == 7, -1, labels))


def test_arrays_that_cannot_be_written_to_are_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    fixed = FEATURES.copy()
    fixed.flags.writeable = False
    scores = Detector("knn:k=2").fit(fixed)(fixed)
    np.testing.assert_array_equal(scores, Detector("knn:k=2").fit(FEATURES)(FEATURES))
    assert not recwarn.list


def test_a_dict_within_an_output_is_refused() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def forward(self, x: torch.Tensor) -> Any:
            return {"a": {"logits": self.net(x)}, "b": self.net(x)}

    with pytest.raises(InputError, match=r"returns a dict as 'a': wrap it"):
        Classifier(Nested(), TINY_TRANSFORM, output="a")


def test_one_mean_means_one_channel_and_one_number_counts_for_all() -> None:
    one = nescio.Transform(crop=8, mean=(0.5,), std=(0.2,))
    assert (one.channels, one.mean, one.std) == (1, (0.5,), (0.2,))
    assert nescio.Transform(crop=8, mean=0.5, std=0.2) == nescio.Transform(crop=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(
        InputError, match=r"takes grey images, but the transform .* gives 3 channels: give a transform for grey"
    ):
        as_classifier(grey_net(), TINY_TRANSFORM)
    assert as_classifier(grey_net(), "crop=8,mean=0.5,std=0.2").transform == one


@pytest.mark.parametrize(
    "transform",
    [nescio.Transform(crop=8, mean=(0.0,), std=(1.0,)), Compose([Resize((8, 8)), ToTensor()])],
    ids=["Transform", "Compose"],
)
def test_grey_images_of_an_array_go_through_a_grey_network(transform: Any, tmp_path: Path) -> None:
    net = grey_net()
    session = nescio.Session(net, transform=transform, workers=0, cache=tmp_path)
    for given in (GREY, (torch.from_numpy(GREY), [0, 1, 2, 0, 1, 2]), [Image.fromarray(x) for x in GREY]):
        features = session.features(given)
        x = torch.from_numpy(GREY)[:, None] / 255
        torch.testing.assert_close(features.record().logits, net(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_detector_of_a_grey_network_is_kept_and_exported(tmp_path: Path) -> None:
    transform = nescio.Transform(crop=8, mean=(0.5,), std=(0.5,))
    session = nescio.Session(grey_net(), transform=transform, workers=0, cache=tmp_path)
    made = nescio.fit(session, "energy", calibrate=np.concatenate([GREY + np.uint8(i) for i in range(8)]))
    made.save(tmp_path / "grey.nescio", weights=False)
    read = nescio.load(tmp_path / "grey.nescio", model=grey_net())
    assert [v.score for v in read(GREY)] == [v.score for v in made(GREY)]
    nescio.export(read, tmp_path / "grey.onnx")
    runtime = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "grey.onnx")
    (scores,) = runtime.run(["score"], {"image": transform.normalise(torch.from_numpy(GREY)[:, None]).numpy()})
    np.testing.assert_allclose(scores, [v.score for v in made(GREY)], rtol=1e-5)
    with pytest.raises(InputError, match=r"export takes what nescio\.load\(FILE\).*got str"):
        nescio.export("grey.nescio", tmp_path / "grey.onnx")


@pytest.mark.parametrize("held", [tiny_net, lambda: Classifier(tiny_net(), TINY_TRANSFORM)], ids=["net", "classifier"])
def test_a_file_without_weights_takes_the_network_in_memory(held: Any, tmp_path: Path) -> None:
    session = nescio.Session(tiny_net(), transform=TINY_TRANSFORM, workers=0, cache=tmp_path)
    made = nescio.fit(session, "energy", calibrate=Pictures(60))
    made.save(tmp_path / "d.nescio", weights=False)
    for model in (held(), nescio.Session(held(), transform=None if isinstance(held(), Classifier) else TINY_TRANSFORM)):
        read = nescio.load(tmp_path / "d.nescio", model=model)
        assert [v.score for v in read(Pictures(3))] == [v.score for v in made(Pictures(3))]
    other = tiny_net()
    nn.init.zeros_(other.fc.weight)
    with pytest.raises(InputError, match="another model's weights"):
        nescio.load(tmp_path / "d.nescio", model=other)


def test_forms_of_images_that_people_hold_are_opened(tmp_path: Path) -> None:
    pictures, paths = [picture(i) for i in range(4)], [str(tmp_path / f"{i}.png") for i in range(4)]
    for image, path in zip(pictures, paths, strict=True):
        image.save(path)

    class Indexed:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"image": pictures[i], "label": i}

    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"image_path": paths, "target": range(4)})
    for given in ([{"image": p, "label": i} for i, p in enumerate(pictures)], Indexed(), frame):
        source = nescio.open_source(given)
        assert (len(source), source.labels.tolist()) == (4, [0, 1, 2, 3])
    assert len(nescio.open_source(frame["image_path"])) == len(nescio.open_source(pictures)) == 4


def test_results_take_a_detector_for_its_name_and_a_path_as_text(classifier: Classifier, tmp_path: Path) -> None:
    session = nescio.Session(classifier, cache=tmp_path, workers=0)
    results = nescio.bench(session, id=Pictures(8), ood={"far": Pictures(9)}, detectors=["energy"])
    assert results.row(Detector("energy"), "far") is results.row("energy", "far")
    results.save_table(str(tmp_path / "table.csv"))
    assert (tmp_path / "table.csv").read_text() == results.to_csv()
