"""PyTorch's data sets and DataLoaders, torchvision's data sets by name, Hugging Face's data sets."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from nescio.core.errors import InputError, nearest
from nescio.data.coerce import IMAGE_KEYS, LABEL_KEYS, Items, checked, is_stream, labels_of
from nescio.data.formats.files import Files
from nescio.data.hashing import cache_root, combine
from nescio.data.registry import INDEXED, register
from nescio.data.source import Concatenated, Labels, Rows, Source, as_source


class DatasetSource(Items):
    """A map-style data set; see ``Items`` for what an item may be.

    Args:
        dataset: anything with ``len`` and integer indexing.
        identity: a name for its contents, for the bank. Without one the images are read once to hash them.
        classes: class names; a ``classes`` attribute of the data set otherwise.
    """

    def __init__(self, dataset: Dataset[Any], identity: str | None = None, classes: list[str] | None = None) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InputError(f"{type(dataset).__name__} has no length or no indexing; give a map-style data set")
        self._identity = identity
        super().__init__(dataset, classes=classes or getattr(dataset, "classes", None))

    def name(self, i: int) -> str:
        """Class of the data set and index."""
        return f"{type(self.items).__name__}[{i}]"

    @cached_property
    def _numbered(self) -> tuple[Labels, list[str] | None]:
        """From the data set's ``targets`` or ``labels``, else from its items."""
        for attribute in ("targets", "labels", "_labels"):
            values = getattr(self.items, attribute, None)
            if values is not None and len(values) == len(self):
                return integers(np.asarray(values), f"{type(self.items).__name__}.{attribute}"), self._classes
        return super()._numbered

    @cached_property
    def identity(self) -> str:
        """As given, else of all bytes or pixels, and labels."""
        return super().identity if self._identity is None else combine(self._identity, self.labels.tobytes())

    @property
    def stamp(self) -> str:
        """Of the identity as given, else of class and length: nothing else is known without reading the images."""
        return self._identity or combine(type(self.items).__name__, str(len(self)))


@register(is_stream)
def refuse(stream: Any) -> Source:
    """A stream has no numbers: what reads it in order takes it, and nothing else."""
    raise InputError(
        f"{type(stream).__name__} is a stream without a length: session.features, session.scores and a loaded detector "
        "read one in order; for all else give a data set with len and indexing"
    )


@register(Dataset)
def of_dataset(dataset: Any) -> Source:
    """The source of a PyTorch data set; of a part of one, or of several, with their labels and class names.

    An ImageFolder that does nothing to its images is the files that it lists.
    """
    if isinstance(dataset, Subset):
        return Rows(as_source(dataset.dataset), list(dataset.indices))
    if isinstance(dataset, ConcatDataset):
        return Concatenated([as_source(d) for d in dataset.datasets])
    if type(dataset).__name__ in ("ImageFolder", "DatasetFolder") and dataset.transforms is None:
        return Files([Path(path) for path, _ in dataset.samples], None, np.asarray(dataset.targets), dataset.classes)
    return checked(DatasetSource(dataset))


INDEXED.append(of_dataset)


@register(DataLoader)
def of_loader(loader: DataLoader[Any]) -> Source:
    """The images of a DataLoader that reads them in order."""
    return as_source(dataset_of(loader))


def dataset_of(loader: DataLoader[Any], *, ordered: bool = True) -> Any:
    """The data set that a DataLoader reads from its first item to its last, or shuffled where ``ordered`` is False.

    Raises:
        InputError: it reads in another order, or other items.
    """
    sampler, name = loader.sampler, type(loader.sampler).__name__
    plain = type(loader.batch_sampler) in (BatchSampler, type(None))
    whole = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(sampler)
    if isinstance(loader.dataset, IterableDataset) or (plain and type(sampler) is SequentialSampler):
        return loader.dataset
    if plain and whole and sampler.num_samples == len(loader.dataset):  # type: ignore[arg-type,attr-defined]
        if not ordered:
            return loader.dataset
        raise InputError(
            "the DataLoader shuffles, so scores could not be matched to images: give its data set (loader.dataset) or "
            "a DataLoader with shuffle=False"
        )
    raise InputError(
        f"the DataLoader draws its images with a {name if plain else type(loader.batch_sampler).__name__}: give its "
        "data set (loader.dataset), or a torch.utils.data.Subset of it"
    )


def _is_hugging_face(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("features", "with_format", "cast_column", "__getitem__", "__len__"))


@register(_is_hugging_face)
def of_hugging_face(data: Any) -> Source:
    """A Hugging Face data set: its column of images, and class numbers with their names."""
    kinds = {name: type(feature).__name__ for name, feature in data.features.items()}
    label = _first(kinds, "ClassLabel", LABEL_KEYS)
    image = _first(kinds, "Image", IMAGE_KEYS)
    classes = getattr(data.features[label], "names", None) if label else None
    if data.format["type"] == "custom" or image is None:  # what its own function gives
        return checked(Items(data, classes=classes, called=_row_name))
    plain = data.with_format(None)
    labels, names = labels_of(plain[label] if label else None, len(data))
    if kinds[image] == "Image":  # encoded, for the processes that decode
        data = plain.cast_column(image, type(data.features[image])(decode=False))
    return checked(Items(_Column(data, image), labels=labels, classes=classes or names, called=_row_name))


_row_name = "row {}".format


def _first(kinds: dict[str, str], kind: str, names: Iterable[str]) -> str | None:
    of_kind = (name for name, found in kinds.items() if found == kind)
    return next(of_kind, next((name for name in names if name in kinds), None))


class _Column:
    """One column of a table, by row."""

    def __init__(self, table: Any, name: str) -> None:
        self.table, self.name = table.select_columns([name]), name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Any:
        return self.table[i][self.name]


def integers(values: np.ndarray[Any, Any], where: str) -> Labels:
    """Class numbers ``(N,)``, one for each image; it is said where they stand if they are none."""
    if values.dtype.kind not in "iub" or values.ndim != 1:
        raise InputError(
            f"{where} has type {values.dtype} and shape {values.shape}; expected one class number per image"
        )
    return values.astype(np.int64)


@register("torchvision:")
def open_torchvision(spec: str) -> Source:
    """A torchvision data set, ``NAME`` or ``NAME/SPLIT`` (``train``, ``test`` (default), ``val``, …).

    It is looked for below ``$NESCIO_CACHE/datasets`` (or the user's cache folder) and downloaded there where it can be.
    """
    from torchvision import datasets

    name, _, split = spec.partition("/")
    known = {n for n in datasets.__all__ if n[0].isupper()}
    if name not in known:
        raise InputError(f"torchvision has no data set '{name}'{nearest(name, known)}")
    cls = getattr(datasets, name)
    parameters = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {"root": str(cache_root() / "datasets")}
    if "train" in parameters:
        if split not in ("", "train", "test"):
            raise InputError(f"torchvision:{name} has the splits train and test, not '{split}'")
        arguments["train"] = split == "train"
    elif "split" in parameters:
        arguments["split"] = split or "test"
    if "download" in parameters:
        arguments["download"] = True
    try:
        return DatasetSource(cls(**{k: v for k, v in arguments.items() if k in parameters}))
    except (RuntimeError, OSError, ValueError, TypeError) as e:
        raise InputError(f"torchvision:{spec} cannot be opened or downloaded below {arguments['root']}: {e}") from None
