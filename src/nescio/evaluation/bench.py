"""Data sets × detectors → results, from one pass of the network over each image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nescio.core.detector import AnyDetector, Detector, detectors_of, fit_all, score_all
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import NO_HEAD, Head, NoHead
from nescio.core.spec import all_specs, names_preset
from nescio.data.source import Source, by_name
from nescio.evaluation import metrics
from nescio.evaluation.accuracy import Accuracy, measure, with_classes
from nescio.evaluation.checks import (
    DEFAULT_DETECTORS,
    check_apart,
    check_sets,
    features_manifest,
    manifest_of,
    quality_of,
    shared_between,
    skipped_of,
)
from nescio.evaluation.results import Results
from nescio.evaluation.rows import Row, Scored, judged
from nescio.evaluation.sample import FeatureSample, sample_features
from nescio.run.passes import PLAIN, probes_of, servable
from nescio.run.session import Images, Session, as_session

log = logging.getLogger(__name__)

AnyFeatures = FeatureSet | npt.NDArray[Any] | torch.Tensor
"""Features, with what belongs to them or alone."""
TITLES = {"train": "training", "calibrate": "calibration", "id": "id"}
"""Sets of ID images, and what messages call them."""


def bench(
    session: Session | Any,
    *,
    id: Images,  # noqa: A002 - the field's word for it
    ood: Mapping[str, Images],
    detectors: AnyDetector | Sequence[AnyDetector] = DEFAULT_DETECTORS,
    train: Images | None = None,
    held_out: Images | None = None,
    resamples: int = 0,
    equal: bool = False,
) -> Results:
    """Fit detectors on training features and judge them on ID against OOD images.

    Args:
        session: the network and how it is run; or a classifier, a network or a name.
        id: ID test images (with labels, for the accuracy).
        ood: OOD sets by name.
        detectors: spec strings, stages joined with +, functions of features; ``all`` stands for one detector of every
            stage, and the presets. One that is fitted already is judged as it is.
        train: the classifier's training images, with labels; may be missing if no detector needs them.
        held_out: ID images that are neither of these, for ensembles and a fitted temperature; else a share of the
            training images is kept apart for them.
        resamples: of the bootstrap, for 95 % intervals; 0 for none.
        equal: judge each OOD set against as many ID images as it has, drawn once and for all, where there are more.

    Raises:
        InputError: an input does not fit the others; the message names it and the way out.
    """
    session, ood = as_session(session).meet(id), by_name(ood, "ood")
    found = _servable(detectors, session)
    by_role = {"train": train, "calibrate": held_out, "id": id, **ood}
    check_sets(by_role, list(ood), found)
    session = session.ready(train)
    sets = _Sets(session, by_role)
    with session.clock("hash"):
        sets.check_sources(list(ood))
    for name, detector in found.items():
        if names_preset(name):
            log.info("%s: using %r for this network", name, detector)
    # first, as it is small: what is wrong with labels or weights shows before the training images are read
    plain = [d for d in found.values() if d.input_stage is None]
    sets.see("id", sets.session.read(sets.images["id"], PLAIN, probes_of(plain), "id"))
    unfitted = {name: d for name, d in found.items() if d.fitted_to is None}
    sets.session.fit(unfitted, sets.images["train"], sets.images["calibrate"], seen=sets.see)
    scored = {name: sets.scored(name, found) for name in ("id", *ood)}
    seconds = {(d, name): s for name in scored for d, s in sets.seconds[name].items()}
    with session.clock("metrics"):
        right = _right(sets.rows["id"])
        table = _table(found, scored, right, seconds, resamples=resamples, equal=equal)
    manifest = manifest_of(sets.session, found, sets.sources, sets.read, by_role)
    manifest |= quality_of(sets.measured, sets.warnings, session) | {"equal": equal, "resamples": resamples}
    sample = _sample({name: sets.rows.get(name) for name in scored}, found)
    oods = [scored[name] for name in ood]
    return Results(table, manifest, scored["id"], oods, skipped_of(sets.read), _labelled(right), sample=sample)


def evaluate(
    detectors: AnyDetector | Sequence[AnyDetector],
    *,
    id: AnyFeatures,  # noqa: A002 - the field's word for it
    ood: Mapping[str, AnyFeatures],
    train: AnyFeatures | None = None,
    held_out: AnyFeatures | None = None,
    resamples: int = 0,
    equal: bool = False,
) -> Results:
    """Fit detectors and judge them as ``bench`` does, on features that are at hand: no network and no image is needed.

    Args:
        detectors: as for ``bench``.
        id: features of ID test images: a feature set (with labels, for the accuracy), or an array or tensor
            ``(N, L)``, which is read with the head of ``train``.
        ood: features of OOD images, by name.
        train: features of training images, with labels; may be missing if no detector needs them.
        held_out: as for ``bench``.
        resamples: as for ``bench``.
        equal: as for ``bench``.

    Raises:
        InputError: an input does not fit the others; the message names it and the way out.
    """
    found, ood = detectors_of(detectors), by_name(ood, "ood")
    fitted_on = None if train is None else _features("train", train)
    head = NO_HEAD if fitted_on is None else fitted_on.head
    apart = None if held_out is None else _features("held_out", held_out, head)
    judged_on = {name: _features(name, rows, head) for name, rows in {"id": id, **ood}.items()}
    by_role = {"train": fitted_on, "calibrate": apart, **judged_on}
    check_sets(by_role, list(ood), found)
    unfitted = {name: d for name, d in found.items() if d.fitted_to is None}
    data = FeatureSet(head=judged_on["id"].head) if fitted_on is None else fitted_on
    fit_all(list(unfitted.values()), data if apart is None else data.with_held_out(apart))
    seconds: dict[tuple[str, str], float] = {}
    scored = {}
    for name, rows in judged_on.items():
        values, spent = score_all(list(found.values()), rows.chunks())
        seconds |= {(d, name): s for d, s in zip(found, spent, strict=True)}
        scores = {d: v.cpu().numpy() for d, v in zip(found, values, strict=True)}
        scored[name] = Scored(name, None, dict.fromkeys(found, rows.positions), scores, _by_row(rows, rows.pred))
    right = _right(judged_on["id"])
    table = _table(found, scored, right, seconds, resamples=resamples, equal=equal)
    manifest = features_manifest(found, {name: rows for name, rows in by_role.items() if rows is not None})
    oods = [scored[name] for name in ood]
    return Results(table, manifest | {"equal": equal, "resamples": resamples}, scored["id"], oods, [], _labelled(right))


def _features(name: str, rows: AnyFeatures, head: Head = NO_HEAD) -> FeatureSet:
    """Features as a feature set; arrays get a head to be read with."""
    if isinstance(rows, FeatureSet):
        return rows
    if isinstance(rows, (np.ndarray, torch.Tensor)):
        return FeatureSet(rows, head=head)
    raise InputError(
        f"{name}: expected features (a FeatureSet or an array), got {type(rows).__name__}; nescio.bench takes images"
    )


class _Sets:
    """The sets of images of a table: what they come from, and the features that were read of them."""

    def __init__(self, session: Session, images: Mapping[str, Images | None]) -> None:
        self.session, self.images = session, dict(images)
        self.sources: dict[str, Source | None] = {}
        self.read: list[tuple[str, FeatureSet]] = []
        self.rows: dict[str, FeatureSet] = {}
        """Of the plain pass, by set."""
        self.seconds: dict[str, dict[str, float]] = {}
        self.measured: dict[str, Accuracy | None] = {}
        self.warnings: list[str] = []
        for name, one in images.items():
            self.sources[name] = source = session.source(one)
            if source is not None:
                self.images[name] = source

    def check_sources(self, ood: Sequence[str]) -> None:
        """Refuse named sets that are the same, or whose classes are not the model's; warn of images that they share."""
        ids = {name: self.sources[name] for name in TITLES}
        check_apart(ids["id"], {name: self.sources[name] for name in ood}, self.session.classifier.seen)
        self.session = self.session.of(with_classes(self.session.classifier, ids))
        self.session.expected = sum(len(source) for source in self.sources.values() if source is not None)
        self.warnings += shared_between(ids["train"], ids["calibrate"], ids["id"])

    def see(self, name: str, rows: FeatureSet) -> None:
        """Take note of features of the plain pass; of ID images, the accuracy."""
        self.read.append((name, rows))
        self.rows.setdefault(name, rows)
        if name in TITLES and name not in self.measured:
            self.measured[name] = measure(self.session.classifier, rows, TITLES[name])

    def scored(self, name: str, detectors: Mapping[str, Detector]) -> Scored:
        """Scores of a set by all detectors."""
        known = {PLAIN.key: self.rows[name]} if name in self.rows else {}
        scores = self.session.scores(detectors, self.images[name], title=name, known=known)
        for key, rows in scores.features.items():
            self.read.append((name, rows))
            if key == PLAIN.key:
                self.rows.setdefault(name, rows)
        self.seconds[name] = scores.seconds
        plain = self.rows.get(name)
        pred = None if plain is None else _by_row(plain, plain.pred)
        return Scored(name, self.sources[name], scores.rows, scores.usable, pred)


def _servable(detectors: AnyDetector | Sequence[AnyDetector], session: Session) -> dict[str, Detector]:
    """Detectors by what the user called them; of ``all``, those that this model can serve."""
    several = detectors if isinstance(detectors, Sequence) and not isinstance(detectors, str) else [detectors]
    found: dict[str, Detector] = {}
    for spec in several:
        if isinstance(spec, str) and spec.strip() == "all":
            found |= servable(all_specs(), session.classifier)
        else:
            found |= session.detectors(spec)
    return found


def _by_row(rows: FeatureSet, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """By position in the set of images, -1 where the image could not be used."""
    found = np.full(len(rows) + len(rows.skipped), -1, dtype=np.int64)
    found[rows.positions] = values
    return found


def _right(rows: FeatureSet) -> npt.NDArray[np.int64]:
    """Whether the classifier is right (1) or wrong (0) about each image, or nobody knows (-1), by position."""
    return _by_row(rows, np.where((rows.labels >= 0) & (rows.pred >= 0), rows.pred == rows.labels, -1))


def _labelled(right: npt.NDArray[np.int64]) -> npt.NDArray[np.int8] | None:
    return right.astype(np.int8) if (right >= 0).any() else None


def _table(
    detectors: Mapping[str, Detector],
    scored: Mapping[str, Scored],
    right: npt.NDArray[np.int64],
    seconds: Mapping[tuple[str, str], float],
    *,
    resamples: int,
    equal: bool,
) -> list[Row]:
    ids, oods = scored["id"], [s for name, s in scored.items() if name != "id"]
    rows = []
    for name, detector in detectors.items():
        for ood in oods:
            spent = detector.fit_seconds + seconds[name, "id"] + seconds[name, ood.name]
            own_pass = repr(detector.input_stage) if detector.input_stage else ""
            row = _row(name, ids, ood, right, resamples=resamples, equal=equal)
            rows.append(Row(**row, seconds=spent, own_pass=own_pass))
    return rows


def _row(
    name: str, id_set: Scored, ood: Scored, right: npt.NDArray[np.int64], *, resamples: int, equal: bool
) -> dict[str, Any]:
    """What a detector's row says, but for what it cost."""
    rows, ids = judged(id_set, ood, name, equal=equal)
    pair = (ids, ood.scores[name])
    try:
        values: dict[str, Any] = {key: metric(*pair) for key, metric in metrics.METRICS.items()}
    except InputError as e:
        raise InputError(f"detector '{name}' on '{ood.name}': {e}") from None
    if resamples:
        values["intervals"] = metrics.intervals(*pair, resamples=resamples)
    known, labelled = right[right >= 0], right[rows] >= 0
    aurc = metrics.aurc(ids[labelled], right[rows][labelled] == 1) if labelled.any() else float("nan")
    return values | {
        "detector": name,
        "ood": ood.name,
        "aurc": aurc,
        "id_accuracy": float(known.mean()) if len(known) else float("nan"),
        "n_id": len(pair[0]),
        "n_ood": len(pair[1]),
    }


def _sample(rows: Mapping[str, FeatureSet | None], detectors: Mapping[str, Detector]) -> FeatureSample | None:
    """From the features that the detectors were judged on; None where some are not of the plain pass."""
    plain = {name: r for name, r in rows.items() if r is not None}
    if len(plain) < len(rows) or any(isinstance(r.head, NoHead) for r in plain.values()):
        return None
    return sample_features(plain, [d for d in detectors.values() if d.input_stage is None])
