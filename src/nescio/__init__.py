"""nescio: tell whether an image is something a classifier was trained for."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Bank": "run.bank",
    "Classifier": "models.classifier",
    "Deployed": "deploy",
    "Detector": "core.detector",
    "ProxyCalibrator": "calibration.posterior",
    "FeatureSet": "core.feature_set",
    "Features": "core.features",
    "Head": "core.features",
    "InputError": "core.errors",
    "InputStage": "core.stage",
    "Modulate": "core.stage",
    "Needs": "core.needs",
    "Objective": "methods.objective",
    "Score": "core.stage",
    "Shape": "core.stage",
    "Transform": "data.transform",
    "Verdict": "deploy",
    "Session": "run.session",
    "Results": "evaluation.results",
    "bench": "evaluation.bench",
    "evaluate": "evaluation.bench",
    "bench_suite": "evaluation.suites.published",
    "compare": "evaluation.compare",
    "explain": "explanation.maps",
    "export": "deploy",
    "fit": "deploy",
    "load": "deploy",
    "load_classifier": "models.load",
    "open_source": "data.source",
    "open_suite": "evaluation.suites.suite",
    "operating_point": "calibration.cost",
    "posterior": "calibration.posterior",
    "recommend": "evaluation.select",
    "score_images": "deploy",
    "train": "training",
    "tune": "evaluation.select",
}
__all__ = sorted(_WHERE)  # noqa: PLE0605 - the table above is the list


def __getattr__(name: str) -> Any:
    # the public names come from their modules on first use: `nescio --help` must not wait for PyTorch
    if name in _WHERE:
        value = getattr(importlib.import_module(f"nescio.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'nescio' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
