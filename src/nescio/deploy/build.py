"""From a classifier and held-out ID images to a detector with a calibrated threshold."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nescio.calibration.conformal import Calibration, check_shares
from nescio.calibration.posterior import ProxyCalibrator
from nescio.core.detector import Detector, score_all
from nescio.core.errors import InputError, check_choice
from nescio.core.feature_set import FeatureSet
from nescio.data.overlap import MOST_SHARED, shared_images
from nescio.data.source import AnySource, Rows, Source, as_source
from nescio.deploy.deployed import Deployed
from nescio.evaluation.accuracy import measure, with_classes
from nescio.evaluation.proxies import BACKGROUND, PROXIES, proxy_source
from nescio.models import Classifier
from nescio.models.coerce import as_classifier
from nescio.run.extraction import PLAIN, check_model, choose_on, extract, pass_of, training_pass

log = logging.getLogger(__name__)

DEFAULT_DETECTOR = "fmls"
_PACKAGES = ("nescio", "torch", "torchvision", "timm", "numpy", "pillow")


def fit(
    classifier: Classifier,
    detector: str = DEFAULT_DETECTOR,
    *,
    calibrate: AnySource,
    train: AnySource | None = None,
    accept: float = 0.95,
    confidence: float | None = None,
    per_class: bool = False,
    proxy: str | None = None,
    prior: float = 0.5,
    **extraction: Any,
) -> Deployed:
    """Fit a detector, and calibrate its threshold on ID images that neither it nor the classifier was fitted on.

    Args:
        classifier: the network.
        detector: a spec string or preset.
        calibrate: held-out ID images; labels are not needed. Those that are training images (by content) are left out.
        train: the classifier's training images, with labels, for a detector that is fitted on them.
        accept: share of new ID images that is to be accepted, in (0, 1).
        confidence: accept that share for this share of the calibration sets that could have been drawn, rather than on
            average over them.
        per_class: a threshold, and the guarantee, for each predicted class with enough calibration images.
        proxy: fit ``P(x ∈ ID | x)`` against this stand-in for OOD images (``noise``, ``pixels``, ``tiles``, ``blur`` or
            ``corner``); needless for a network with an OOD head.
        prior: ``P(ID)`` that is assumed with it.
        **extraction: options of ``extract`` (cache, batch_size, workers, dtype, max_bad, progress).

    Raises:
        InputError: an input does not fit the others, or the images are too few for the guarantee.
    """
    classifier = as_classifier(classifier)
    check_shares(accept, confidence)
    fitted = Detector(detector, classifier.name, classifier.head.n_classes)
    check_model(fitted, classifier)
    if why := fitted.unexportable():
        log.info("nescio export will refuse this detector: %s", why)
    if proxy is not None:
        check_choice("proxy", proxy, [p for p in PROXIES if p != BACKGROUND])
    held = as_source(calibrate)
    training = None if train is None else as_source(train)
    if training is None and (fitted.needs.train or fitted.needs.held_out or fitted.needs.images):
        told = ", which is taken where none is named," if detector == DEFAULT_DETECTOR else ""
        raise InputError(
            f"detector '{detector}'{told} is fitted on training images; give them (--train), or name one that is not "
            "(--detector energy)"
        )
    held = _unseen(held, training, classifier)
    classifier = with_classes(classifier, {"training": training, "calibration": held})
    chunks, accuracy = None, None
    if training is not None and (fitted.needs.train or fitted.needs.held_out):
        network_pass = training_pass(fitted)
        train_bank = extract(
            classifier, training, network_pass=network_pass, probes=fitted.needs.probes, title="train", **extraction
        )
        chunks = train_bank.chunks
        accuracy = measure(classifier, train_bank, "training") if network_pass is PLAIN else None
    fitted.fit(FeatureSet.stream(chunks, classifier.head.cpu()))
    choose_on(training, [fitted], classifier, workers=extraction.get("workers"))
    deployed = Deployed(classifier, fitted, Calibration(accept, confidence, ()))
    bank = extract(classifier, held, probes=deployed.plain_probes, title="calibration", **extraction)
    accuracy = measure(classifier, bank, "calibration") or accuracy
    scores, rows = _scores(deployed, held, "calibration", extraction)
    _, at, at_too = np.intersect1d(bank.rows, rows, assume_unique=True, return_indices=True)
    pred, scores = bank.pred[at], scores[at_too]
    deployed.calibration = Calibration.fit(
        scores, pred, accept=accept, confidence=confidence, n_classes=classifier.head.n_classes if per_class else None
    )
    if proxy is not None:
        others, _ = _scores(deployed, proxy_source(proxy, held, classifier), proxy, extraction)
        deployed.calibrator = ProxyCalibrator.fit(
            torch.from_numpy(scores), torch.from_numpy(others), proxy=proxy, prior=prior
        )
    deployed.about = {
        "settings": fitted.settings(),
        "data": {n: s.identity for n, s in (("train", training), ("calibrate", held)) if s is not None},
        "accuracy": accuracy and asdict(accuracy),
        "untrained": classifier.untrained,
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES},
    }
    return deployed


def _unseen(held: Source, training: Source | None, classifier: Classifier) -> Source:
    """The calibration images that are not training images, as far as that can be known."""
    if held.identity == classifier.seen.get("train"):
        raise InputError(
            "the calibration images are those that the classifier was trained on; a threshold that is set on them "
            "rejects more of the new images than it says: give images that were held out (--calibrate)"
        )
    if held.identity == classifier.seen.get("val"):
        log.warning("the calibration images chose the classifier's epoch: expect to reject a little more than it says")
    if training is None:
        log.warning(
            "nobody can check that the calibration images are not training images: give those, too (--train); a "
            "threshold that is set on training images rejects more of the new ones than it says"
        )
        return held
    shared = set(shared_images(held, training))
    if not shared:
        return held
    first = held.name(min(shared))
    if len(shared) > MOST_SHARED * len(held):
        raise InputError(
            f"{len(shared):,} of {len(held):,} calibration images are training images, the first is {first}; a "
            "threshold that is set on them rejects more of the new images than it says: give images that were held out"
        )
    log.warning(
        "%s of %s calibration images are training images and left out; the first is %s",
        f"{len(shared):,}",
        f"{len(held):,}",
        first,
    )
    return Rows(held, [i for i in range(len(held)) if i not in shared])


def _scores(
    deployed: Deployed, source: Source, title: str, extraction: Mapping[str, Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores, from the detector's own pass, and the rows of the source that they belong to."""
    detector = deployed.detector
    own = detector.input_stage is not None
    bank = extract(
        deployed.classifier,
        source,
        network_pass=pass_of(detector, deployed.classifier.device),
        probes=detector.needs.probes if own else deployed.plain_probes,
        title=title,
        **extraction,
    )
    return score_all([detector], bank.chunks())[0][0].numpy(), bank.rows
