"""Data sets × detectors → results, from one pass of the network over each image."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.core.detector import AnyDetector, Detector, detectors_of, fit_all, score_all
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.progress import Clock
from nescio.core.spec import all_specs, names_preset
from nescio.data.overlap import MOST_SHARED, shared_images
from nescio.data.source import AnySource, Source, as_source, by_name
from nescio.evaluation import metrics
from nescio.evaluation.accuracy import Accuracy, measure, with_classes
from nescio.evaluation.results import Results, Row, Scored, judged
from nescio.evaluation.sample import FeatureSample, sample_features
from nescio.models import Classifier
from nescio.models.coerce import as_classifier
from nescio.run.bank import Bank
from nescio.run.extraction import PLAIN, Pass, check_model, choose_on, extract, pass_of, servable, training_pass

log = logging.getLogger(__name__)

TITLES = {"train": "training", "calibrate": "calibration", "id": "id"}
"""Sets of ID images, and what messages call them."""
DEFAULT_DETECTORS = ("msp", "maxlogit", "energy", "react:q=0.98+energy", "ls+energy", "fmls")


def bench(  # noqa: PLR0915
    classifier: Classifier,
    *,
    id: AnySource,  # noqa: A002 - the field's word for it
    ood: Mapping[str, AnySource],
    detectors: AnyDetector | Sequence[AnyDetector] = DEFAULT_DETECTORS,
    train: AnySource | None = None,
    calibrate: AnySource | None = None,
    resamples: int = 0,
    equal: bool = False,
    about: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    **extraction: Any,
) -> Results:
    """Fit detectors on training features and judge them on ID against OOD images.

    Args:
        classifier: the network.
        id: ID test images (with labels, for the accuracy).
        ood: OOD sets by name.
        detectors: spec strings or preset names; ``all`` stands for one detector of every stage, and the presets.
        train: the classifier's training images, with labels; may be missing if no detector needs them.
        calibrate: ID images that are neither of these, for ensembles and a fitted temperature; else a share of the
            training images is kept apart for them.
        resamples: of the bootstrap, for 95 % intervals; 0 for none.
        equal: judge each OOD set against as many ID images as it has, drawn once and for all, where there are more.
        about: what else the results' manifest should say, as JSON can (``groups``: OOD sets by what their mean is
            called).
        clock: counts where the time goes.
        **extraction: options of ``extract`` (cache, batch_size, workers, dtype, max_bad, progress).

    Raises:
        InputError: an input does not fit the others; the message names it and the way out.
    """
    classifier, ood, clock = as_classifier(classifier), by_name(ood, "ood"), clock or Clock()
    train_source, held_source = (None if given is None else as_source(given) for given in (train, calibrate))
    id_source, ood_sources = as_source(id), {name: as_source(source) for name, source in ood.items()}
    fitted = _parse(detectors, classifier)
    _check(classifier, train_source, held_source, id_source, ood_sources, fitted)
    classifier = with_classes(classifier, {"train": train_source, "calibrate": held_source, "id": id_source})
    warnings = _shared(train_source, held_source, id_source)
    for given, detector in fitted.items():
        if names_preset(given):
            log.info("%s is %r here", given, detector)

    banks: list[tuple[str, Bank]] = []
    measured: dict[str, Accuracy | None] = {}

    def bank_of(name: str, source: Source, network_pass: Pass, readers: Iterable[Detector]) -> Bank:
        probes = {name: probe for d in readers for name, probe in d.needs.probes.items()}
        bank = extract(
            classifier, source, network_pass=network_pass, probes=probes, title=name, clock=clock, **extraction
        )
        banks.append((name, bank))
        if network_pass is PLAIN and name in TITLES and name not in measured:
            measured[name] = measure(classifier, bank, TITLES[name])
        return bank

    # first, as it is small: what is wrong with labels or weights shows before the training images are read
    id_bank = bank_of("id", id_source, PLAIN, [d for d in fitted.values() if d.input_stage is None])
    fit_seconds: dict[str, float] = {}
    head = classifier.head.cpu()
    for network_pass, group in _grouped(fitted, training_pass):
        members = [fitted[given] for given in group]
        apart = [d for d in members if d.needs.held_out]
        needy = [d for d in members if d.needs.train or (d in apart and held_source is None)]
        train_bank, held_bank = (
            bank_of(name, source, network_pass, readers) if source is not None and readers else None
            for name, source, readers in (("train", train_source, needy), ("calibrate", held_source, apart))
        )
        training, held = (FeatureSet.stream(b.chunks if b else None, head) for b in (train_bank, held_bank))
        training = training.with_held_out(held if held_bank else None)
        with clock("fit"):
            fit_seconds |= zip(group, fit_all(members, training), strict=True)
            choose_on(held_source or train_source, members, classifier, workers=extraction.get("workers"))

    id_set, ood_sets = Scored("id", id_source, {}, {}), [Scored(n, s, {}, {}) for n, s in ood_sources.items()]
    test_sources = {"id": id_source, **ood_sources}
    seconds: dict[tuple[str, str], float] = {}
    for network_pass, group in _grouped(fitted, lambda detector: pass_of(detector, classifier.device)):
        members = [fitted[given] for given in group]
        for scored in (id_set, *ood_sets):
            bank = bank_of(scored.name, test_sources[scored.name], network_pass, members)
            with clock("score"):
                scores, spent = score_all(members, bank.chunks())
            for given, values, time in zip(group, scores, spent, strict=True):
                scored.scores[given], scored.rows[given] = values.numpy(), bank.rows
                seconds[given, scored.name] = time

    correct = np.zeros(len(id_source), dtype=bool)
    correct[id_bank.rows] = id_bank.pred == id_bank.labels
    with clock("metrics"):
        rows = [
            _row(given, id_set, scored, id_source.labels, correct, id_bank.accuracy, resamples, equal=equal)
            | {"seconds": fit_seconds[given] + seconds[given, "id"] + seconds[given, scored.name]}
            | {"own_pass": repr(detector.input_stage) if detector.input_stage else ""}
            for given, detector in fitted.items()
            for scored in ood_sets
        ]
    skipped = _skipped(banks)
    sources = {"train": train_source, "calibrate": held_source, "id": id_source, **ood_sources}
    opened = {"train": train, "calibrate": calibrate, "id": id, **ood}
    manifest = _manifest(classifier, fitted, sources, banks, opened)
    manifest |= _said_of(measured, warnings, extraction) | {"equal": equal, "resamples": resamples, **(about or {})}
    labelled = np.where(id_source.labels >= 0, correct, -1).astype(np.int8) if (id_source.labels >= 0).any() else None
    plain = _plain(banks)
    sample = _sample(plain, list(test_sources), fitted.values())
    id_set, *ood_sets = (dataclasses.replace(s, pred=_predictions(plain.get(s.name))) for s in (id_set, *ood_sets))
    return Results([Row(**r) for r in rows], manifest, id_set, ood_sets, skipped, labelled, sample=sample)


def _parse(detectors: Any, classifier: Classifier) -> dict[str, Detector]:
    """Detectors by what the user called them; of ``all``, those that this model can serve."""
    several = [detectors] if isinstance(detectors, str) or not isinstance(detectors, Sequence) else detectors
    parsed: dict[str, Detector] = {}
    for given in several:
        if isinstance(given, str) and given.strip() == "all":
            parsed |= servable(all_specs(), classifier)
            continue
        for name, detector in detectors_of(given, classifier.name, classifier.head.n_classes).items():
            parsed[name] = detector
            try:
                check_model(detector, classifier)
            except InputError as e:
                raise InputError(f"detector '{name}': {e}") from None
    return parsed


def _grouped(detectors: Mapping[str, Detector], pass_for: Callable[[Detector], Pass]) -> list[tuple[Pass, list[str]]]:
    passes: dict[str, Pass] = {}
    groups: dict[str, list[str]] = {}
    for given, detector in detectors.items():
        network_pass = pass_for(detector)
        passes.setdefault(network_pass.key, network_pass)
        groups.setdefault(network_pass.key, []).append(given)
    return [(passes[key], group) for key, group in groups.items()]


def _check(
    classifier: Classifier,
    train: Source | None,
    held: Source | None,
    id_source: Source,
    ood: Mapping[str, Source],
    detectors: Mapping[str, Detector],
) -> None:
    """Refuse what cannot give a meaningful table, before any image is decoded."""
    if not ood or not detectors:
        raise InputError("give at least one OOD set (--ood textures=FOLDER) and one detector (--detector energy)")
    apart = held is not None
    needy = [g for g, d in detectors.items() if d.needs.train or (not apart and (d.needs.held_out or d.needs.images))]
    if needy and train is None:
        raise InputError(_without_training(needy, list(detectors)))
    _warn_of_outliers(classifier, ood)
    for name in ood:
        if name in ("id", "train", "calibrate", "average", "near average", "far average") or not re.fullmatch(
            r"[\w.+ -]+", name
        ):
            raise InputError(f"an OOD set cannot be called '{name}'; give it another name, e.g. --ood far=FOLDER")
    for name, source in ood.items():
        if source.identity == id_source.identity:
            raise InputError(f"OOD set '{name}' is the ID set itself; give other images as --ood {name}=…")


def _without_training(needy: Sequence[str], given: Sequence[str]) -> str:
    """What to do about detectors that cannot be fitted, whether a user named them or nobody did."""
    if list(given) != list(DEFAULT_DETECTORS):
        return f"detector '{needy[0]}' is fitted on training images; give them (--train) or drop it"
    others = " ".join(f"--detector {d}" for d in given if d not in needy)
    return (
        f"no detector was named, and some of the default ones ({', '.join(needy)}) are fitted on training images; give "
        f"them (--train), or name detectors that need none: {others}"
    )


def _warn_of_outliers(classifier: Classifier, ood: Mapping[str, Source]) -> None:
    for name, source in ood.items():
        if source.identity == classifier.seen.get("outliers"):
            log.warning("the classifier was trained with the images of '%s' as outliers: it knows them", name)


def _shared(train: Source | None, held: Source | None, id_source: Source) -> list[str]:
    """What to warn of where sets that must be apart share images, by content.

    Raises:
        InputError: most ID test images are training images.
    """
    said = []
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
        told = (
            f"{len(shared):,} of {len(one):,} {title} images are {other_title} images (by content), the first is "
            f"{one.name(shared[0])}"
        )
        if len(shared) > MOST_SHARED * len(one) and (title, other_title) == ("id", "training"):
            raise InputError(f"{told}; detectors look better on images that they were fitted on: give others (--id)")
        said.append(f"{told}: the results look better than they are")
        log.warning("%s", said[-1])
    return said


def _said_of(
    measured: Mapping[str, Accuracy | None], warnings: Sequence[str], extraction: Mapping[str, Any]
) -> dict[str, Any]:
    """Accuracy by set, all that was warned of, and options of the extraction that change the numbers."""
    known = {name: accuracy for name, accuracy in measured.items() if accuracy is not None}
    return {
        "accuracy": {name: asdict(accuracy) for name, accuracy in known.items()},
        "warnings": [*warnings, *(accuracy.warning for accuracy in known.values() if accuracy.warning)],
        "options": {name: extraction[name] for name in ("dtype", "max_bad") if name in extraction},
    }


def _skipped(banks: Sequence[tuple[str, Bank]]) -> list[tuple[str, int, str, str]]:
    """All images that could not be used; the first are said, and how many they are."""
    skipped = sorted({(name, *s) for name, bank in banks for s in bank.skipped})
    for name, _, image, reason in skipped[:5]:
        log.warning("skipped an image of %s: %s: %s", name, image, reason)
    if skipped:
        log.warning("%d images were skipped; the results' skipped.csv lists them", len(skipped))
    return skipped


def _row(
    given: str,
    id_set: Scored,
    ood: Scored,
    labels: npt.NDArray[np.int64],
    correct: npt.NDArray[np.bool_],
    accuracy: float,
    resamples: int,
    *,
    equal: bool,
) -> dict[str, Any]:
    rows, ids = judged(id_set, ood, given, equal=equal)
    pair = (ids, ood.scores[given])
    try:
        values: dict[str, Any] = {name: metric(*pair) for name, metric in metrics.METRICS.items()}
    except InputError as e:
        raise InputError(f"detector '{given}' on '{ood.name}': {e}") from None
    if resamples:
        values["intervals"] = metrics.intervals(*pair, resamples=resamples)
    known = labels[rows] >= 0
    return values | {
        "detector": given,
        "ood": ood.name,
        "aurc": metrics.aurc(pair[0][known], correct[rows][known]) if known.any() else float("nan"),
        "id_accuracy": accuracy,
        "n_id": len(pair[0]),
        "n_ood": len(pair[1]),
    }


def _plain(banks: Sequence[tuple[str, Bank]]) -> dict[str, Bank]:
    """A bank of the plain pass for each set that has one."""
    plain: dict[str, Bank] = {}
    for name, bank in banks:
        if bank.manifest["key"]["network_pass"] == PLAIN.key:
            plain.setdefault(name, bank)
    return plain


def _predictions(bank: Bank | None) -> npt.NDArray[np.int64] | None:
    """By row of the bank's source, -1 where the image could not be used."""
    if bank is None:
        return None
    pred = np.full(len(bank) + len(bank.skipped), -1, dtype=np.int64)
    pred[bank.rows] = bank.pred
    return pred


def _sample(plain: Mapping[str, Bank], names: Sequence[str], detectors: Iterable[Detector]) -> FeatureSample | None:
    """From the banks that the detectors were judged on; None where one of these is not of the plain pass."""
    if not set(names) <= set(plain):
        return None
    return sample_features({name: plain[name] for name in names}, [d for d in detectors if d.input_stage is None])


def _named_by(*sources: Source | None) -> list[str] | None:
    """Names of the classes, from the first set of ID images that has any."""
    return next((s.classes for s in sources if s is not None and s.classes), None)


def _manifest(
    classifier: Classifier,
    detectors: Mapping[str, Detector],
    sources: Mapping[str, Source | None],
    banks: Sequence[tuple[str, Bank]],
    opened: Mapping[str, AnySource | None],
) -> dict[str, Any]:
    packages = ("nescio", "torch", "torchvision", "timm", "numpy", "pillow")
    skipped = {name: len(bank.skipped) for name, bank in banks}
    return {
        "model": {
            "name": classifier.name,
            "opened": classifier.opened,
            "weights": classifier.fingerprint,
            "untrained": classifier.untrained,
            "head": classifier.head_name,
            "head_shape": list(classifier.head.weight.shape),
            "head_fingerprint": classifier.head.fingerprint,
            "classes": classifier.classes or _named_by(sources["id"], sources["train"]),
        },
        "transform": str(classifier.transform),
        "data": {
            name: {
                "identity": s.identity,
                "images": len(s),
                "skipped": skipped.get(name, 0),
                "first": s.name(0),
                "opened": str(opened[name]) if isinstance(opened[name], str | Path) else None,
            }
            for name, s in sources.items()
            if s is not None
        },
        "detectors": {
            given: {"spec": repr(d), "bytes": d.size, "settings": d.settings()} for given, d in detectors.items()
        },
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in packages},
        },
        "machine": platform.machine(),
        "device": str(classifier.device),
    }
