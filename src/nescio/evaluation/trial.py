"""A first look: what a network says of a few pictures, with no training image and no OOD image at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from nescio.core.detector import AnyDetector, Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.spec import all_specs
from nescio.data.source import Rows, Source, open_sources
from nescio.evaluation.proxies import proxy_source
from nescio.models import Classifier
from nescio.run.passes import PLAIN, check_model
from nescio.run.session import Session, as_session

DETECTORS = ("msp", "gen", "energy")
"""None of them is fitted on images."""
STAND_INS = ("noise", "pixels", "tiles")
EACH = 20
"""Stand-ins of each kind."""
BAR = 0.9
"""Share of the stand-ins that a picture must score above."""
MOST = 200
"""Pictures that are looked at."""
TOP = 3
NEEDS = ("nothing more", "training images", "training images with labels")
"""What detectors need beside the network."""


@dataclass(frozen=True)
class Look:
    """What is found on one picture.

    Attributes:
        image: its name.
        row: its position among the pictures.
        error: why it cannot be read; the rest is then empty.
        nearest: the classes with the highest probabilities, each with its probability, a share in [0, 1].
        above: by detector, the share of the stand-ins that score lower than the picture.
        accepted: whether the first detector scores it above ``BAR`` of the stand-ins.
    """

    image: str
    row: int
    error: str = ""
    nearest: tuple[tuple[str, float], ...] = ()
    above: dict[str, float] | None = None
    accepted: bool = False


@dataclass(frozen=True)
class Trial:
    """The looks at all pictures, and which detectors this network could serve.

    Attributes:
        model: the network's name.
        looks: in the order of the pictures.
        detectors: the names of those that scored them; the first gives the verdicts.
        stand_ins: how many there were.
        serving: detectors by what they need: nothing more, training images, or labelled training images.
        refused: detectors that the network cannot serve, by the reason.
        source: the pictures.
    """

    model: str
    looks: list[Look]
    detectors: tuple[str, ...]
    stand_ins: int
    serving: dict[str, list[str]]
    refused: dict[str, list[str]]
    source: Source

    @property
    def basis(self) -> str:
        """What the verdicts rest on, in words."""
        return (
            f"A picture is accepted where {self.detectors[0]} scores it above {BAR:.0%} of {self.stand_ins} stand-ins: "
            "noise, and your pictures with their pixels or tiles shuffled. This promises nothing about real pictures "
            "of other things. nescio fit makes a threshold with a promise from held-out images of your classes."
        )

    def table(self) -> Table:
        """A row for each picture, for a terminal."""
        table = Table()
        table.add_column("image", overflow="fold")
        table.add_column("verdict")
        table.add_column("nearest classes")
        for name in self.detectors:
            table.add_column(f"{name}: above", justify="right")
        for look in self.looks:
            if look.error:
                table.add_row(look.image, Text(f"unreadable: {look.error}", "yellow"))
                continue
            verdict = Text("ACCEPTED", "green") if look.accepted else Text("I do not know", "red")
            classes = ", ".join(f"{name} {p:.0%}" for name, p in look.nearest)
            above = [f"{(look.above or {})[name]:.0%}" for name in self.detectors]
            table.add_row(look.image, verdict, classes, *above)
        return table


def trial(
    session: Session | Any, images: Sequence[Any], *, detectors: AnyDetector | Sequence[AnyDetector] = DETECTORS
) -> Trial:
    """Look at pictures with detectors that need no training images.

    Args:
        session: the network and how it is run; or a classifier, a network or a name.
        images: names of images or sets of them, as ``open_source`` takes them.
        detectors: the first one gives the verdicts.

    Raises:
        InputError: there are too many pictures, none can be read, or a detector is fitted on training images.
    """
    session, source = as_session(session), open_sources(images)
    if len(source) > MOST:
        raise InputError(
            f"{len(source):,} pictures are too many for one page, which holds {MOST}; 'IMAGES[~{MOST}]' takes any "
            f"{MOST}"
        )
    found = session.detectors(detectors)
    for name, detector in found.items():
        if detector.needs.fitting:
            raise InputError(
                f"detector '{name}' is fitted on training images, and there are none here; give one that is not "
                f"({', '.join(DETECTORS)}), or training images to nescio bench or nescio fit"
            )
    classifier = session.classifier
    session.fit(found)
    scores = session.scores(found, source)
    rows = scores.features.get(PLAIN.key) or session.read(source, PLAIN, {}, "images")
    cycle = np.resize(rows.positions, EACH)  # of few pictures, each is shuffled several times, each time anew
    stand_ins = {kind: proxy_source(kind, Rows(source, cycle.tolist()), classifier) for kind in STAND_INS}
    others = [session.scores(found, images, title=kind) for kind, images in stand_ins.items()]
    above = {}
    for name in found:
        lower = np.sort(np.concatenate([s.usable[name] for s in others]))
        above[name] = np.searchsorted(lower, scores[name]) / len(lower)
    serving, refused = served_by(classifier)
    looks = _looks(source, rows, classifier, above)
    return Trial(classifier.name, looks, tuple(found), len(lower), serving, refused, source)


def _looks(source: Source, rows: FeatureSet, classifier: Classifier, above: dict[str, Any]) -> list[Look]:
    record, names = rows.record(), classifier.classes
    top = record.logits.softmax(dim=1).topk(min(TOP, record.logits.shape[1]))
    at = {int(row): i for i, row in enumerate(rows.positions)}
    bad = {row: why for row, _, why in rows.skipped}
    first = next(iter(above))
    looks = []
    for row in range(len(source)):
        if row not in at:
            looks.append(Look(source.name(row), row, error=bad.get(row, "it cannot be read")))
            continue
        pairs = zip(top.indices[at[row]].tolist(), top.values[at[row]].tolist(), strict=True)
        nearest = tuple((names[c] if names else f"class {c}", p) for c, p in pairs)
        shares = {name: float(values[row]) for name, values in above.items()}
        looks.append(Look(source.name(row), row, "", nearest, shares, shares[first] > BAR))
    return looks


def served_by(classifier: Classifier) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Which detectors a network can serve, by what they need beside it; and those that it cannot, by the reason."""
    serving: dict[str, list[str]] = {need: [] for need in NEEDS}
    refused: dict[str, list[str]] = {}
    for spec in all_specs():
        detector = Detector(spec, *classifier.published)
        try:
            check_model(detector, classifier)
        except InputError as e:
            refused.setdefault(str(e), []).append(spec)
        else:
            serving[_need(detector)].append(spec)
    return serving, refused


def _need(detector: Detector) -> str:
    if not detector.needs.fitting:
        return NEEDS[0]
    return NEEDS[2] if detector.needs.labels else NEEDS[1]
