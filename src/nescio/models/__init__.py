"""Classifiers: any PyTorch image classifier as backbone → feature map → pool → neck → h → head."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier
    from nescio.models.load import load_classifier
    from nescio.models.probe import fit_probe

__all__ = ["Classifier", "fit_probe", "load_classifier"]
_WHERE = {"Classifier": "classifier", "fit_probe": "probe", "load_classifier": "load"}


def __getattr__(name: str) -> Any:
    # on first use: a detector of features in memory, whose methods define heads, need not wait for torchvision
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
