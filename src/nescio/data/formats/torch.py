"""Torchvision's data sets by name, and any ``torch.utils.data.Dataset``."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from nescio.core.errors import BadImage, InputError, nearest
from nescio.data.hashing import cache_root, combine
from nescio.data.source import Rows, Source


class DatasetSource:
    """A map-style data set whose items are an image or ``(image, label, …)``; the image a PIL image, array or tensor.

    Arrays ``(H, W)`` or ``(H, W, 3)`` and tensors ``(1 or 3, H, W)`` are uint8, or floating point in [0, 1].

    Args:
        dataset: anything with ``len`` and integer indexing.
        identity: a name for its contents, for the bank. Without one the images are read once to hash them.
        classes: class names; a ``classes`` attribute of the data set otherwise.
    """

    def __init__(self, dataset: Dataset[Any], identity: str | None = None, classes: list[str] | None = None) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InputError(f"{type(dataset).__name__} has no length or no indexing; give a map-style data set")
        self.dataset: Any = dataset
        self._identity = identity
        self.classes = classes or getattr(dataset, "classes", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        """Class of the data set and index."""
        return f"{type(self.dataset).__name__}[{i}]"

    def read(self, i: int) -> Image.Image:
        """The image of item ``i``."""
        item = self.dataset[i]
        return as_image(item[0] if isinstance(item, tuple | list) else item)

    @cached_property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """From the data set's ``targets`` or ``labels``, else from its items."""
        for attribute in ("targets", "labels", "_labels"):
            values = getattr(self.dataset, attribute, None)
            if values is not None and len(values) == len(self):
                return _integers(np.asarray(values), f"{type(self.dataset).__name__}.{attribute}")
        items = (self.dataset[i] for i in range(len(self)))
        pairs = [int(item[1]) if isinstance(item, tuple | list) and len(item) > 1 else -1 for item in items]
        return np.array(pairs, dtype=np.int64)

    @cached_property
    def identity(self) -> str:
        """As given, else of all pixels and labels."""
        if self._identity is not None:
            return combine(self._identity, self.labels.tobytes())
        images = (self.read(i) for i in range(len(self)))
        return combine(*(combine(f"{im.mode}{im.size}", im.tobytes()) for im in images), self.labels.tobytes())

    @property
    def stamp(self) -> str:
        """Of the identity as given, else of class and length: nothing else is known without reading the images."""
        return self._identity or combine(type(self.dataset).__name__, str(len(self)))


def of_dataset(given: object) -> Source:
    """The source of a PyTorch data set; a ``Subset`` keeps the labels and class names of what it is taken from.

    Raises:
        InputError: it is no data set.
    """
    if isinstance(given, Subset):
        return Rows(of_dataset(given.dataset), list(given.indices))
    if isinstance(given, Dataset):
        return DatasetSource(given)
    hint = "; of a DataLoader, give its .dataset, with images that are not normalised" * isinstance(given, DataLoader)
    raise InputError(
        "expected images as a path (a folder, an archive, parquet, 'torchvision:CIFAR10/test'), a source or a PyTorch "
        f"data set, got {type(given).__name__}{hint}"
    )


def _integers(values: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    if values.dtype.kind not in "iub" or values.ndim != 1:
        raise InputError(f"{where} holds {values.dtype} of shape {values.shape}; expected one class number an image")
    return values.astype(np.int64)


def as_image(value: Any) -> Image.Image:
    """A PIL image from one, an array ``(H, W[, 3])``, or a tensor ``(C, H, W)``."""
    if isinstance(value, Image.Image):
        return value
    array = value.numpy().transpose(1, 2, 0) if hasattr(value, "numpy") else np.asarray(value)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 1:
            raise BadImage("a floating-point image must lie in [0, 1]; drop ToTensor/Normalize from the data set")
        array = (array * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def torchvision_source(spec: str) -> Source:
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
