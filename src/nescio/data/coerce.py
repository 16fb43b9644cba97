"""Images as a caller hands them over: paths, PIL images, arrays, tensors, or several of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nescio.core.errors import BadImage, InputError
from nescio.data.decode import decode
from nescio.data.source import open_source

Given = Any
"""A path (of an image, or of whatever ``open_source`` takes), encoded bytes, a PIL image, an array ``(H, W)``,
``(H, W, C)`` or ``(B, H, W, C)``, a tensor ``(C, H, W)`` or ``(B, C, H, W)``, or an iterable of these; ``C`` is 1, 3
or 4. Arrays and tensors hold uint8, or floats in [0, 1]."""


def pictures(given: Given) -> Iterator[Image.Image]:
    """Each image, decoded, upright and RGB.

    Raises:
        InputError: one is not an image, or not of a form that is known; it is named.
    """
    for number, (name, raw) in enumerate(_each(given)):
        try:
            yield decode(raw)
        except BadImage as e:
            raise InputError(f"{name or f'image {number}'}: {e}") from None


def _each(given: Given) -> Iterator[tuple[str, Any]]:
    if isinstance(given, str | Path):
        source = open_source(given)
        for i in range(len(source)):
            yield source.name(i), source.read(i)
    elif isinstance(given, bytes | Image.Image):
        yield "", given
    elif isinstance(given, Tensor | np.ndarray):
        yield from (("", _of_pixels(pixels)) for pixels in _arrays(given))
    elif isinstance(given, Iterable):
        for one in given:
            yield from _each(one)
    else:
        raise InputError(f"{type(given).__name__} is no image: give a path, a PIL image, an array or a tensor")


def _arrays(given: Tensor | np.ndarray[Any, Any]) -> Iterable[np.ndarray[Any, Any]]:
    """Arrays ``(H, W)`` or ``(H, W, C)``."""
    if isinstance(given, Tensor):
        if given.ndim not in (3, 4):
            raise InputError(f"expected a tensor (C, H, W) or (B, C, H, W), got {tuple(given.shape)}")
        given = given.detach().movedim(-3, -1).cpu().numpy()
    if given.ndim not in (2, 3, 4):
        raise InputError(f"expected an array (H, W), (H, W, C) or (B, H, W, C), got {given.shape}")
    return given if given.ndim == 4 else [given]


def _of_pixels(pixels: np.ndarray[Any, Any]) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise InputError(f"an image of shape {pixels.shape} is neither grey, RGB nor RGBA (H, W[, C])")
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise InputError(f"pixels of type {pixels.dtype}: give uint8, or floats in [0, 1]")
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise InputError(
                f"float pixels from {pixels.min():.3g} to {pixels.max():.3g}: give them in [0, 1], before normalisation"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))
