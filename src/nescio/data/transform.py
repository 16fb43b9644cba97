"""The test transform of a model, as a value that prints, parses and hashes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from nescio.core.errors import InputError, TooLarge, nearest
from nescio.data.decode import MAX_PIXELS

INTERPOLATIONS = {m.name.lower(): m for m in (Resampling.BILINEAR, Resampling.BICUBIC, Resampling.NEAREST)}
MOST_SIDE = 4096
"""Pixels of ``crop`` and ``resize``."""
Triple = tuple[float, float, float]


NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Means and standard deviations that have a name."""


def triple(text: str) -> Triple:
    """One number for all channels, or three as ``r/g/b`` or ``r,g,b``. Raises ValueError where it is neither."""
    numbers = [float(v) for v in text.replace(",", "/").split("/")]
    r, g, b = numbers * 3 if len(numbers) == 1 else numbers
    return r, g, b


@dataclass(frozen=True)
class Transform:
    """Resize the short side, crop the centre, scale to [0, 1], normalise by channel.

    The geometry runs on each decoded image and yields uint8; the normalisation runs on the batch, on the device.

    Attributes:
        crop: side of the square that the network sees, in pixels.
        resize: length of the short side after (antialiased) resizing, in pixels; ``crop`` where None.
        interpolation: ``bilinear``, ``bicubic`` or ``nearest``.
        mean, std: per channel, for pixels in [0, 1]; one number counts for all channels.
        channels: 3 for RGB, 1 where the network sees grey images; by default 1 where ``mean`` is a list of one number.
    """

    crop: int
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = NORMALISATIONS["imagenet"][0]
    std: tuple[float, ...] = NORMALISATIONS["imagenet"][1]
    channels: int = 0

    def __post_init__(self) -> None:
        if not self.channels:
            object.__setattr__(self, "channels", 1 if np.shape(self.mean) == (1,) else 3)
        if self.channels not in (1, 3):
            raise InputError(f"transform has channels={self.channels}: give 3 for RGB, 1 for grey images")
        for key in ("mean", "std"):
            values = tuple(np.atleast_1d(getattr(self, key)).tolist())
            if len(values) != self.channels and len(set(values)) != 1:
                raise InputError(
                    f"transform has channels={self.channels}, but {key}={'/'.join(f'{v:g}' for v in values)}: give "
                    f"{'one number, for grey images' if self.channels == 1 else 'one number, or three'}"
                )
            object.__setattr__(self, key, values if len(values) == self.channels else values[:1] * self.channels)
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"unknown interpolation '{self.interpolation}'{nearest(self.interpolation, INTERPOLATIONS)}"
            )
        if self.crop < 1 or (self.resize is not None and self.resize < self.crop):
            raise InputError(f"transform needs 1 <= crop <= resize, got crop={self.crop}, resize={self.resize}")
        if max(self.crop, self.resize or 0) > MOST_SIDE:
            raise InputError(
                f"transform takes crop and resize up to {MOST_SIDE:,} pixels, got crop={self.crop}, "
                f"resize={self.resize}: a batch of larger images takes gigabytes"
            )
        if not all(0 < s < float("inf") for s in self.std) or not all(abs(m) < float("inf") for m in self.mean):
            raise InputError(f"mean must be finite and std above 0 in every channel, got {self.mean} and {self.std}")

    def geometry(self, image: Image.Image) -> Tensor:
        """An RGB image as the network will see it: uint8 ``(channels, crop, crop)``."""
        pixels = torch.from_numpy(np.array(self.cut(image)))
        return pixels.view(self.crop, self.crop, self.channels).permute(2, 0, 1)

    def cut(self, image: Image.Image) -> Image.Image:
        """The resized centre of an RGB image, ``crop`` pixels wide and high; grey where ``channels`` is 1.

        The pixels are those of torchvision's ``resize`` and ``center_crop``.
        """
        short, long = sorted(image.size)
        side = self.resize or self.crop
        if side**2 * long / short > MAX_PIXELS:
            raise TooLarge(
                f"{image.width} × {image.height} pixels: after resizing, more than the limit of {MAX_PIXELS:,}"
            )
        image = image.convert("L") if self.channels == 1 else image
        length = int(side * long / short)
        size = (side, length) if image.width <= image.height else (length, side)
        if size != image.size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        if size == (self.crop, self.crop):
            return image
        left, top = (round((n - self.crop) / 2) for n in size)
        return image.crop((left, top, left + self.crop, top + self.crop))

    def normalise(self, images: Tensor) -> Tensor:
        """Uint8 ``(B, C, H, W)`` to normalised float32 on the same device, in the same order in memory."""
        if images.device.type == "cpu" and images.is_contiguous(memory_format=torch.channels_last):
            return self._normalised_rows(images)
        # made on a GPU, they would wait there for all that it was asked to compute before
        mean, std = (torch.tensor(v)[:, None, None].to(images.device, non_blocking=True) for v in (self.mean, self.std))
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def _normalised_rows(self, images: Tensor) -> Tensor:
        """The same numbers of images with channels last, by one thread: several would wait for cores that decode."""
        pixels = images.permute(0, 2, 3, 1).numpy()
        rows = pixels.reshape(len(pixels), pixels.shape[1], -1)
        mean, std = (np.tile(np.array(v, dtype=np.float32), pixels.shape[2]) for v in (self.mean, self.std))
        values = np.divide(rows, np.float32(255), dtype=np.float32)
        values -= mean
        values /= std
        return torch.from_numpy(values.reshape(pixels.shape)).permute(0, 3, 1, 2)

    @property
    def nbytes(self) -> int:
        """Bytes of what ``geometry`` gives for one image."""
        return self.channels * self.crop**2

    def at(self, size: int) -> Self:
        """The transform for another crop size, in pixels, that resizes in the same proportion."""
        resize = None if self.resize is None else round(size * self.resize / self.crop)
        return dataclasses.replace(self, crop=size, resize=resize)

    def square(self) -> Self:
        """The transform that resizes as this one and crops nothing off a square."""
        side = self.resize or self.crop
        return dataclasses.replace(self, crop=side, resize=side)

    def __str__(self) -> str:
        def numbers(values: Sequence[float]) -> str:
            return "/".join(f"{v:g}" if float(f"{v:g}") == v else repr(v) for v in values)

        return (
            f"resize={self.resize or self.crop},crop={self.crop},interpolation={self.interpolation},"
            f"mean={numbers(self.mean)},std={numbers(self.std)}" + f",channels={self.channels}" * (self.channels != 3)
        )

    @classmethod
    def parse(cls, text: str, default: Self | None = None) -> Self:
        """Read ``resize=256,crop=224,interpolation=bicubic,mean=0.485,0.456,0.406,std=0.229/0.224/0.225``.

        ``mean=NAME``, one of ``NORMALISATIONS``, stands for that mean and, unless std is given, its std; ``std=NAME``
        for the std alone. What is absent comes from ``default``.

        Raises:
            InputError: an option is unknown, a value does not fit, or there is no crop and no default.
        """
        items = _items(text, [f.name for f in dataclasses.fields(cls)])
        changes: dict[str, object] = {key: _value(key, value) for key, value in items.items()}
        if items.get("mean") in NORMALISATIONS:
            changes.setdefault("std", NORMALISATIONS[items["mean"]][1])
        if default is not None:
            if "crop" in changes and "resize" not in changes:
                changes["resize"] = None
            return dataclasses.replace(default, **changes)  # type: ignore[arg-type]
        if "crop" not in changes:
            raise InputError(
                f"transform '{text}' has no crop=PIXELS, and the model has no transform of its own: add crop="
            )
        return cls(**changes)  # type: ignore[arg-type]


def _items(text: str, known: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` between commas; numbers without a key belong to the value before them: ``mean=0.5,0.4,0.3``."""
    items: dict[str, str] = {}
    key = ""
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and key in ("mean", "std"):
            items[key] += f",{name}"
            continue
        key = name
        if key not in known:
            raise InputError(f"unknown transform option '{key}'{nearest(key, known)}")
        if key in items:
            raise InputError(f"transform '{text}' has {key} twice; keep one")
        items[key] = value
    return items


def _value(key: str, text: str) -> object:
    try:
        if key in ("crop", "resize", "channels"):
            return int(text)
        if key in ("mean", "std"):
            return NORMALISATIONS[text][key == "std"] if text in NORMALISATIONS else triple(text)
    except ValueError:
        if key in ("crop", "resize", "channels"):
            unit = "" if key == "channels" else " of pixels"
            raise InputError(f"transform option {key}={text} is not a number{unit}") from None
        raise InputError(
            f"transform option {key}={text} cannot be read; write one number, three ({key}=0.485,0.456,0.406), or one "
            f"of the names {', '.join(NORMALISATIONS)}"
        ) from None
    return text
