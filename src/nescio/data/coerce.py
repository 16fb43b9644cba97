"""Images in memory: as one, as an item of a data set, or many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset

from nescio.core.errors import BadImage, InputError, some
from nescio.data.decode import Raw, decode
from nescio.data.formats.files import is_image_name
from nescio.data.hashing import combine, hash_images
from nescio.data.labels import numbered
from nescio.data.source import AnySource, Labels, as_source, unlabelled

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x", "input")
LABEL_KEYS = ("label", "labels", "fine_label", "cls", "class", "target", "y")
CHANNELS = (1, 3, 4)


class NotPixels(BadImage):
    """Numbers that are no image, or not any more: they are normalised, say."""


def pictures(images: AnySource) -> Iterator[Image.Image]:
    """Each image of whatever ``as_source`` takes, of a stream, or of an iterator over either, decoded, upright and RGB.

    Raises:
        InputError: one is not an image, or not of a form that is known; it is named.
    """
    if isinstance(images, Iterator):
        for one in images:
            yield from pictures(one)
        return
    if is_stream(images):
        yield from (picture for picture, _ in labelled_pictures(images))
        return
    source = as_source(images)
    for i in range(len(source)):
        try:
            yield decode(source.read(i))
        except BadImage as e:
            raise InputError(f"{source.name(i)}: {e}") from None


def is_stream(images: Any) -> bool:
    """Whether these are images without number or length, that can be read again: an iterable data set of any library.

    Those of PyTorch (WebDataset's are such) and of Hugging Face's ``datasets``.
    """
    return isinstance(images, IterableDataset) or (
        hasattr(images, "__iter__") and hasattr(images, "features") and not hasattr(images, "__len__")
    )


def labelled_pictures(stream: Any) -> Iterator[tuple[Image.Image, Any]]:
    """Each image of a stream, decoded, with what the item says of its class, None where it says nothing.

    Raises:
        InputError: an item is not an image; its number in the stream is named.
    """
    for i, item in enumerate(stream):
        try:
            image, label = image_and_label(item)
            yield decode(as_raw(image)), label
        except (BadImage, OSError) as e:
            raise InputError(f"item {i:,} of the stream: {e}") from None


class Items:
    """A source of what has a length and gives an item by its number: a list, an array, a data set.

    An item is an image, ``(image, label, …)`` or a dict of both; an image is a PIL image, encoded bytes, the path of a
    file, an array or a tensor.

    Args:
        items: the images.
        labels: class numbers ``(N,)``; read from the items where None.
        classes: what these numbers mean.
        called: the name of an image, before its number.
    """

    def __init__(
        self,
        items: Any,
        *,
        labels: Labels | None = None,
        classes: Sequence[str] | None = None,
        called: Callable[[int], str] = "image {}".format,
    ) -> None:
        self.items, self._labels, self.name = items, labels, called
        self._classes = None if classes is None else list(classes)

    def __len__(self) -> int:
        return len(self.items)

    def read(self, i: int) -> Raw:
        """The image of item ``i``."""
        return as_raw(image_and_label(self.items[i])[0])

    @cached_property
    def _numbered(self) -> tuple[Labels, list[str] | None]:
        if self._labels is not None:
            return self._labels, self._classes
        values = [image_and_label(self.items[i])[1] for i in range(len(self))]
        labels, names = numbered(values, "an item of the set")
        return labels, self._classes or names

    @property
    def labels(self) -> Labels:
        """As given, else of the items."""
        return self._numbered[0]

    @property
    def classes(self) -> list[str] | None:
        """As given, else the names that are the items' labels."""
        return self._classes if self._classes is not None or self._labels is not None else self._numbered[1]

    @cached_property
    def identity(self) -> str:
        """Of all bytes or pixels, and labels."""
        return combine(*hash_images(self), self.labels.tobytes())

    @property
    def stamp(self) -> str:
        """Of the same: nothing else tells whether memory has changed."""
        return self.identity


def image_and_label(item: Any) -> tuple[Any, Any]:
    """What an item of a data set says: its image, and its label, None where there is none.

    Raises:
        InputError: it is a dict without an image.
    """
    if isinstance(item, Mapping) and "bytes" not in item:
        image = next((key for key in IMAGE_KEYS if key in item), None)
        image = image or next((key for key in item if is_image_name(f"x.{key}")), None)  # WebDataset's: jpg, input.png
        if image is None:
            raise InputError(
                f"an item has no image: its keys are {some(item)}; expected one of {', '.join(IMAGE_KEYS)}"
            )
        return item[image], next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list):
        if not item:
            raise InputError("an item of the set is empty")
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def as_raw(value: Any) -> Raw:
    """An image in any of the forms of ``Items``, as a source hands it over.

    Raises:
        NotPixels: an array or tensor is no image.
        InputError: it is of no form that is known.
    """
    if isinstance(value, Image.Image | bytes | Path):
        return value
    if isinstance(value, str):
        return Path(value)
    if isinstance(value, Mapping):  # as Hugging Face keeps what it has not decoded
        return value["bytes"] if value.get("bytes") is not None else Path(str(value.get("path")))
    if hasattr(value, "__array__"):
        return _of_pixels(to_numpy(value))
    raise InputError(f"{type(value).__name__} is not an image: give a path, a PIL image, an array or a tensor")


def to_numpy(value: Any) -> np.ndarray[Any, Any]:
    """An array of an array, or of a tensor on any device."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def channels_last(shape: Sequence[int]) -> bool:
    """Whether the channels of an image ``(H, W, C)`` or ``(C, H, W)`` come last.

    Raises:
        NotPixels: neither its first nor its last side can be channels, or both can.
    """
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    if 0 in shape or not (first or last):
        raise NotPixels(f"an image of shape {tuple(shape)} is not grey, RGB or RGBA: expected (H, W[, C]) or (C, H, W)")
    if first and last:
        raise NotPixels(f"an image of shape {tuple(shape)} is ambiguous (channels first or last): give a PIL image")
    return last


def check_pixels(pixels: np.ndarray[Any, Any]) -> None:
    """Refuse values that are not those of images, with NotPixels."""
    if pixels.dtype == np.uint8:
        return
    if not np.issubdtype(pixels.dtype, np.floating):
        raise NotPixels(f"pixels of type {pixels.dtype}: give uint8, or floats in [0, 1]")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise NotPixels(
            f"float pixels from {pixels.min():.3g} to {pixels.max():.3g}: give images in [0, 1], before normalisation "
            "(drop Normalize from the data set's transform); a nescio.Session takes normalised batches"
        )


def _of_pixels(pixels: np.ndarray[Any, Any]) -> Image.Image:
    check_pixels(pixels)
    if pixels.ndim not in (2, 3):
        raise NotPixels(f"expected one image (H, W), (H, W, C) or (C, H, W), got {pixels.shape}")
    if pixels.ndim == 3 and not channels_last(pixels.shape):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.size == 0:
        raise NotPixels(f"an image of shape {pixels.shape} is empty")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8:
        pixels = (pixels * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def checked(source: Items) -> Items:
    """The source, whose first image is looked at: one mistake in all images is told before the work.

    Raises:
        InputError: it is of no form that is known, or normalised.
    """
    if len(source):
        try:
            source.read(0)
        except NotPixels as e:
            raise InputError(f"{source.name(0)}: {e}") from None
        except (BadImage, OSError):
            pass  # this image alone is bad, as far as we know
    return source


def labels_of(labels: Any, n: int) -> tuple[Labels, list[str] | None]:
    """Class numbers and names of labels that are given beside ``n`` images; unknown where None.

    Raises:
        InputError: they are not as many; or as ``numbered``.
    """
    if labels is None:
        return unlabelled(n), None
    values = to_numpy(labels).tolist() if hasattr(labels, "__array__") else list(labels)
    if len(values) != n:
        raise InputError(
            f"there are {n:,} images but {len(values):,} labels: give one per image, -1 where it is unknown"
        )
    return numbered(values, "the list of labels")
