"""Microseconds of CPU that one image takes before the network sees it: decoding, resizing and cropping, transport.

Other readers stand beside ours where they are installed: ``torchvision.io``, ``simplejpeg``, and Pillow's ``draft``,
which decodes a JPEG at an eighth, a quarter or half of its size. Their pixels are compared with ours after the crop.

    python benchmarks/decoding.py [--rounds N]
"""

from __future__ import annotations

import importlib.util
import io
import resource
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from _common import data, machine, parser
from nescio import Transform, open_source
from nescio.data.decode import decode
from nescio.data.loader import read_batches
from nescio.data.source import as_source

Pixels = Callable[[bytes], np.ndarray]
BATCH, COUNT = 32, 4096


def cpu() -> float:
    """Seconds of CPU of this process and of its children that ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def encoded(size: tuple[int, int], kind: str, count: int) -> list[bytes]:
    """Photographs at a size, encoded as ``kind``."""
    source, found = open_source(data("imagenet-sample/test")), []
    for i in range(count):
        out = io.BytesIO()
        decode(source.read(i)).resize(size, Image.Resampling.BICUBIC).save(out, kind, quality=90)
        found.append(out.getvalue())
    return found


def with_draft(transform: Transform) -> Pixels:
    """Ours, from a JPEG that is decoded at a reduced size."""

    def pixels(raw: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(raw)) as image:
            side = transform.resize or transform.crop
            image.draft("RGB", (side, side))
            return np.asarray(transform.cut(image.convert("RGB")))

    return pixels


def by_torchvision(transform: Transform) -> Pixels:
    """``torchvision.io`` decodes; the rest is ours."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def pixels(raw: bytes) -> np.ndarray:
        found = decode_jpeg(torch.frombuffer(bytearray(raw), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return np.asarray(transform.cut(Image.fromarray(found.permute(1, 2, 0).contiguous().numpy())))

    return pixels


def by_simplejpeg(transform: Transform) -> Pixels:
    """``simplejpeg`` (libjpeg-turbo) decodes; the rest is ours."""
    import simplejpeg

    return lambda raw: np.asarray(transform.cut(Image.fromarray(simplejpeg.decode_jpeg(raw))))


def microseconds(rounds: int, images: Sequence[bytes], read: Callable[[bytes], object]) -> float:
    """CPU microseconds an image, the median of rounds."""
    found = []
    for _ in range(rounds + 1):
        start = cpu()
        for raw in images:
            read(raw)
        found.append(1e6 * (cpu() - start) / len(images))
    return statistics.median(found[1:])


def transport(transform: Transform, rounds: int) -> float:
    """CPU microseconds an image more where two processes hand over decoded images than where this one reads them."""
    one = Image.new("RGB", (transform.crop, transform.crop))
    source, found = as_source([one] * COUNT), []
    for _ in range(rounds):
        took = []
        for workers in (0, 2):
            start = cpu()
            for _ in read_batches(source, transform, 0, BATCH, workers):
                pass
            took.append(cpu() - start)
        found.append(1e6 * (took[1] - took[0]) / COUNT)
    return statistics.median(found)


def row(name: str, images: Sequence[bytes], transform: Transform, rounds: int) -> None:
    """Print what one kind of image takes."""

    def ours(raw: bytes) -> np.ndarray:
        return np.asarray(transform.cut(decode(raw)))

    decoding = microseconds(rounds, images, decode)
    whole = microseconds(rounds, images, lambda raw: transform.geometry(decode(raw)))
    print(
        f"{name:<22} decode {decoding:7.0f}   resize and crop {whole - decoding:6.0f}   "
        f"transport {transport(transform, rounds):6.0f}"
    )
    if images[0][:2] != b"\xff\xd8":  # no JPEG
        return
    others = {"draft": with_draft(transform), "torchvision.io": by_torchvision(transform)}
    if importlib.util.find_spec("simplejpeg"):
        others["simplejpeg"] = by_simplejpeg(transform)
    for other, read in others.items():
        off = [np.abs(read(raw).astype(int) - ours(raw).astype(int)) for raw in images]
        print(
            f"  {other:<20} {microseconds(rounds, images, read) / whole:5.2f} × ours, pixels differ by "
            f"{np.mean([d.mean() for d in off]):.2f} on average, {max(d.max() for d in off)} at most"
        )


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args().rounds
    torch.set_num_threads(1)
    print(f"microseconds of CPU an image, batches of {BATCH}; {machine()}")
    source = open_source(data("cifar10/test"))
    imagenet = Transform(224, resize=256)
    row("32 × 32 WebP", [source.read(i) for i in range(256)], Transform(32), rounds)
    row("224 × 224 JPEG", encoded((224, 224), "JPEG", 64), Transform(224), rounds)
    row("500 × 375 JPEG", encoded((500, 375), "JPEG", 64), imagenet, rounds)
    row("2048 × 1536 JPEG", encoded((2048, 1536), "JPEG", 8), imagenet, rounds)


if __name__ == "__main__":
    main()
