"""Batches that a network takes as they are: of a DataLoader, or tensors where no transform is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from nescio.core.errors import InputError

_IMAGES = ("image", "images", "pixel_values", "x", "img")
_LABELS = ("label", "labels", "y", "target", "targets")
Batches = Iterator[tuple[Tensor, Tensor | None]]


def batches_of(images: Any, size: int, *, prepared: bool) -> Batches | None:
    """Normalised batches ``(B, C, H, W)`` and their labels ``(B,)``, as far as ``images`` are such batches.

    Args:
        images: a ``DataLoader`` of tensors, pairs or dicts; with ``prepared`` also a tensor, or a data set of tensors.
        size: images per batch, where nobody has made any.
        prepared: whether images come as the network takes them, since no transform is known.

    Returns:
        None for images that a transform is to prepare.

    Raises:
        InputError: there are no such batches in it.
    """
    if isinstance(images, DataLoader):
        return map(_pair, images)
    if not prepared:
        return None
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise InputError(f"expected normalised images (B, C, H, W), got {tuple(images.shape)}")
        return ((x, None) for x in torch.split(images, size))
    if isinstance(images, Dataset):
        return map(_pair, DataLoader(images, size))
    raise InputError(
        f"a session without a transform takes a DataLoader, a tensor or a Dataset of normalised images, got "
        f"{type(images).__name__}; give Session(model, transform=nescio.Transform(…)) for images"
    )


def shuffles(images: Any) -> bool:
    """Whether images come in another order each time."""
    return isinstance(images, DataLoader) and isinstance(images.sampler, RandomSampler)


def _pair(batch: Any) -> tuple[Tensor, Tensor | None]:
    x, labels = batch, None
    if isinstance(batch, Mapping):
        x = next((batch[k] for k in _IMAGES if k in batch), None)
        labels = next((batch[k] for k in _LABELS if k in batch), None)
    elif isinstance(batch, list | tuple):
        x, labels = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(x, Tensor) or x.ndim != 4:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"expected batches of normalised images (B, C, H, W), alone, with labels or in a dict, got {got}"
        )
    if not x.is_floating_point():
        raise InputError(f"expected batches of normalised images, got {x.dtype}: normalise them in the data set")
    return x, labels if labels is None else torch.as_tensor(labels).to(torch.int64)
