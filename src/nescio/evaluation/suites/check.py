"""What is wrong with the images of a benchmark: counts, unreadable and repeated ones, and what could give OOD away."""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from nescio.core.progress import progress_bar
from nescio.data.decode import Raw, decode
from nescio.data.loader import default_workers, why_not
from nescio.data.source import Source
from nescio.data.workers import in_order

log = logging.getLogger(__name__)

APART = 1.5
"""Ratio of median sizes, or of shapes, from which a detector may see the camera and not the object."""
MOSTLY = 0.9
"""Share of a set from which it counts as of one format."""
QUALITY_APART = 15
MADE = "none"
"""Format of images that come from no file."""
_BATCH = 64


@dataclass(frozen=True)
class Facts:
    """What there is to know of an image's file: why it is bad, or what it is."""

    bad: str = ""
    digest: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    quality: int | None = None


@dataclass
class Checked:
    """What was found in one set. ``repeats``: images that stand in it more than once, beyond their first place."""

    name: str
    images: int
    expected: int | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)
    repeats: int = 0
    shared: dict[str, int] = field(default_factory=dict)
    """Images that are also in another set, by its name."""
    short: tuple[int, int, int] = (0, 0, 0)
    """Least, median and greatest short side in pixels."""
    aspect: float = 1.0
    """Median of the longer over the shorter side."""
    formats: dict[str, float] = field(default_factory=dict)
    """Shares of the file formats, the most frequent first."""
    quality: int | None = None
    """Median quality of the JPEGs among them, as an encoder would call it."""

    @property
    def format(self) -> str:
        """The format of nearly all, or ``mixed``."""
        name, share = next(iter(self.formats.items()), (MADE, 0.0))
        return name if share >= MOSTLY else "mixed"


def check_sets(
    sources: Mapping[str, Source],
    *,
    expected: Mapping[str, int | None] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[Checked]:
    """Decode every image of every set, and compare the sets with each other by what their images show.

    Two images are the same where all their pixels are, whatever file format holds them.

    Args:
        sources: by name; ``id`` and ``train`` are ID, the others OOD.
        expected: how many images there should be.
        workers: decoding processes; one per core, at most 8, where None.
        progress: show a bar on a terminal.
    """
    found, digests = [], {}
    for name, source in sources.items():
        facts = list(_facts(source, name, workers, progress))
        good = [f for f in facts if not f.bad]
        digests[name] = {f.digest for f in good}
        checked = Checked(name, len(source), (expected or {}).get(name), repeats=len(good) - len(digests[name]))
        checked.bad = [(source.name(i), f.bad) for i, f in enumerate(facts) if f.bad]
        checked.shared = {o: n for o in digests if o != name and (n := len(digests[o] & digests[name]))}
        if good:
            _describe(checked, good)
        found.append(checked)
    return found


def _describe(checked: Checked, good: list[Facts]) -> None:
    short = np.array([min(f.width, f.height) for f in good])
    long = np.array([max(f.width, f.height) for f in good])
    checked.short = (int(short.min()), int(np.median(short)), int(short.max()))
    checked.aspect = float(np.median(long / short))
    counts = Counter(f.format for f in good)
    checked.formats = {name: n / len(good) for name, n in counts.most_common()}
    qualities = [f.quality for f in good if f.quality is not None]
    checked.quality = int(np.median(qualities)) if qualities else None


def warnings(found: list[Checked]) -> list[str]:
    """What a reader of a table over these sets should know, a sentence each."""
    sentences = []
    for c in found:
        if c.expected is not None and c.images != c.expected:
            sentences.append(f"{c.name} has {c.images:,} images; expected {c.expected:,}")
        if c.bad:
            image, reason = c.bad[0]
            sentences.append(f"{c.name}: {len(c.bad):,} images cannot be read, the first is {image}: {reason}")
        if c.repeats:
            sentences.append(f"{c.name} has {c.repeats:,} repeated images")
        sentences += [f"{n:,} images of {c.name} are also in {other}, pixel by pixel" for other, n in c.shared.items()]
    reference = next((c for c in found if c.name == "id"), None)
    if reference is not None and reference.formats:
        for c in (c for c in found if c.formats and c.name not in ("id", "train")):
            sentences += _differences(reference, c)
    return sentences


def _differences(one: Checked, other: Checked) -> Iterator[str]:
    """What tells two sets apart that is not on the images. Images that are made have no such thing."""
    if MADE in (one.format, other.format):
        return
    short, short_too = one.short[1], other.short[1]
    if max(short, short_too) > APART * min(short, short_too):
        sizes = f"{short_too} px on their short side and {one.name} {short}"
        yield f"{other.name} images have {sizes}: after resizing, their sharpness gives them away"
    if max(one.aspect, other.aspect) > APART * min(one.aspect, other.aspect):
        shapes = f"{other.aspect:.2f} : 1 against {one.aspect:.2f} : 1"
        yield f"{other.name} images have a different shape ({shapes}): cropping gives them away"
    lossy = {"JPEG", "mixed"}
    if (one.format in lossy) != (other.format in lossy):
        yield f"{other.name} are {other.format} and {one.name} {one.format}: compression artefacts give them away"
    elif one.quality and other.quality and abs(one.quality - other.quality) >= QUALITY_APART:
        yield f"{other.name} images are JPEG of quality {other.quality} and {one.name} of {one.quality}"


def _inspected(source: Source, number: int, entering: Callable[[int], None]) -> list[Facts]:
    """Facts of a few of a source's images."""
    at = range(number * _BATCH, min((number + 1) * _BATCH, len(source)))
    return [inspect(source, i, entering) for i in at]


def _facts(source: Source, name: str, workers: int | None, progress: bool) -> Iterator[Facts]:
    batches = math.ceil(len(source) / _BATCH)
    with progress_bar(show=progress) as bar:
        task = bar.add_task(name, total=len(source))
        for facts in in_order(partial(_inspected, source), batches, default_workers() if workers is None else workers):
            yield from facts
            bar.advance(task, len(facts))


def inspect(source: Source, i: int, entering: Callable[[int], None] = lambda _: None) -> Facts:
    """Decode image ``i`` and look at its file; ``entering`` as for ``in_order``."""
    try:
        entering(i)
        raw = source.read(i)
        image = decode(raw)
        name, quality = _encoding(raw)
    except Exception as e:  # noqa: BLE001 - whatever one image does, the others go on
        return Facts(bad=why_not(e))
    digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
    return Facts("", digest, image.width, image.height, name, quality)


def _encoding(raw: Raw) -> tuple[str, int | None]:
    """File format, and of a JPEG its quality."""
    if isinstance(raw, Image.Image):
        return MADE, None
    with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else Path(raw)) as file:
        tables = getattr(file, "quantization", None)
        return file.format or "unknown", _quality(next(iter(tables.values()))) if tables else None


def _quality(table: list[int]) -> int:
    """The quality that the common encoders would have made a luminance table of, from its mean.

    They scale the standard's table, whose mean is 57.6, by 50/q below 50 and by 2 - q/50 above.
    """
    scale = sum(table) / len(table) / 57.625
    return round(max(1.0, 50 / scale if scale > 1 else 100 - 50 * scale))
