"""Preprocessing that a user has as code: a torchvision ``Compose``, or any function from a PIL image to a tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nescio.core.errors import InputError
from nescio.data.transform import Transform

_TRIALS = ((320, 256), (256, 300))
"""Sizes of the images that a function is tried on."""
_SAME = 1e-5
Function = Callable[[Image.Image], Any]


class Preprocess:
    """A function from an RGB PIL image to what the network takes, used where a ``Transform`` is.

    Its results are normalised already, so ``geometry`` does all that it does and ``normalise`` nothing more.

    Args:
        function: PIL image to tensor ``(C, S, S)``, the same each time.
        key: what tells it from others, in the keys of cached features; its repr where None.
        crop: side of the square that the image is resized and cropped to before, where the function keeps its size.
        grey: give it grey images (mode L); by default where its ``Normalize`` has one mean.

    Attributes:
        crop, channels: size ``S`` and number ``C``.
        resize: None: what it does before it crops is not known.
        mean, std: of the ``Normalize`` within it; 0 and 1 where it has none.

    Raises:
        InputError: it cannot be told from others, gives no such tensor, another size for each image, or is random.
    """

    resize: int | None = None

    def __init__(
        self, function: Function, *, key: str | None = None, crop: int | None = None, grey: bool = False
    ) -> None:
        self.function = function
        self._text = _key(function, key) + (f",crop={crop}" if crop else "")
        normalisation = next(_normalisations(function), None)
        mean, std = normalisation or ((0.0,), (1.0,))
        self._is_grey = grey or (normalisation is not None and len(mean) == 1)
        self._square = Transform(crop, mean=mean, std=std, channels=len(mean)) if crop else None
        self.channels, self.crop = self._tried()
        self.mean, self.std = ((v * self.channels if len(v) == 1 else v) for v in (mean, std))

    def _tried(self) -> tuple[int, int]:
        """Channels and size of what it gives."""
        noise = [_noise(size) for size in _TRIALS]
        try:
            found = [self.geometry(image) for image in (*noise, noise[0])]
        except InputError:
            raise
        except Exception as e:
            raise InputError(f"the transform {self} fails on an RGB image: {type(e).__name__}: {e}") from e
        shape = tuple(found[0].shape)
        if found[1].shape != found[0].shape:
            raise InputError(
                f"the transform {self} does not give all images the same size: give the size that the network "
                "sees, as nescio.data.as_transform(function, crop=32)"
            )
        if len(shape) != 3 or shape[1] != shape[2] or shape[0] not in (1, 3):
            raise InputError(f"the transform {self} gives {shape}: expected one square image (3 or 1, S, S)")
        if not torch.equal(found[0], found[2]):
            raise InputError(f"the transform {self} is random: give the one for test images")
        return shape[0], shape[1]

    def geometry(self, image: Image.Image) -> Tensor:
        """An RGB image as the network takes it: float32 ``(channels, crop, crop)``."""
        if self._square is not None:
            image = self._square.cut(image)
        found = self.function(image.convert("L") if self._is_grey else image)
        if not isinstance(found, Tensor):
            raise InputError(f"the transform {self} gives {type(found).__name__}: expected a tensor; add ToTensor()")
        return found.detach().to(torch.float32)

    def normalise(self, images: Tensor) -> Tensor:
        """The images ``(B, C, S, S)`` as they are."""
        return images.to(torch.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of what ``geometry`` gives for one image."""
        return 4 * self.channels * self.crop**2

    def square(self) -> Transform:
        """A transform that only resizes and crops to what this gives."""
        return Transform(self.crop, mean=self.mean, std=self.std, channels=self.channels)

    def __str__(self) -> str:
        return self._text


AnyTransform = Transform | Preprocess


def as_transform(
    transform: str | AnyTransform | Function,
    own: Transform | None = None,
    *,
    key: str | None = None,
    crop: int | None = None,
    channels: int = 3,
) -> AnyTransform:
    """A transform of options as text, or of a function.

    A torchvision ``Compose`` (or preset) of Resize, CenterCrop, ToTensor and Normalize becomes a ``Transform`` that
    gives the same numbers: it can be written to files and exported. Any other function becomes a ``Preprocess``.

    Args:
        transform: what ``Transform.parse`` reads; a transform; or a function from a PIL image to a tensor.
        own: what options replace parts of.
        key: as for ``Preprocess``.
        crop: as for ``Preprocess``.
        channels: what the network takes: 1 for grey images, which a function is then given where it keeps colours.

    Raises:
        InputError: as ``Transform.parse`` or ``Preprocess``.
    """
    if isinstance(transform, str):
        transform = Transform.parse(transform, own)
    if isinstance(transform, Transform | Preprocess):
        return _for_channels(transform, channels)
    if not callable(transform):
        raise InputError(
            f"{type(transform).__name__} is not a transform: give options as text, a Transform or a function"
        )
    # what a known transform is called matters to nobody
    made = Preprocess(transform, key=key or type(transform).__name__, crop=crop)
    grey = channels == 1 and made.channels == 3
    if grey:
        made = Preprocess(transform, key=key or type(transform).__name__, crop=crop, grey=True)
    plain = _plain(transform, made)
    if plain is not None and all(_alike(plain, made, _noise(size)) for size in (*_TRIALS, (made.crop, made.crop))):
        return plain
    return Preprocess(transform, key=key, crop=crop, grey=grey)


def _for_channels(transform: AnyTransform, channels: int) -> AnyTransform:
    """The transform for so many channels: a grey one where it normalises three alike.

    Raises:
        InputError: the network takes grey images, and it normalises the channels each in its own way.
    """
    if channels >= transform.channels:
        return transform
    if isinstance(transform, Preprocess) or len({*transform.mean}) + len({*transform.std}) > 2:
        raise InputError(
            f"the network takes grey images, but the transform {transform} gives {transform.channels} channels: give "
            "a transform for grey images, as nescio.Transform(…, mean=0.5, std=0.5, channels=1)"
        )
    return dataclasses.replace(transform, channels=channels)


def _plain(function: Function, made: Preprocess) -> Transform | None:
    """The transform that a function seems to be, by the steps that it names."""
    sizes, modes = {}, []
    for step in _steps(function):
        for attribute, of in (("resize_size", "resize"), ("crop_size", "crop"), ("size", type(step).__name__)):
            size = getattr(step, attribute, None)
            if size is not None:
                sizes[of.lower()] = size[0] if isinstance(size, list | tuple) else size
        modes.append(getattr(getattr(step, "interpolation", None), "value", None))
    try:
        return Transform(
            crop=made.crop,
            resize=sizes.get("resize"),
            interpolation=next(filter(None, modes), "bilinear"),
            mean=made.mean,
            std=made.std,
            channels=made.channels,
        )
    except (InputError, TypeError):
        return None


def _alike(one: Transform, other: Preprocess, image: Image.Image) -> bool:
    expected = other.geometry(image)
    return bool((one.normalise(one.geometry(image)[None])[0] - expected).abs().max() < _SAME)


def _steps(function: Any) -> Iterator[Any]:
    """The steps of a composed function, or the function."""
    steps = function if isinstance(function, torch.nn.Sequential) else getattr(function, "transforms", None)
    if steps is None:
        yield function
        return
    for step in steps:
        yield from _steps(step)


def _normalisations(function: Any) -> Iterator[tuple[tuple[float, ...], tuple[float, ...]]]:
    for step in _steps(function):
        mean, std = getattr(step, "mean", None), getattr(step, "std", None)
        if not (mean is None or std is None or callable(mean) or callable(std)):
            yield tuple(np.atleast_1d(mean).tolist()), tuple(np.atleast_1d(std).tolist())


def _key(function: Function, key: str | None) -> str:
    text = repr(function) if key is None else key
    if " at 0x" in text:
        raise InputError(
            f"the transform {text} has no stable name: give one, as nescio.data.as_transform(function, "
            "key='mine-1'), and another when the function changes"
        )
    return " ".join(text.split())


def _noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
