"""Batches that a network takes as they are: of a DataLoader, or tensors where no transform is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nescio.core.errors import InputError
from nescio.data.coerce import image_and_label
from nescio.data.formats.torch import batches_of as of_loader
from nescio.data.formats.torch import looks_normalised

Batches = Iterator[tuple[Tensor, Tensor | None]]


def batches_of(images: Any, size: int, *, prepared: bool) -> Batches | None:
    """Normalised batches ``(B, C, H, W)`` and their labels ``(B,)``, as far as ``images`` are such batches.

    Args:
        images: a ``DataLoader`` of tensors, pairs or dicts; with ``prepared`` also a tensor, or a data set of tensors.
        size: images per batch, where nobody has made any.
        prepared: whether images come as the network takes them, since no transform is known.

    Returns:
        None for images that a transform is to prepare.
    """
    if isinstance(images, DataLoader) and (prepared or looks_normalised(images)):
        return _normalised(images)
    if prepared and isinstance(images, Tensor) and images.ndim == 4:
        return ((x, None) for x in torch.split(images, size))
    if prepared and isinstance(images, Dataset) and isinstance(image_and_label(images[0])[0], Tensor):
        return _normalised(DataLoader(images, size))
    return None


def _normalised(loader: DataLoader[Any]) -> Batches:
    try:
        for x, labels in of_loader(loader):
            if x.ndim != 4 or not x.is_floating_point():
                raise InputError(
                    f"expected batches of normalised images (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}; "
                    "normalise them in the data set, or give the session a transform"
                )
            yield x, labels
    except TypeError as e:  # of PyTorch's own function, which joins the items of a batch
        raise InputError(f"this DataLoader makes no batches ({e}); give its data set, loader.dataset") from None
