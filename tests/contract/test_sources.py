"""What holds of every form that images come in: the same images, labels and names, whatever holds them."""

from __future__ import annotations

import csv
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from conftest import picture
from nescio.core.errors import InputError
from nescio.data import Source, as_source, open_source, register
from nescio.data.coerce import pictures
from nescio.data.decode import decode
from nescio.data.formats.parquet import write_parquet
from nescio.data.formats.torch import dataset_of
from nescio.data.registry import IN_MEMORY, SOURCES
from nescio.models import Classifier
from nescio.run.batches import loaded, looks_normalised
from nescio.run.session import Session

N = 6
LABELS = [0, 0, 0, 1, 1, 1]
NAMES = ["a", "b"]


@dataclass
class Held:
    """The same six images, as files and in memory."""

    folder: Path
    other: Path

    @property
    def paths(self) -> list[str]:
        return [str(self.folder / c / f"{i}.png") for c in NAMES for i in range(3)]

    @property
    def images(self) -> list[Image.Image]:
        return [Image.open(path).convert("RGB") for path in self.paths]

    @property
    def arrays(self) -> list[np.ndarray]:
        return [np.asarray(image) for image in self.images]

    @property
    def batch(self) -> torch.Tensor:
        return torch.from_numpy(np.stack(self.arrays)).permute(0, 3, 1, 2)

    def csv(self, *columns: str, rows: list[tuple[Any, ...]]) -> Path:
        with (self.other / "set.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        return self.other / "set.csv"

    def linked(self) -> Path:
        (self.other / "linked").mkdir(exist_ok=True)
        for name in NAMES:
            (self.other / "linked" / name).unlink(missing_ok=True)
            (self.other / "linked" / name).symlink_to(self.folder / name)
        return self.other / "linked"

    def parquet(self, labels: Any, classes: Any) -> Path:
        write_parquet(self.other / "set.parquet", self.images, labels, classes)
        return self.other / "set.parquet"


@pytest.fixture
def held(make_folder: Callable[..., Path], tmp_path: Path) -> Held:
    other = tmp_path / "other"
    other.mkdir()
    return Held(make_folder("set"), other)


class Items(Dataset):
    """A data set of what it is given."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def hugging_face(held: Held, kind: str | None = None, *, labelled: bool = True) -> datasets.Dataset:
    features: dict[str, Any] = {"image": datasets.Image()} | (
        {"label": datasets.ClassLabel(names=NAMES)} if labelled else {}
    )
    rows = {"image": held.paths} | ({"label": LABELS} if labelled else {})
    return datasets.Dataset.from_dict(rows, datasets.Features(features)).with_format(kind)


def tensors(rows: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values": [v2.functional.pil_to_tensor(image.convert("RGB")) for image in rows["image"]]}


def preprocessed(held: Held) -> datasets.Dataset:
    """As for a trainer: a function makes tensors of each row."""
    return hugging_face(held, labelled=False).with_transform(tensors)


def shards(held: Held, *, labelled: bool = True) -> str:
    """Two shards as WebDataset writes them."""
    for number, rows in enumerate((range(4), range(4, N))):
        with webdataset.TarWriter(str(held.other / f"s-{number:03}.tar")) as writer:
            for i in rows:
                label = {"cls": LABELS[i]} if labelled else {}
                sample = {"__key__": f"{i:06}", "json": {"caption": "a"}, "png": Path(held.paths[i]).read_bytes()}
                writer.write(sample | label)
    return f"webdataset:{held.other}/s-{{000..001}}.tar"


def pairs(images: Any, labels: list[Any] = LABELS) -> list[tuple[Any, Any]]:
    return list(zip(images, labels, strict=True))


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


def named(held: Held) -> list[tuple[str, str]]:
    return [(f"../set/{c}/{i}.png", c) for c in NAMES for i in range(3)]


Form = Callable[[Held], Any]
WITH_NAMES: dict[str, Form] = {
    "a folder": lambda h: h.folder,
    "a folder as text": lambda h: f"{h.folder}[0:6]",
    "a URL": lambda h: f"file://{h.folder}",
    "a zip file": lambda h: shutil.make_archive(str(h.other / "s"), "zip", h.folder),
    "a tar file": lambda h: shutil.make_archive(str(h.other / "s"), "tar", h.folder),
    "a tar.gz file": lambda h: shutil.make_archive(str(h.other / "s"), "gztar", h.folder),
    "a tgz file": lambda h: shutil.move(WITH_NAMES["a tar.gz file"](h), h.other / "s.tgz"),
    "links to a folder": lambda h: f"links:{h.linked()}",
    "a parquet file": lambda h: h.parquet(np.array(LABELS), NAMES),
    "a CSV file": lambda h: h.csv("path", "class", rows=named(h)),
    "a DataFrame": lambda h: frame(file=h.paths, label=list("aaabbb")),
    "a Polars frame": lambda h: pl.DataFrame({"file": h.paths, "label": list("aaabbb")}),
    "an Arrow table of paths": lambda h: pa.table({"path": h.paths, "class": list("aaabbb")}),
    "an Arrow table with Hugging Face's metadata": lambda h: pq.read_table(h.parquet(np.array(LABELS), NAMES)),
    "an ImageFolder": lambda h: ImageFolder(str(h.folder)),
    "an ImageFolder of tensors": lambda h: ImageFolder(str(h.folder), v2.PILToTensor()),
    "a Subset": lambda h: Subset(ImageFolder(str(h.folder)), range(N)),
    "a DataLoader of an ImageFolder": lambda h: DataLoader(ImageFolder(str(h.folder), v2.PILToTensor()), 4),
    "several data sets": lambda h: ConcatDataset(
        [Subset(ImageFolder(str(h.folder)), r) for r in ([0, 1], [2, 3, 4, 5])]
    ),
    "a Hugging Face data set": hugging_face,
    "one in torch's format": lambda h: hugging_face(h, "torch"),
    "a list of (path, name)": lambda h: pairs(h.paths, list("aaabbb")),
    "a list of (image, name)": lambda h: pairs(h.images, list("aaabbb")),
    "a data set of dicts with names": lambda h: Items(
        [{"image": x, "label": y} for x, y in pairs(h.images, [*"aaabbb"])]
    ),
}
WITH_LABELS: dict[str, Form] = {
    "a CSV file": lambda h: h.csv("image", "label", rows=pairs(h.paths)),
    "a DataFrame": lambda h: frame(path=h.paths, label=[float(y) for y in LABELS]),
    "a DataFrame of images": lambda h: frame(image=h.images, label=LABELS),
    "a Polars frame of a parquet file": lambda h: pl.read_parquet(h.parquet(np.array(LABELS), None)),
    "a query of Polars": lambda h: pl.LazyFrame({"path": h.paths, "label": LABELS}),
    "an Arrow table of bytes": lambda h: pa.table(
        {"image": [Path(path).read_bytes() for path in h.paths], "label": LABELS}
    ),
    "WebDataset's shards": shards,
    "a data set of (image, label)": lambda h: Items(pairs(h.images)),
    "a data set of (tensor, label)": lambda h: TensorDataset(h.batch, torch.tensor(LABELS)),
    "a data set of dicts": lambda h: Items([{"img": x, "fine_label": y} for x, y in pairs(h.arrays)]),
    "a data set with targets": lambda h: Items(h.images, targets=LABELS),
    "a DataLoader of pairs": lambda h: DataLoader(TensorDataset(h.batch / 255, torch.tensor(LABELS)), 4),
    "a DataLoader of dicts": lambda h: DataLoader(Items([{"x": x, "y": y} for x, y in pairs(h.batch)]), 4),
    "a list of batches": lambda h: list(DataLoader(TensorDataset(h.batch, torch.tensor(LABELS)), 4)),
    "a list of (path, label)": lambda h: pairs(h.paths),
    "a list of [path, label]": lambda h: [list(pair) for pair in pairs(h.paths)],
    "a list of (image, label)": lambda h: pairs(h.images, [np.int64(y) for y in LABELS]),
    "a list of (array, label)": lambda h: pairs(h.arrays, list(torch.tensor(LABELS))),
    "paths and labels": lambda h: (h.paths, LABELS),
    "a tensor and labels": lambda h: (h.batch, torch.tensor(LABELS)),
    "an array and labels": lambda h: (np.stack(h.arrays), LABELS),
}
WITHOUT: dict[str, Form] = {
    "a glob": lambda h: f"{h.folder}/*/*.png",
    "a parquet file": lambda h: h.parquet(None, None),
    "a CSV file": lambda h: h.csv("file", rows=[(p,) for p in h.paths]),
    "a DataFrame": lambda h: frame(path=h.paths),
    "a Series": lambda h: frame(path=h.paths)["path"],
    "a Polars Series": lambda h: pl.Series(h.paths),
    "WebDataset's shards": lambda h: shards(h, labelled=False),
    "a list of dicts": lambda h: [{"image": image} for image in h.images],
    "a data set of images": lambda h: Items(h.images),
    "a data set of tensors": lambda h: TensorDataset(h.batch),
    "a data set of dicts": lambda h: Items([{"pixel_values": x} for x in h.batch]),
    "a DataLoader of tensors": lambda h: DataLoader(Items(list(h.batch)), 4),
    "a Hugging Face data set": lambda h: hugging_face(h, labelled=False),
    "one whose function gives tensors": preprocessed,
    "a list of paths": lambda h: h.paths,
    "a list of Paths": lambda h: [Path(path) for path in h.paths],
    "a tuple of images": lambda h: tuple(h.images),
    "a list of bytes": lambda h: [Path(path).read_bytes() for path in h.paths],
    "a list of arrays": lambda h: h.arrays,
    "a list of arrays (C, H, W)": lambda h: [x.transpose(2, 0, 1) for x in h.arrays],
    "a list of tensors": lambda h: list(h.batch),
    "a list of tensors (H, W, C)": lambda h: list(h.batch.permute(0, 2, 3, 1)),
    "a tensor": lambda h: h.batch,
    "a tensor of floats": lambda h: h.batch / 255,
    "an array": lambda h: np.stack(h.arrays),
    "an array (B, C, H, W)": lambda h: h.batch.numpy(),
    "an array of floats": lambda h: np.stack(h.arrays) / 255,
}
FORMS = [
    pytest.param(form, labels, classes, id=f"{name}, {told}")
    for forms, told, labels, classes in (
        (WITH_NAMES, "with names", LABELS, NAMES),
        (WITH_LABELS, "with labels", LABELS, None),
        (WITHOUT, "without labels", [-1] * N, None),
    )
    for name, form in forms.items()
]


def pixels(source: Source) -> list[bytes]:
    return [decode(source.read(i)).tobytes() for i in range(len(source))]


@pytest.mark.parametrize(("form", "labels", "classes"), FORMS)
def test_every_form_holds_the_same_images_labels_and_names(
    held: Held, form: Form, labels: list[int], classes: list[str] | None
) -> None:
    source = as_source(form(held))
    expected = [image.tobytes() for image in held.images]
    assert pixels(source) == expected
    assert (source.labels.tolist(), source.classes) == (labels, classes)
    assert source.labels.dtype == np.int64
    again = as_source(form(held))
    assert (again.identity, again.stamp) == (source.identity, source.stamp)
    assert len({source.name(i) for i in range(N)}) == N
    assert as_source(source) is source
    assert pixels(pickle.loads(pickle.dumps(source))) == expected  # as a worker process gets it


def test_every_form_of_the_registry_is_in_the_table(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[object] = set()

    def watched(key: object, opener: Callable[[Any], Source]) -> Callable[[Any], Source]:
        return lambda images: (seen.add(key), opener(images))[1]

    as_source(held.folder)  # the registry is filled when it is first needed
    known: set[object] = {*SOURCES, *(opener for _, opener in IN_MEMORY)}
    for key, opener in SOURCES.items():
        monkeypatch.setitem(SOURCES, key, watched(key, opener))
    monkeypatch.setattr("nescio.data.source.IN_MEMORY", [(fits, watched(made, made)) for fits, made in IN_MEMORY])
    for form in (*WITH_NAMES.values(), *WITH_LABELS.values(), *WITHOUT.values(), lambda h: h.images[0]):
        as_source(form(held))
    for refused in (iter(held.images), Stream()):
        with pytest.raises(InputError):
            as_source(refused)
    assert known - seen == {"noise:", "torchvision:"}  # which hold other images


@pytest.mark.parametrize("other", [False, True])
def test_equal_images_have_an_equal_identity_whatever_holds_them(held: Held, other: bool) -> None:
    if other:
        picture(99).save(held.paths[4])
    files = [held.paths, (held.paths, LABELS), frame(path=held.paths), str(held.folder), ImageFolder(str(held.folder))]
    memory = [held.images, held.arrays, held.batch, Items(held.images), DataLoader(TensorDataset(held.batch), 2)]
    for forms in ([files[0], files[2]], [files[1], *files[3:]], memory):
        assert len({as_source(form).identity for form in forms}) == 1
    before = as_source(held.images).identity
    picture(98).save(held.paths[0])
    assert as_source(held.images).identity != before != as_source((held.images, LABELS)).identity


def test_one_image_is_a_set_of_one_and_a_list_may_hold_several_forms(held: Held) -> None:
    first = held.images[0].tobytes()
    for one in (held.images[0], held.arrays[0], held.batch[0], held.batch[0] / 255, Path(held.paths[0]).read_bytes()):
        source = as_source(one)
        assert (pixels(source), source.labels.tolist(), source.name(0)) == ([first], [-1], "image 0")
    several = as_source([held.paths[0], held.images[0], held.arrays[0]])
    assert pixels(several) == [first] * 3
    assert len(as_source([str(held.folder), held.images, held.batch])) == 3 * N
    assert [p.tobytes() for p in pictures(iter([held.images[0], held.batch[:2]]))][:2] == [first] * 2
    grey = held.arrays[0][:, :, 0]
    for form in (grey, grey[:, :, None], grey[None], torch.from_numpy(grey.copy())[None], Image.fromarray(grey)):
        assert pixels(as_source(form)) == [np.stack([grey] * 3, axis=2).tobytes()]


def test_labels_that_are_unknown_stay_unknown(held: Held) -> None:
    for labels in ([0, None, -1, float("nan"), 2, 3], ["0", "", "-1", "", "2", "3"]):
        assert as_source((held.paths, labels)).labels.tolist() == [0, -1, -1, -1, 2, 3]
    source = as_source(frame(path=held.paths, label=["cat", None, "ant", float("nan"), "", "cat"]))
    assert (source.labels.tolist(), source.classes) == ([1, -1, 0, -1, -1, 1], ["ant", "cat"])


REFUSED: dict[str, tuple[Form, str]] = {
    "a generator": (lambda h: (x for x in h.images), "generator can be read only once: give a list"),
    "a map": (lambda h: map(str, h.paths), "map can be read only once"),
    "a number": (lambda _: 7, "int is not an image or a set of images"),
    "a list of numbers": (lambda _: [7, 8], "int is not an image"),
    "a data set of numbers": (lambda _: Items([7]), "int is not an image"),
    "a stream": (lambda _: DataLoader(Stream(), 2), "Stream is a stream without a length"),
    "a DataLoader that shuffles": (
        lambda h: DataLoader(Items(h.images), shuffle=True),
        r"shuffles.*\(loader\.dataset\)",
    ),
    "one that draws": (
        lambda h: DataLoader(Items(h.images), sampler=torch.utils.data.WeightedRandomSampler([1.0] * N, N)),
        "draws its images with a WeightedRandomSampler.*Subset",
    ),
    "normalised tensors": (lambda h: (h.batch / 255 - 0.5) / 0.25, "before normalisation.*Session takes normalised"),
    "a data set of them": (
        lambda h: Items(list(h.batch / 255 - 0.5)),
        "before normalisation.*Session takes normalised",
    ),
    "a DataLoader of them": (lambda h: DataLoader(TensorDataset(h.batch / 100)), "float pixels from .* before normal"),
    "integers": (lambda h: h.batch.long(), "pixels of type int64: give uint8"),
    "channels that cannot be told": (
        lambda _: np.zeros((2, 3, 9, 3), np.uint8),
        r"\(3, 9, 3\) is ambiguous .channels first",
    ),
    "too many channels": (lambda _: np.zeros((2, 9, 9, 7), np.uint8), r"\(9, 9, 7\) is not grey, RGB or RGBA"),
    "a grey batch": (lambda _: torch.zeros(8, 28, 28), "not grey, RGB or RGBA"),
    "a matrix": (lambda _: torch.zeros(8, 28), "expected a tensor .*got .*8, 28"),
    "too few labels": (lambda h: (h.images, [1, 2]), "6 images but 2 labels"),
    "labels that are shares": (lambda h: (h.images, [0.5] * N), "has the entry 0.5: expected one class number or name"),
    "one-hot labels": (lambda h: Items(h.images, targets=np.eye(N, dtype=int)), "expected one class number per image"),
    "a negative label": (lambda h: (h.images, [-3] * N), "has the entry -3: expected one class number"),
    "files that are gone": (lambda h: [*h.paths, "gone.png"], "1 of 7 images do not exist: gone.png"),
    "a CSV file of gone files": (
        lambda h: h.csv("path", rows=[("x.png",)]),
        "x.png; paths in set.csv are relative to its",
    ),
    "a CSV file without paths": (
        lambda h: h.csv("id", "label", rows=[(1, 2)]),
        "no column path, file, image; .*: id, label",
    ),
    "a DataFrame without paths": (lambda h: frame(name=h.paths), "DataFrame has no column path.*: name"),
    "a Polars frame without paths": (lambda h: pl.DataFrame({"name": h.paths}), "no column path.*: name"),
    "an Arrow table without paths": (lambda h: pa.table({"name": h.paths}), "Arrow table has no column path.*: name"),
    "a shard that is gone": (lambda h: f"webdataset:{h.other}/x-{{0..3}}.tar", "no such shard: .*x-0.tar"),
    "a stream of Hugging Face's": (
        lambda h: hugging_face(h).to_iterable_dataset(),
        "is a stream without a length: .* read one in order",
    ),
    "dicts without images": (lambda _: Items([{"audio": 1}]), "no image: its keys are audio"),
}


class Stream(torch.utils.data.IterableDataset):
    """Images without a length."""

    def __iter__(self) -> Any:
        yield from torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(("form", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_with_the_way_out(held: Held, form: Form, told: str) -> None:
    with pytest.raises(InputError, match=told):
        _ = as_source(form(held)).labels


def test_a_table_of_anyone_names_no_files_for_us(held: Held) -> None:
    from nescio.data.formats.files import open_here

    path = held.csv("path", rows=[(p,) for p in held.paths])
    with pytest.raises(InputError, match="is not a file that contains images"):
        open_here(str(path))
    assert len(open_here(str(held.folder))) == N


def test_a_dataloader_gives_its_batches_to_a_network(held: Held) -> None:
    x, y = held.batch / 255 - 0.5, torch.tensor(LABELS)
    for items, labelled in (
        (TensorDataset(x, y), True),
        (Items([{"image": a, "label": b} for a, b in pairs(x)]), True),
        (TensorDataset(x), False),
        (Items(list(x)), False),
    ):
        loader = DataLoader(items, 4)
        assert looks_normalised(loader)
        batches = list(loaded(loader))
        assert torch.equal(torch.cat([b for b, _ in batches]), x)
        assert [None if b is None else b.tolist() for _, b in batches] == [
            [0, 0, 0, 1] * labelled or None,
            [1, 1] * labelled or None,
        ]
    assert looks_normalised(DataLoader(Stream(), 2))
    assert not looks_normalised(DataLoader(TensorDataset(held.batch)))
    with pytest.raises(InputError, match="a batch is a list"):
        list(loaded([[["a.png"], [1]]]))
    with pytest.raises(InputError, match="expected one class number per image"):
        list(loaded([(x, torch.eye(N))]))
    shuffled = Items(held.images)
    assert dataset_of(DataLoader(shuffled, shuffle=True), ordered=False) is shuffled


def test_another_form_is_one_function_that_registers_itself(held: Held, tmp_path: Path) -> None:
    class Bag:
        def __init__(self, images: list[Any]) -> None:
            self.images = images

    @register(".shelf", "shelf:", Bag)
    def opened(shelf: Any) -> Source:
        return as_source(shelf.images if isinstance(shelf, Bag) else held.paths)

    try:
        (tmp_path / "x.shelf").write_bytes(b"")
        for given in (tmp_path / "x.shelf", "shelf:anything", Bag(held.images)):
            assert pixels(as_source(given)) == pixels(as_source(held.folder))
        assert len(open_source("shelf:anything[:2]")) == 2
    finally:
        del SOURCES[".shelf"], SOURCES["shelf:"], IN_MEMORY[-1]


STREAMS: dict[str, Form] = {
    "Hugging Face's": lambda h: hugging_face(h).to_iterable_dataset(),
    "WebDataset's": lambda h: webdataset.WebDataset(shards(h)[11:], shardshuffle=False),
    "WebDataset's, decoded": lambda h: webdataset.WebDataset(shards(h)[11:], shardshuffle=False).decode("pil"),
    "WebDataset's as pairs": lambda h: (
        webdataset.WebDataset(shards(h)[11:], shardshuffle=False).decode("pil").to_tuple("png", "cls")
    ),
    "PyTorch's": lambda h: Pairs(h.images, list("aaabbb")),
}


class Pairs(torch.utils.data.IterableDataset):
    def __init__(self, images: list[Any], labels: list[Any]) -> None:
        self.rows = pairs(images, labels)

    def __iter__(self) -> Any:
        return iter(self.rows)


@pytest.mark.parametrize("form", STREAMS.values(), ids=STREAMS)
def test_a_stream_of_images_is_read_in_order(held: Held, classifier: Classifier, form: Form) -> None:
    """Class names that the stream has are looked up among the model's, whatever their order there."""
    stream, names = form(held), form in (STREAMS["Hugging Face's"], STREAMS["PyTorch's"])
    session = Session(classifier.named(["z", "b", "y", "a"]), batch_size=4, progress=False)
    features = session.features(stream)
    listed = session.features(held.images)
    torch.testing.assert_close(features.record().h, listed.record().h)
    assert features.labels.tolist() == ([3, 3, 3, 1, 1, 1] if names else LABELS)
    scores = session.scores(["msp", "odin+msp"], stream)
    assert scores["msp"].shape == scores["odin+msp"].shape == (N,)  # it was read once more
    assert [p.tobytes() for p in pictures(stream)] == pixels(as_source(held.images))
    for refused in (as_source, lambda images: session.images(images, "explain")):
        with pytest.raises(InputError, match="stream without a length"):
            refused(stream)


def test_a_damaged_image_in_a_stream_is_named(held: Held, classifier: Classifier) -> None:
    held_back = Pairs([held.images[0], b"no image"], [0, 1])
    with pytest.raises(InputError, match="item 1 of the stream"):
        Session(classifier, progress=False).features(held_back)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(InputError, match=r"nescio\[webdataset\]"):
        as_source("webdataset:s-{0..3}.tar")
