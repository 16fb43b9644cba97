"""Batches that a network takes as they are: of a DataLoader, or tensors where no transform is known."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nescio.core.errors import InputError
from nescio.data.coerce import image_and_label, labelled_pictures
from nescio.data.formats.torch import integers
from nescio.data.labels import numbered, plain, renumbering
from nescio.data.source import Labels
from nescio.models import Classifier

Batches = Iterator[tuple[Tensor, Tensor | None]]


def batches_of(images: Any, size: int, *, prepared: bool) -> Batches | None:
    """Normalised batches ``(B, C, H, W)`` and their labels ``(B,)``, as far as ``images`` are such batches.

    Args:
        images: a ``DataLoader`` of tensors, pairs or dicts; with ``prepared`` also a tensor or array, a pair of one and
            labels, a list of tensors, or a data set of tensors.
        size: images per batch, where nobody has made any.
        prepared: whether images come as the network takes them, since no transform is known.

    Returns:
        None for images that a transform is to prepare.
    """
    if isinstance(images, DataLoader) and (prepared or looks_normalised(images)):
        return loaded(images)
    if not prepared:
        return None
    if isinstance(images, Dataset):
        return loaded(DataLoader(images, size)) if _of_tensors(images) else None
    pair = isinstance(images, tuple) and len(images) == 2 and len(images[0]) == len(images[1])
    x, labels = images if pair else (images, None)
    if isinstance(x, list | tuple) and x and all(isinstance(one, Tensor) for one in x):
        x = torch.stack(list(x))
    if not isinstance(x, Tensor | np.ndarray) or x.ndim not in (3, 4):
        return None
    x = torch.as_tensor(x)
    sets = [x if x.ndim == 4 else x[None]] + ([] if labels is None else [torch.as_tensor(labels)])
    return loaded(DataLoader(TensorDataset(*sets), size))


def streamed(stream: Any, classifier: Classifier, size: int) -> Batches:
    """Normalised batches of a stream's images and their labels, decoded in this process as they come.

    Raises:
        InputError: an item holds no image; its number in the stream is named.
    """
    items, transform = labelled_pictures(stream), classifier.transform
    features = (getattr(stream, "features", None) or {}).values()
    theirs = next((f.names for f in features if hasattr(f, "names")), None)  # as Hugging Face's ClassLabel says
    while some := list(itertools.islice(items, size)):
        x = torch.stack([transform.geometry(picture) for picture, _ in some])
        values = [label.decode() if isinstance(label, bytes) else label for _, label in some]
        yield transform.normalise(x), torch.from_numpy(_in_order_of(classifier.classes, values, theirs))


def _in_order_of(own: list[str] | None, values: list[Any], theirs: list[str] | None) -> Labels:
    """The model's class numbers of a stream's labels; -1 for names that it does not know."""
    labels, names = numbered(values, "the stream")
    if names is not None:
        number = {plain(name): i for i, name in enumerate(own or ())}
        new: list[int] | None = [number.get(plain(name), -1) for name in names]
    else:
        try:
            new = renumbering(theirs, own) if theirs and own else None
        except InputError:  # names of OOD images need not be the model's
            new = None
    return labels if new is None else np.array([*new, -1])[labels]


def _of_tensors(images: Any) -> bool:
    if isinstance(images, IterableDataset):
        return True
    if not len(images):
        raise InputError("there are no images: the data set is empty")
    return isinstance(image_and_label(images[0])[0], Tensor)


def looks_normalised(loader: DataLoader[Any]) -> bool:
    """Whether a DataLoader's batches are for a network as they are: a stream, or tensors with values outside [0, 1]."""
    if isinstance(loader.dataset, IterableDataset):
        return True
    image = image_and_label(loader.dataset[0])[0]
    return isinstance(image, Tensor) and image.is_floating_point() and bool(image.min() < 0 or image.max() > 1)


def loaded(loader: Iterable[Any]) -> Batches:
    """Batches that a network takes as they are ``(B, C, H, W)``, each with its class numbers ``(B,)`` where known.

    Args:
        loader: gives tensors, pairs of images and labels, or dicts of both (as ``{"image": …, "label": …}``).

    Raises:
        InputError: a batch has no tensor of normalised images, or labels that are not one class number each.
    """
    try:
        for batch in loader:
            x, labels = image_and_label(batch)
            if not isinstance(x, Tensor):
                raise InputError(
                    f"a batch is a {type(x).__name__}: expected tensors (B, C, H, W), as the network takes them"
                )
            if x.ndim != 4 or not x.is_floating_point():
                raise InputError(
                    f"expected batches of normalised images (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}; "
                    "normalise them in the data set, or give the session a transform"
                )
            if labels is not None:
                labels = torch.as_tensor(integers(np.asarray(torch.as_tensor(labels).cpu()), "a batch"))
                if len(labels) != len(x):
                    raise InputError(f"a batch has {len(x)} images but {len(labels)} labels: give one label per image")
            yield x, labels
    except TypeError as e:  # of PyTorch's own function, which joins the items of a batch
        raise InputError(f"this DataLoader does not make batches ({e}); give its data set, loader.dataset") from None
