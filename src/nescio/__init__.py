"""nescio: tell whether an image is something a classifier was trained for.

Three types do the work. A ``Detector`` is stages in order; it learns from features and scores them:

>>> detector = nescio.Detector("knn:k=5").fit(h_train)  # arrays (N, L), or tensors
>>> scores = detector(h_test)  # (N,), higher for images more like the training images

Stages are classes, joined with ``+``; the text that a detector prints makes it again:

>>> from nescio.methods import Energy, ReAct
>>> ReAct(q=0.9) + Energy()
react:q=0.9+energy

A ``Session`` runs a network over images. A ``FeatureSet`` is what comes out: rows of features with their labels:

>>> session = nescio.Session(net)
>>> train, test = session.features(train_loader), session.features(test_loader)
>>> train
FeatureSet(200 rows of 16 features, labelled)

``evaluate`` judges detectors on features, ``bench`` on images:

>>> ood = {"svhn": session.features(svhn_loader)}
>>> results = nescio.evaluate(["fmls", "knn", "energy"], train=train, id=test, ood=ood)
>>> results.row("knn", "svhn").auroc  # results.frame() has all of it
1.0

``fit`` adds a calibrated threshold and gives verdicts, ``load`` reads back whatever was written, ``tune`` and
``recommend`` choose without OOD images, ``train`` trains, ``explain`` draws. What cannot be used is an ``InputError``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from nescio.calibration.cost import operating_point as operating_point
    from nescio.calibration.posterior import ProxyCalibrator as ProxyCalibrator
    from nescio.calibration.posterior import posterior as posterior
    from nescio.core.detector import Detector as Detector
    from nescio.core.errors import InputError as InputError
    from nescio.core.feature_set import FeatureSet as FeatureSet
    from nescio.core.features import Features as Features
    from nescio.core.features import Head as Head
    from nescio.core.needs import Needs as Needs
    from nescio.core.stage import InputStage as InputStage
    from nescio.core.stage import Modulate as Modulate
    from nescio.core.stage import Score as Score
    from nescio.core.stage import Shape as Shape
    from nescio.data.source import open_source as open_source
    from nescio.data.transform import Transform as Transform
    from nescio.deploy import Deployed as Deployed
    from nescio.deploy import Verdict as Verdict
    from nescio.deploy import export as export
    from nescio.deploy import fit as fit
    from nescio.deploy import load as load
    from nescio.deploy import push as push
    from nescio.deploy import score_images as score_images
    from nescio.evaluation.bench import bench as bench
    from nescio.evaluation.bench import evaluate as evaluate
    from nescio.evaluation.compare import compare as compare
    from nescio.evaluation.results import Results as Results
    from nescio.evaluation.select import recommend as recommend
    from nescio.evaluation.select import tune as tune
    from nescio.evaluation.suites.published import bench_suite as bench_suite
    from nescio.evaluation.suites.suite import open_suite as open_suite
    from nescio.explanation.maps import explain as explain
    from nescio.integrations.torchmetrics import OODMetrics as OODMetrics
    from nescio.methods import cosine as cosine
    from nescio.methods import energy as energy
    from nescio.methods import entropy as entropy
    from nescio.methods import fdbd as fdbd
    from nescio.methods import gen as gen
    from nescio.methods import gmm as gmm
    from nescio.methods import gradnorm as gradnorm
    from nescio.methods import klm as klm
    from nescio.methods import knn as knn
    from nescio.methods import mahalanobis as mahalanobis
    from nescio.methods import maxlogit as maxlogit
    from nescio.methods import mcm as mcm
    from nescio.methods import msp as msp
    from nescio.methods import nci as nci
    from nescio.methods import nnguide as nnguide
    from nescio.methods import openmax as openmax
    from nescio.methods import pnml as pnml
    from nescio.methods import residual as residual
    from nescio.methods import rmd as rmd
    from nescio.methods import she as she
    from nescio.methods import vim as vim
    from nescio.methods.objective import Objective as Objective
    from nescio.models.classifier import Classifier as Classifier
    from nescio.models.load import load_classifier as load_classifier
    from nescio.models.probe import fit_probe as fit_probe
    from nescio.run.bank import Bank as Bank
    from nescio.run.session import Session as Session
    from nescio.training import train as train

__version__ = "0.1.0"

_NAMES = {
    "calibration.cost": "operating_point",
    "calibration.posterior": "ProxyCalibrator posterior",
    "core.detector": "Detector",
    "core.errors": "InputError",
    "core.feature_set": "FeatureSet",
    "core.features": "Features Head",
    "core.needs": "Needs",
    "core.stage": "InputStage Modulate Score Shape",
    "data.source": "open_source",
    "data.transform": "Transform",
    "deploy": "Deployed Verdict export fit load push score_images",
    "evaluation.bench": "bench evaluate",
    "evaluation.compare": "compare",
    "evaluation.results": "Results",
    "evaluation.select": "recommend tune",
    "evaluation.suites.published": "bench_suite",
    "evaluation.suites.suite": "open_suite",
    "explanation.maps": "explain",
    "integrations.torchmetrics": "OODMetrics",
    "methods": "cosine energy entropy fdbd gen gmm gradnorm klm knn mahalanobis maxlogit mcm msp nci nnguide openmax "
    "pnml residual rmd she vim",
    "methods.objective": "Objective",
    "models.classifier": "Classifier",
    "models.load": "load_classifier",
    "models.probe": "fit_probe",
    "run.bank": "Bank",
    "run.session": "Session",
    "training": "train",
}
"""The public names of each module. They are imported on first use: ``nescio --help`` must not wait for PyTorch."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULES)  # noqa: PLE0605 - the table above is the list


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"nescio.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'nescio' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
