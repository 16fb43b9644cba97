"""Images in a list, one tensor or one array, with labels or without; and one image alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nescio.core.errors import InputError
from nescio.data.coerce import CHANNELS, Items, NotPixels, channels_last, check_pixels, checked, labels_of, to_numpy
from nescio.data.formats.files import is_image_name, of_paths
from nescio.data.registry import register
from nescio.data.source import Concatenated, Source, as_source

_ONE = Image.Image | bytes
_PIXELS = Tensor | np.ndarray


@register(Image.Image, bytes)
def of_one(image: Image.Image | bytes) -> Source:
    """One image."""
    return Items([image], labels=labels_of(None, 1)[0])


@register(Tensor, np.ndarray)
def of_pixels(pixels: Any, labels: Any = None) -> Source:
    """A tensor ``(B, C, H, W)`` or array ``(B, H, W, C)``, of grey images also ``(B, H, W)``; or of one image."""
    if isinstance(pixels, np.ndarray) and pixels.dtype == object:
        return listed(list(pixels), labels)
    if pixels.ndim not in ((3, 4) if isinstance(pixels, Tensor) else (2, 3, 4)):
        form = (
            "a tensor (C, H, W) or (B, C, H, W)" if isinstance(pixels, Tensor) else "an array (B, H, W, C) or (H, W, C)"
        )
        raise InputError(f"expected {form}, got {tuple(pixels.shape)}; grey images have one channel, as x[:, None]")
    batch = pixels if pixels.ndim == 4 else pixels[..., None] if _are_grey(pixels, labels) else pixels[None]
    try:
        if batch.ndim == 4 and len(batch):
            channels_last(batch.shape[1:])
        check_pixels(to_numpy(batch))
    except NotPixels as e:
        raise InputError(f"{e}{'; many grey images are x[:, None]' if pixels.ndim == 3 else ''}") from None
    found, classes = labels_of(labels, len(batch))
    return checked(Items(batch, labels=found, classes=classes))


def _are_grey(pixels: Any, labels: Any) -> bool:
    """Whether three sides are those of many grey images: as many labels say so, or an array of squares."""
    if pixels.ndim != 3 or len(pixels) == 1:
        return False
    n, height, width = pixels.shape
    if labels is not None and len(labels) == n:
        return True
    return isinstance(pixels, np.ndarray) and height == width and not {n, width} & set(CHANNELS)


@register(list, tuple)
def of_list(images: Sequence[Any]) -> Source:
    """A list of images or of ``(image, label)``; or ``(images, labels)``."""
    # a DataLoader collates its pairs into lists
    of_two = len(images) == 2 and (isinstance(images, tuple) or getattr(images[0], "ndim", 0) == 4)
    if of_two and _are_labels(images[1]):
        return of_pixels(*images) if isinstance(images[0], _PIXELS) else listed(*images)
    if images and all(isinstance(item, tuple | list) and len(item) == 2 and _is_label(item[1]) for item in images):
        return listed(*zip(*images, strict=True))
    if images and all(isinstance(item, Mapping) for item in images):
        return checked(Items(images))
    return listed(images)


def listed(images: Sequence[Any], labels: Any = None) -> Source:
    """Images, or where these have no labels, whatever else ``as_source`` takes, one after the other."""
    if all(map(_is_single, images)):
        found, classes = labels_of(labels, len(images))
        if images and all(isinstance(image, str | Path) for image in images):
            return of_paths([Path(path).expanduser() for path in images], found, classes)
        return checked(Items(images, labels=found, classes=classes))
    if labels is None:
        sources = [as_source(item) for item in images]
        for number, source in enumerate(sources):
            if type(source) is Items:
                source.name = f"item {number}, image {{}}".format
        return Concatenated(sources)
    raise InputError("images with labels must be image files, PIL images, arrays or tensors, one image each")


@register(Iterator)
def refuse(images: Any) -> Source:
    """What can be read only once is no set of images."""
    raise InputError(f"a {type(images).__name__} can be read only once: give a list, as list(images)")


def _is_single(item: Any) -> bool:
    if isinstance(item, str | Path):
        return is_image_name(str(item)) and "://" not in str(item)
    stored = isinstance(item, Mapping) and "bytes" in item  # as Hugging Face's parquet files keep an image
    return stored or isinstance(item, _ONE) or (isinstance(item, _PIXELS) and item.ndim < 4)


def _is_label(value: Any) -> bool:
    alone = getattr(value, "ndim", None) == 0
    return alone or value is None or isinstance(value, Number) or (isinstance(value, str) and not is_image_name(value))


def _are_labels(values: Any) -> bool:
    if isinstance(values, _PIXELS):
        return values.ndim == 1
    return isinstance(values, list | tuple) and len(values) > 0 and all(map(_is_label, values))
