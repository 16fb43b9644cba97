"""Images built from what installed packages carry: digits on natural backdrops, and four kinds of OOD image.

ID are scikit-learn's handwritten digits (8 × 8), coloured, scaled and moved over crops of the photographs that
scikit-image and scikit-learn ship. OOD are discs, rectangles, triangles and stars, coarsened and pasted like the
digits; the backdrops alone; noise with the colours of a photograph; and letters and signs from matplotlib's fonts,
coarsened and pasted like the digits. The letters are a near set: they are made of the digits' strokes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nescio.core.errors import InputError
from nescio.core.files import make_folder, whole
from nescio.data.formats.parquet import write_parquet

SIDE = 32
_GLYPHS = "AEFGHJKMNPRTUVWXY&@#%?$€ΔΨΩλξЖЯ"
_FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")
_PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "rocket")
Array = np.ndarray[Any, Any]


def write_embedded(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write ``train``, ``id`` and four OOD sets as parquet in the Hugging Face image schema.

    Returns:
        the files by name: ``train``, ``id``, ``shapes``, ``backdrops``, ``noise`` and the near set ``glyphs``.

    Raises:
        InputError: scikit-learn or scikit-image is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the quickstart needs an extra: pip install 'nescio[quickstart]'") from None
    rng = np.random.default_rng(seed)
    photos = _photos()
    digits, labels = load_digits(return_X_y=True)
    strokes = [d.reshape(8, 8) / 16 for d in digits]
    order = rng.permutation(len(strokes))
    fit, held_out = order[:1300], order[1300:]
    glyphs = list(_glyph_strokes())

    def pasted(pool: list[Array], picks: Iterable[int], *, test: bool) -> list[Image.Image]:
        return [_paste(rng, pool[i], _backdrop(rng, photos, test=test)) for i in picks]

    train = rng.choice(fit, 12000)
    test = rng.choice(held_out, 1000)
    sets = {
        "train": (pasted(strokes, train, test=False), labels[train]),
        "id": (pasted(strokes, test, test=True), labels[test]),
        "glyphs": (pasted(glyphs, rng.integers(len(glyphs), size=1000), test=True), None),
        "backdrops": ([Image.fromarray(_backdrop(rng, photos, test=True)) for _ in range(1000)], None),
        "noise": ([_noise(rng, _backdrop(rng, photos, test=True)) for _ in range(1000)], None),
        "shapes": (pasted([_shape(rng) for _ in range(1000)], range(1000), test=True), None),
    }
    make_folder(folder)
    paths = {name: folder / f"{name}.parquet" for name in sets}
    for name, (images, classes) in sets.items():
        with whole(paths[name]) as partial:
            write_parquet(partial, images, classes)
    return paths


def _photos() -> list[Array]:
    import skimage
    from sklearn.datasets import load_sample_images

    photos = [getattr(skimage.data, name)() for name in _PHOTOS] + list(load_sample_images().images)
    return [np.stack([p] * 3, axis=2) if p.ndim == 2 else p[:, :, :3] for p in photos]


def _backdrop(rng: np.random.Generator, photos: list[Array], *, test: bool) -> Array:
    """A square crop of a photograph at 32 pixels, dark ones darkened and bright ones brightened.

    Training crops come from the left 60 % of each photograph, test crops from the rest.
    """
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(SIDE, 120))
    height, width = photo.shape[:2]
    border = int(width * 0.6)
    left, right = (border, width) if test else (0, border)
    y, x = rng.integers(0, height - side + 1), rng.integers(left, right - side + 1)
    crop = Image.fromarray(photo[y : y + side, x : x + side]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = np.asarray(crop) * 0.75
    return (values if values.mean() < 96 else values + 64).astype(np.uint8)


def _paste(rng: np.random.Generator, stroke: Array, backdrop: Array) -> Image.Image:
    """Blend a stroke mask in [0, 1], 18 to 29 pixels large, over a backdrop in a colour that stands out from it."""
    side = int(rng.integers(18, 30))
    mask = Image.fromarray((stroke * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    y, x = rng.integers(0, SIDE - side + 1, size=2)
    alpha = np.zeros((SIDE, SIDE, 1))
    alpha[y : y + side, x : x + side, 0] = (np.asarray(mask) / 255 * 1.3).clip(0, 1)
    colour = rng.uniform(190, 255, 3) if backdrop.mean() < 128 else rng.uniform(0, 65, 3)
    return Image.fromarray((backdrop * (1 - alpha) + colour * alpha).astype(np.uint8))


def _glyph_strokes() -> Iterable[Array]:
    """Letters and signs as 8 × 8 masks, filled to the frame as the digits are."""
    from matplotlib import font_manager

    for family in _FONTS:
        font = ImageFont.truetype(font_manager.findfont(family), 56)
        for glyph in _GLYPHS:
            canvas = Image.new("L", (96, 96))
            ImageDraw.Draw(canvas).text((16, 12), glyph, fill=255, font=font)
            box = canvas.getbbox()
            if box:
                left, top, right, bottom = box
                side = max(right - left, bottom - top)
                square = Image.new("L", (side, side))
                square.paste(canvas.crop(box), ((side - right + left) // 2, (side - bottom + top) // 2))
                yield np.asarray(square.resize((8, 8), Image.Resampling.BOX)) / 255


def _shape(rng: np.random.Generator) -> Array:
    """A disc, rectangle, triangle or star, turned by any angle, as an 8 × 8 mask."""
    canvas = Image.new("L", (64, 64))
    drawn = ImageDraw.Draw(canvas)
    kind = rng.integers(4)
    if kind == 0:
        drawn.ellipse((8, 8, 56, 56), fill=255)
    elif kind == 1:
        drawn.rectangle((8, int(rng.integers(8, 24)), 56, 56), fill=255)
    elif kind == 2:
        drawn.polygon([(32, 6), (6, 56), (58, 56)], fill=255)
    else:
        reach = np.where(np.arange(10) % 2, 26, 12)
        angle = np.arange(10) * np.pi / 5
        points = np.stack([32 + reach * np.cos(angle), 32 + reach * np.sin(angle)], axis=1)
        drawn.polygon([(float(x), float(y)) for x, y in points], fill=255)
    turned = canvas.rotate(float(rng.uniform(0, 360)), Image.Resampling.BILINEAR)
    return np.asarray(turned.resize((8, 8), Image.Resampling.BOX)) / 255


def _noise(rng: np.random.Generator, like: Array) -> Image.Image:
    """Gaussian noise with the mean and deviation of a backdrop's channels."""
    mean, std = like.mean(axis=(0, 1)), like.std(axis=(0, 1)) + 8
    return Image.fromarray(rng.normal(mean, std, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8))
