"""From a classifier and held-out ID images to a detector with a calibrated threshold."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch

from nescio.calibration.conformal import Calibration, check_shares
from nescio.calibration.posterior import ProxyCalibrator
from nescio.core.bounds import Share
from nescio.core.detector import AnyDetector
from nescio.core.errors import InputError
from nescio.core.options import Optioned, parse_named
from nescio.data.overlap import MOST_SHARED, shared_images
from nescio.data.source import AnySource, Rows, Source
from nescio.deploy.deployed import Deployed
from nescio.evaluation.accuracy import Accuracy, measure, with_classes
from nescio.evaluation.checks import versions
from nescio.evaluation.proxies import BACKGROUND, PROXIES, proxy_source
from nescio.models import Classifier
from nescio.run.passes import PLAIN, pass_of
from nescio.run.session import Session, as_session

log = logging.getLogger(__name__)

DEFAULT_DETECTOR = "fmls"


def fit(
    session: Session | Any,
    detector: AnyDetector = DEFAULT_DETECTOR,
    *,
    calibrate: AnySource,
    train: AnySource | None = None,
    accept: float = 0.95,
    confidence: float | None = None,
    per_class: bool = False,
    proxy: str | None = None,
) -> Deployed:
    """Fit a detector, and calibrate its threshold on ID images that neither it nor the classifier was fitted on.

    Args:
        session: the network and how it is run; or a classifier, a network or a name.
        detector: a spec string or preset, or stages joined with +.
        calibrate: held-out ID images; labels are not needed. Those that are training images (by content) are left out.
        train: the classifier's training images, with labels, for a detector that is fitted on them.
        accept: share of new ID images that is to be accepted, in (0, 1).
        confidence: accept that share for this share of the calibration sets that could have been drawn, rather than on
            average over them.
        per_class: a threshold, and the guarantee, for each predicted class with enough calibration images.
        proxy: fit ``P(x ∈ ID | x)`` against this stand-in for OOD images (``noise``, ``pixels``, ``tiles``, ``blur`` or
            ``corner``), with ``P(ID)`` one half, or as ``noise:prior=0.9`` says; needless for a network with an OOD
            head.

    Raises:
        InputError: an input does not fit the others, or the images are too few for the guarantee.
    """
    check_shares(accept, confidence)
    session = as_session(session).meet(calibrate)
    if not (session.classifier.has_head or session.classifier.awaits_probe):
        raise InputError(
            f"{session.classifier.name} is an encoder, but verdicts need classes: fit a head on labelled training "
            "images, head='probe' (--head probe --train SET), or score without verdicts (Session.scores)"
        )
    ((name, fitted),) = session.detectors(detector).items()
    if why := fitted.unexportable():
        log.info("nescio export will not support this detector: %s", why)
    stand_in = None if proxy is None else parse_named(proxy, STAND_INS)
    held = session.images(calibrate, "nescio.fit")
    training = None if train is None else session.images(train, "nescio.fit")
    fresh = fitted.fitted_to is None
    if training is None and fresh and fitted.needs.fitting:
        hint = ", the default," if detector == DEFAULT_DETECTOR else ""
        raise InputError(
            f"detector '{name}'{hint} is fitted on training images; give train= (--train), or another detector: "
            "detector='energy' (--detector energy)"
        )
    held = _unseen(held, training, session.classifier)
    session = session.ready(training)
    session = session.of(with_classes(session.classifier, {"training": training, "calibration": held}))
    session.expected = len(held) + (0 if training is None else len(training))
    classifier, accuracies = session.classifier, list[Accuracy | None]()
    unfitted = {name: fitted} if fresh else {}
    session.fit(unfitted, training, seen=lambda _, rows: accuracies.append(measure(classifier, rows, "training")))
    deployed = Deployed(session, fitted, Calibration(accept, confidence, ()))
    plain = session.read(held, PLAIN, deployed.plain_probes, "calibration")
    accuracies.insert(0, measure(classifier, plain, "calibration"))
    scores, rows = _scores(deployed, held, "calibration")
    _, at, at_too = np.intersect1d(plain.positions, rows, assume_unique=True, return_indices=True)
    pred, scores = plain.pred[at], scores[at_too]
    n_classes = classifier.head.n_classes if per_class else None
    deployed.calibration = Calibration.fit(scores, pred, accept=accept, confidence=confidence, n_classes=n_classes)
    if stand_in is not None:
        others, _ = _scores(deployed, proxy_source(stand_in.name, held, classifier), stand_in.name)
        deployed.calibrator = ProxyCalibrator.fit(
            torch.from_numpy(scores), torch.from_numpy(others), proxy=stand_in.name, prior=stand_in.prior
        )
    accuracy = next((found for found in accuracies if found is not None), None)
    deployed.about = {
        "settings": fitted.settings(),
        "data": {n: s.identity for n, s in (("train", training), ("calibrate", held)) if s is not None},
        "accuracy": accuracy and asdict(accuracy),
        "untrained": classifier.untrained,
        "versions": versions(),
    }
    return deployed


class StandIn(Optioned):
    """Images that stand for OOD ones, and the share of ID images that is assumed beside them.

    Args:
        prior: ``P(ID)``, in (0, 1).
    """

    kind = "proxy"

    def __init__(self, *, prior: Annotated[float, Share(above_zero=True, below_one=True)] = 0.5) -> None:
        self.prior = prior


STAND_INS: dict[str, type[StandIn]] = {
    name: type(name, (StandIn,), {"name": name}) for name in PROXIES if name != BACKGROUND
}


def _unseen(held: Source, training: Source | None, classifier: Classifier) -> Source:
    """The calibration images that are not training images, as far as that can be known."""
    if held.identity == classifier.seen.get("train"):
        raise InputError(
            "the calibration images are the classifier's training images; a threshold set on them "
            "rejects more new images than promised: give held-out images, calibrate= (--calibrate)"
        )
    if held.identity == classifier.seen.get("val"):
        log.warning(
            "the calibration images were used to choose the classifier's epoch: expect slightly more rejections than "
            "promised"
        )
    if training is None:
        log.warning(
            "whether the calibration images are training images cannot be checked: give train= (--train) too; a "
            "threshold set on training images rejects more new images than promised"
        )
        return held
    shared = set(shared_images(held, training))
    if not shared:
        return held
    first = held.name(min(shared))
    if len(shared) > MOST_SHARED * len(held):
        raise InputError(
            f"{len(shared):,} of {len(held):,} calibration images are training images (the first is {first}); a "
            "threshold set on them rejects more new images than promised: give held-out images, calibrate= "
            "(--calibrate)"
        )
    log.warning(
        "leaving out %s of %s calibration images that are training images; the first is %s",
        f"{len(shared):,}",
        f"{len(held):,}",
        first,
    )
    return Rows(held, [i for i in range(len(held)) if i not in shared])


def _scores(deployed: Deployed, source: Source, title: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores, from the detector's own pass, and the rows of the source that they belong to."""
    detector, session = deployed.detector, deployed.session
    probes = detector.needs.probes if detector.input_stage is not None else deployed.plain_probes
    rows = session.read(source, pass_of(detector, session.classifier.device), probes, title)
    return detector(rows).numpy(), rows.positions
