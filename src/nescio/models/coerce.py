"""What callers hand over as a classifier: the right thing, what it can be made of, or a word about how to make it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nescio.core.errors import InputError
from nescio.models.classifier import Classifier
from nescio.models.load import load_classifier


def as_classifier(given: object, **options: Any) -> Classifier:
    """The classifier itself, or that of a name or a network.

    Raises:
        InputError: it is none of these; the message says how to make one.
    """
    if isinstance(given, Classifier):
        return given
    known = {name: value for name, value in options.items() if value is not None}
    if isinstance(given, str):
        return load_classifier(given, **known)
    if isinstance(given, nn.Module):
        return Classifier(given, **known)
    raise InputError(f"expected a classifier, a network or a name, got {type(given).__name__}")


def classifiers_by_name(given: object) -> dict[str, Classifier]:
    """Classifiers by the names to print.

    Raises:
        InputError: they have no names, or one is no classifier.
    """
    if not isinstance(given, Mapping):
        as_classifier(given)  # what is no classifier either is refused as such
        raise InputError("expected classifiers by the name to print, as {'mine': classifier}, got one without a name")
    return {str(name): as_classifier(classifier) for name, classifier in given.items()}
