"""Bytes to RGB, the way a person sees the image, or a reason why not."""

from __future__ import annotations

import functools
import io
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nescio.core.errors import BadImage, TooLarge, UnknownFormat

MAX_PIXELS = 100_000_000
"""Larger images are recorded as bad: a decompression bomb, or a scan that no classifier was trained for."""

MAX_BYTES = 1 << 28
"""Larger encoded images are recorded as bad before they are read or unpacked: 256 MiB."""

RATIO = 20
"""What unpacks to more than that many times its size, and is large, holds no images: these hardly compress."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "PCX", "QOI", "SGI", "TGA")
"""What is read, by Pillow's names. Others run another program on the file (EPS), decode an image before they tell its
size (ICO, ICNS), or hardly hold photographs."""

NO_MEMORY = "reading it takes more memory than the process is allowed"
_ROWS = 256

Raw = bytes | Path | Image.Image
"""An image as a source hands it over."""


def decode(raw: Raw, *, max_pixels: int | None = None) -> Image.Image:
    """An 8-bit RGB image, upright.

    Transparency is laid on white, palettes and CMYK are resolved, 16-bit grey is scaled (not clipped) to 8 bits,
    the EXIF orientation is applied; of an animation the first frame is taken.

    Args:
        raw: the image.
        max_pixels: the most it may have; ``MAX_PIXELS`` by default.

    Raises:
        UnknownFormat: the data are no image in one of ``FORMATS``.
        TooLarge: it has too many pixels, or more than ``MAX_BYTES``.
        BadImage: the data are empty, truncated or corrupt, or a path is not that of a file.
    """
    if isinstance(raw, Image.Image):
        return _to_rgb(raw)
    most = MAX_PIXELS if max_pixels is None else max_pixels
    size = len(raw) if isinstance(raw, bytes) else _file_size(raw)
    if not size:
        raise BadImage("zero bytes")
    check_bytes(size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warnings on size and metadata: size is checked below
            with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw, formats=_formats()) as image:
                if image.width * image.height > most:
                    raise TooLarge(f"{image.width} × {image.height} pixels, above the limit of {most:,}")
                image.load()
                return _to_rgb(image)
    except BadImage:
        raise
    except MemoryError:
        raise BadImage(NO_MEMORY) from None
    except UnidentifiedImageError:
        raise UnknownFormat("not an image in a known format") from None
    except Image.DecompressionBombError as e:  # Pillow's own limit, where a caller's is higher
        raise TooLarge(str(e)) from None
    except Exception as e:  # noqa: BLE001 - Pillow's decoders raise nearly anything on damaged data
        raise BadImage(f"{type(e).__name__}: {e}") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_bytes(size: int) -> None:
    """Refuse an encoded image of more than ``MAX_BYTES``, with TooLarge, before it is read."""
    if size > MAX_BYTES:
        raise TooLarge(f"{size:,} bytes, above the limit of {MAX_BYTES:,}")


def _file_size(path: Path) -> int:
    try:
        found = path.stat()
    except OSError as e:
        raise BadImage(f"{type(e).__name__}: {e}") from None
    if not stat.S_ISREG(found.st_mode):  # a pipe would never end
        raise BadImage("not a file, but a pipe, device or folder")
    return found.st_size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.getexif():
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    stored = np.asarray(image)
    pixels = np.empty(stored.shape, dtype=np.uint8)
    blocks = [slice(at, at + _ROWS) for at in range(0, len(stored), _ROWS)]  # a large one in doubles takes gigabytes
    top = max(float(stored[p].max(initial=0, where=np.isfinite(stored[p]))) for p in blocks)
    if image.mode == "F" and top <= 1:
        white = 1.0
    else:
        white = 255.0 if top <= 255 and not image.mode.startswith("I;16") else 65535.0
    for p in blocks:
        scaled = np.nan_to_num(stored[p].astype(np.float64) / white * 255).clip(0, 255)
        pixels[p] = scaled.round().astype(np.uint8)
    return Image.fromarray(pixels)
