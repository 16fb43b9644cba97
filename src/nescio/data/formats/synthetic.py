"""Images of noise, drawn anew from their number each time they are read."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt
from PIL import Image

from nescio.core.errors import InputError, check_at_least
from nescio.core.options import Optioned, parse_named
from nescio.data.hashing import combine
from nescio.data.registry import register
from nescio.data.source import Labels, unlabelled
from nescio.data.transform import triple

Array = npt.NDArray[np.float64]
LEVELS = 255


class Noise(Optioned):
    """What the pixels are drawn from, independently of each other and in each channel.

    Args:
        images: how many.
        size: their side in pixels. The side that the network sees gives noise that no resizing smooths.
        seed: another one gives other images.
    """

    kind = "noise"

    def __init__(self, *, images: int = 10_000, size: int = 224, seed: int = 0) -> None:
        self.images = check_at_least("images", images, 1)
        self.size = check_at_least("size", size, 1)
        self.seed = check_at_least("seed", seed, 0)

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Array:
        """Pixels ``(size, size, 3)``, black at 0 and white at 1."""


class Uniform(Noise):
    """Every colour alike."""

    name = "uniform"

    def draw(self, rng: np.random.Generator) -> Array:
        """Pixels in [0, 1)."""
        return rng.random((self.size, self.size, 3))


class Gaussian(Noise):
    """Normal pixels of a mean and a standard deviation (one number, or three as r/g/b), for black at 0 and white at 1.

    With a model's own normalisation, its network sees N(0, 1), as far as an 8-bit image can show it: what is darker
    than black or brighter than white is cut off.
    """

    name = "gaussian"

    def __init__(
        self, *, images: int = 10_000, size: int = 224, seed: int = 0, mean: str = "0.5", std: str = "0.25"
    ) -> None:
        super().__init__(images=images, size=size, seed=seed)
        self.mean, self.std = mean, std
        try:
            self._mean, self._std = triple(mean), triple(std)
        except ValueError:
            raise InputError(f"noise has mean={mean}, std={std}: give one number, or three as r/g/b") from None
        if not all(0 < s < float("inf") for s in self._std) or not all(abs(m) < float("inf") for m in self._mean):
            raise InputError(f"noise has mean={mean}, std={std}: the mean must be finite and std above 0")

    def draw(self, rng: np.random.Generator) -> Array:
        """Pixels of any value."""
        return rng.standard_normal((self.size, self.size, 3)) * self._std + self._mean


KINDS: dict[str, type[Noise]] = {noise.name: noise for noise in (Gaussian, Uniform)}


class NoiseSource:
    """A source of noise.

    >>> NoiseSource.parse("gaussian:size=32,images=2").name(1)
    'noise:gaussian:images=2,size=32[1]'
    """

    classes: list[str] | None = None

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.labels: Labels = unlabelled(noise.images)

    @classmethod
    def parse(cls, text: str) -> NoiseSource:
        """From ``gaussian`` or ``uniform``, with options.

        Raises:
            InputError: no such noise or option, or a value does not fit.
        """
        return cls(parse_named(text, KINDS))

    def __len__(self) -> int:
        return self.noise.images

    def name(self, i: int) -> str:
        """The noise and the number."""
        return f"noise:{self.noise!r}[{i}]"

    def read(self, i: int) -> Image.Image:
        """Image ``i``."""
        pixels = self.noise.draw(np.random.default_rng([self.noise.seed, i]))
        return Image.fromarray((pixels * LEVELS).round().clip(0, LEVELS).astype(np.uint8))

    @property
    def identity(self) -> str:
        """Of all that the images follow from."""
        return combine("noise", self.noise.name, *(f"{k}={v}" for k, v in self.noise.settings().items()))

    @property
    def stamp(self) -> str:
        """Of the same."""
        return self.identity


register("noise:")(NoiseSource.parse)
