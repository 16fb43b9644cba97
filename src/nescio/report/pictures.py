"""The images that each detector gets most wrong, as small pictures that the page carries."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
from PIL import Image

from nescio.core.errors import BadImage
from nescio.data.decode import decode
from nescio.data.source import Source
from nescio.evaluation import metrics
from nescio.evaluation.results import Results
from nescio.evaluation.rows import Scored
from nescio.report import words

SHOWN = 8
"""Images of each set for each detector."""
SIDE = 96
"""Pixels of a picture's longer side."""

Place = tuple[str, int]
"""A data set's name and the row of an image in it."""


@dataclass(frozen=True)
class Mistake:
    """An image on the wrong side of the threshold, and its score."""

    place: Place
    score: float


@dataclass(frozen=True)
class Picture:
    """An image as a data address, what it is called, and whether to show its pixels.

    ``label`` is its class and ``taken`` the one that the classifier takes it for, each empty where it is not known.
    """

    source: str
    name: str
    label: str
    taken: str
    tiny: bool


@dataclass
class Album:
    """Pictures, each once, as long as their bytes fit; and the detectors that were to have some that did not.

    Attributes:
        room: bytes that are left.
        pictures: by place, in the order in which they were taken up.
        left_out: detectors whose pictures did not fit.
    """

    room: int
    pictures: dict[Place, Picture] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def numbers(self) -> dict[Place, int]:
        """The picture's number on the page, by place."""
        return {place: i for i, place in enumerate(self.pictures)}


def mistakes(results: Results, detector: str) -> dict[str, list[Mistake]]:
    """The worst mistakes at the threshold that accepts 95 % of ID: rejected images of ``id``, accepted ones of others.

    Sets whose images are not at hand are left out.
    """
    found = {}
    for scored in (results.id_set, *results.ood_sets):
        if scored.source is None:
            continue
        is_id = scored is results.id_set
        scores, rows = scored.scores[detector], scored.rows[detector]
        ids = scores if is_id else results.id_scores(detector, scored.name)
        accepted = scores >= metrics.threshold_at_tpr(ids)
        order = np.argsort(scores if is_id else -scores, kind="stable")[:SHOWN]
        found[scored.name] = [
            Mistake((scored.name, int(rows[i])), float(scores[i])) for i in order if accepted[i] != is_id
        ]
    return found


def with_scores(found: Sequence[Mistake]) -> list[tuple[Mistake, str]]:
    """Each mistake with its score as text, in as many digits as tell these scores apart."""
    digits = words.digits(m.score for m in found)
    return [(m, f"{m.score:.{digits}g}") for m in found]


def gather(results: Results, wrong: Mapping[str, Mapping[str, list[Mistake]]], room: int) -> Album:
    """The pictures of some mistakes, detector after detector as far as there is room.

    Args:
        results: knows the images.
        wrong: mistakes by detector and set; the first detectors come first.
        room: bytes that the pictures may take.
    """
    sets = {s.name: s for s in (results.id_set, *results.ood_sets)}
    wanted = {d: [m.place for found in by_set.values() for m in found] for d, by_set in wrong.items()}
    # in order, since a parquet file is read in blocks
    names = words.class_names(results)
    every = {p: _picture(sets[p[0]], p[1], names) for p in sorted({p for keys in wanted.values() for p in keys})}
    found = {place: picture for place, picture in every.items() if picture is not None}
    album = Album(room)
    for detector, keys in wanted.items():
        if not _take_up(album, found, keys):
            album.left_out.append(detector)
    return album


def _take_up(album: Album, found: Mapping[Place, Picture], keys: Sequence[Place]) -> bool:
    """Add what is missing of these; none of it where it does not fit."""
    new = {place: found[place] for place in keys if place in found and place not in album.pictures}
    needed = sum(len(p.source) + 2 * len(p.name) + 2 * len(p.label + p.taken) + 200 for p in new.values())
    if needed > album.room:
        return False
    album.room -= needed
    album.pictures |= new
    return True


def _picture(scored: Scored, row: int, names: Sequence[str]) -> Picture | None:
    """A picture of an image; None where it cannot be read any more."""
    source = scored.source
    if source is None:
        return None
    try:
        image = decode(source.read(row))
    except (BadImage, OSError):
        return None
    tiny = max(image.size) < SIDE
    image.thumbnail((SIDE, SIDE))
    return Picture(address(image), short_name(source, row), _label(source, row), _taken(scored, row, names), tiny)


def address(image: Image.Image, kind: str = "WEBP") -> str:
    """An image as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def short_name(source: Source, row: int) -> str:
    """The last two parts of what an image is called."""
    return "/".join(PurePath(source.name(row)).parts[-2:])


def _taken(scored: Scored, row: int, names: Sequence[str]) -> str:
    pred = -1 if scored.pred is None else int(scored.pred[row])
    return words.class_name(pred, names) if pred >= 0 else ""


def _label(source: Source, row: int) -> str:
    label = int(source.labels[row])
    return source.classes[label] if source.classes and 0 <= label < len(source.classes) else ""
