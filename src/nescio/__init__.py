"""nescio: tell whether an image is something a classifier was trained for."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Bank": "bank",
    "Classifier": "models",
    "Deployed": "deploy",
    "Detector": "detector",
    "ProxyCalibrator": "framework",
    "Features": "features",
    "Head": "features",
    "InputError": "errors",
    "TrainingData": "features",
    "Transform": "data",
    "Verdict": "deploy",
    "Results": "results",
    "bench": "benchmark",
    "bench_suite": "published",
    "compare": "comparison",
    "explain": "explanation",
    "export": "deploy",
    "extract": "extraction",
    "fit": "deploy",
    "load": "deploy",
    "load_classifier": "models",
    "open_source": "data",
    "open_suite": "data.suites",
    "operating_point": "calibration",
    "posterior": "framework",
    "recommend": "tuning",
    "score_images": "deploy",
    "train": "training",
    "tune": "tuning",
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
