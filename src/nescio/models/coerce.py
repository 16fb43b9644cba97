"""What callers hand over as a classifier: the right thing, or a word about how to make it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from nescio.core.errors import InputError
from nescio.models.classifier import Classifier


def as_classifier(given: object) -> Classifier:
    """The classifier itself.

    Raises:
        InputError: it is something that a classifier could be made of; the message says how.
    """
    if isinstance(given, Classifier):
        return given
    if isinstance(given, str):
        raise InputError(f"expected a classifier, got the name '{given}'; give nescio.load_classifier({given!r})")
    if isinstance(given, nn.Module):
        raise InputError(
            f"expected a classifier, got the network {type(given).__name__}; give nescio.Classifier(network, "
            "nescio.Transform(…)) with the transform of its test images"
        )
    raise InputError(f"expected a classifier, as nescio.load_classifier(…) gives it, got {type(given).__name__}")


def classifiers_by_name(given: object) -> dict[str, Classifier]:
    """Classifiers by the names to print.

    Raises:
        InputError: they have no names, or one is no classifier.
    """
    if not isinstance(given, Mapping):
        as_classifier(given)  # what is no classifier either is refused as such
        raise InputError("expected classifiers by the name to print, as {'mine': classifier}, got one without a name")
    return {str(name): as_classifier(classifier) for name, classifier in given.items()}
