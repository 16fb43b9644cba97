"""What is wrong with sets of images before a detector is judged on them, and what a table must say of itself."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.data.overlap import MOST_SHARED, shared_images
from nescio.data.source import Source
from nescio.evaluation.accuracy import Accuracy
from nescio.run.session import Session

log = logging.getLogger(__name__)

DEFAULT_DETECTORS = ("msp", "maxlogit", "energy", "react:q=0.98+energy", "ls+energy", "fmls")
_TAKEN = ("id", "train", "calibrate", "average", "near average", "far average")


def check_sets(sets: Mapping[str, Any], ood: Sequence[str], detectors: Mapping[str, Detector]) -> None:
    """Refuse what cannot give a meaningful table, before any image is decoded.

    Args:
        sets: images by what they are; None for those that are not there.
        ood: which of them are OOD.
        detectors: by what they are called.

    Raises:
        InputError: a set is missing, or cannot be called so.
    """
    if not ood or not detectors:
        raise InputError(
            "give at least one OOD set, ood= (--ood textures=FOLDER), and one detector, detectors= (--detector energy)"
        )
    apart = sets["calibrate"] is not None
    needs = {name: d.needs for name, d in detectors.items() if d.fitted_to is None}
    needy = [name for name, n in needs.items() if n.train or (not apart and (n.held_out or n.images))]
    if needy and sets["train"] is None:
        raise InputError(_without_training(needy, list(detectors)))
    for name in ood:
        if name in _TAKEN or not re.fullmatch(r"[\w.+ -]+", name):
            raise InputError(
                f"an OOD set cannot be called '{name}'; give it another name, e.g. ood={{'far': …}} (--ood far=FOLDER)"
            )


def check_apart(id_set: Source | None, ood: Mapping[str, Source | None], seen: Mapping[str, str]) -> None:
    """Refuse an OOD set that is the ID set, and say which the classifier was trained with.

    Raises:
        InputError: it is.
    """
    for name, source in ood.items():
        if source is None:
            continue
        if id_set is not None and source.identity == id_set.identity:
            raise InputError(
                f"OOD set '{name}' is the ID set itself; give other images: ood={{'{name}': …}} (--ood {name}=…)"
            )
        if source.identity == seen.get("outliers"):
            log.warning(
                "the classifier was trained with the images of '%s' as outliers, so results on them are too good",
                name,
            )


def _without_training(needy: Sequence[str], names: Sequence[str]) -> str:
    """What to do about detectors that cannot be fitted, whether a user named them or nobody did."""
    if list(names) != list(DEFAULT_DETECTORS):
        return f"detector '{needy[0]}' is fitted on training images; give train= (--train) or drop it"
    others = " ".join(f"--detector {d}" for d in names if d not in needy)
    return (
        f"some of the default detectors ({', '.join(needy)}) are fitted on training images; give "
        f"train= (--train), or detectors that need none: {others}"
    )


def shared_between(train: Source | None, held: Source | None, id_source: Source | None) -> list[str]:
    """What to warn of where sets that must be apart share images, by content.

    Raises:
        InputError: most ID test images are training images.
    """
    warnings = []
    pairs = (
        ("id", id_source, "training", train),
        ("id", id_source, "calibration", held),
        ("calibration", held, "training", train),
    )
    for title, one, other_title, other in pairs:
        if one is None or other is None:
            continue
        shared = shared_images(one, other)
        if not shared:
            continue
        message = (
            f"{len(shared):,} of {len(one):,} {title} images are also {other_title} images (by content); the first is "
            f"{one.name(shared[0])}"
        )
        if len(shared) > MOST_SHARED * len(one) and (title, other_title) == ("id", "training"):
            raise InputError(
                f"{message}; detectors look better on images that they were fitted on: give other images, id= (--id)"
            )
        warnings.append(f"{message}: the results are too good")
        log.warning("%s", warnings[-1])
    return warnings


def quality_of(measured: Mapping[str, Accuracy | None], warnings: Sequence[str], session: Session) -> dict[str, Any]:
    """Accuracy by set, all that was warned of, and options of the extraction that change the numbers."""
    known = {name: accuracy for name, accuracy in measured.items() if accuracy is not None}
    return {
        "accuracy": {name: asdict(accuracy) for name, accuracy in known.items()},
        "warnings": [*warnings, *(accuracy.warning for accuracy in known.values() if accuracy.warning)],
        "options": {"dtype": session.dtype, "max_bad": session.max_bad},
    }


def skipped_of(sets: Sequence[tuple[str, FeatureSet]]) -> list[tuple[str, int, str, str]]:
    """All images that could not be used; the first are said, and how many they are."""
    skipped = sorted({(name, *s) for name, rows in sets for s in rows.skipped})
    for name, _, image, reason in skipped[:5]:
        log.warning("skipped an image of %s: %s: %s", name, image, reason)
    if skipped:
        log.warning("%d images were skipped; the results' skipped.csv lists them", len(skipped))
    return skipped


def manifest_of(
    session: Session,
    detectors: Mapping[str, Detector],
    sources: Mapping[str, Source | None],
    sets: Sequence[tuple[str, FeatureSet]],
    opened: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the numbers follow from, as JSON can say it."""
    classifier = session.classifier
    read = dict(reversed(sets))
    named = (s.classes for s in (sources["id"], sources["train"]) if s is not None and s.classes)
    return {
        "model": {
            "name": classifier.name,
            "opened": classifier.opened,
            "weights": classifier.fingerprint,
            "untrained": classifier.untrained,
            "head": classifier.head_name,
            "head_shape": list(classifier.head.weight.shape) if classifier.has_head else None,
            "head_fingerprint": classifier.head.fingerprint,
            "classes": classifier.classes or next(named, None),
        },
        "transform": str(classifier.transform) if classifier.has_transform else "",
        "data": {
            name: _set_of(sources[name], read.get(name), images)
            for name, images in opened.items()
            if images is not None
        },
        **_made_with(detectors),
        "device": str(classifier.device),
        "engine": repr(session.running),
        "precision": session.precision,
    }


def _set_of(source: Source | None, rows: FeatureSet | None, opened: Any) -> dict[str, Any]:
    """What is known of a set of images, by its source, or by its features alone."""
    skipped = 0 if rows is None else len(rows.skipped)
    if source is None:
        return {"identity": None, "images": 0 if rows is None else len(rows) + skipped, "skipped": skipped}
    name = str(opened) if isinstance(opened, str | Path) else None
    about = {"identity": source.identity, "images": len(source), "skipped": skipped}
    return about | {"first": source.name(0), "opened": name}


def _made_with(detectors: Mapping[str, Detector]) -> dict[str, Any]:
    settings = {name: {"spec": repr(d), "bytes": d.size, "settings": d.settings()} for name, d in detectors.items()}
    return {"detectors": settings, "versions": versions(), "machine": platform.machine()}


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers follow from."""
    packages = ("nescio", "torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}


def features_manifest(detectors: Mapping[str, Detector], sets: Mapping[str, FeatureSet]) -> dict[str, Any]:
    """The same of a table that was made of features alone."""
    data = {name: _set_of(None, rows, None) for name, rows in sets.items()}
    return {"model": {"name": "features", "classes": None}, "transform": "", "data": data, **_made_with(detectors)}
