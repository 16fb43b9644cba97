"""What callers hand over as a classifier, made one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nescio.core.errors import InputError
from nescio.data.preprocess import AnyTransform, Function, as_transform
from nescio.models.classifier import Classifier
from nescio.models.inputs import channels_of
from nescio.models.load import load_classifier
from nescio.models.outputs import Key, unwrapped
from nescio.models.zoo.own import made_by


def as_classifier(
    model: Any,
    transform: str | AnyTransform | Function | None = None,
    *,
    size: Sequence[int] | None = None,
    head: str | None = None,
    output: Key | None = None,
    classes: int | Sequence[str] | None = None,
    device: str | torch.device = "auto",
) -> Classifier:
    """A classifier of what people hold: itself, a network, or a name.

    Args:
        model: a ``Classifier``, an ``nn.Module``, or a name or folder as ``load_classifier`` takes it.
        transform: how test images are prepared; by default the one that a name or a network of timm's brings.
        size: ``(C, H, W)`` of the normalised batches that a network is given, where there is no transform.
        head: as for ``Classifier``.
        output: as for ``Classifier``.
        classes: names of the classes in label order, or their number.
        device: where a network that is loaded by name goes; others stay where they are.

    Raises:
        InputError: it is none of these, or a network of which neither transform nor size is known.
    """
    if isinstance(model, Classifier):
        options = {"transform": transform, "head": head, "output": output, "classes": classes}
        extra = [name for name, value in options.items() if value is not None]
        if extra:
            raise InputError(f"{model.name} is a classifier already: give {', '.join(extra)} when you create it")
        return model
    if isinstance(model, str | Path):
        return load_classifier(
            str(model), transform=transform, head=head, output=output, classes=classes, device=device
        )
    if not isinstance(model, nn.Module) and type(model).__name__ != "ExportedProgram":
        raise InputError(
            f"expected a classifier, a network or a name, got {type(model).__name__}; e.g. an nn.Module, "
            "'torchvision:resnet50', or the result of nescio.load_classifier(…)"
        )
    network = unwrapped(model)
    own = made_by(network).transform(network)
    transform = own if transform is None else as_transform(transform, own, channels=channels_of(network))
    names = None if isinstance(classes, int) else classes
    made = Classifier(network, transform, size=size, head=head, output=output, classes=names)
    n = classes if isinstance(classes, int) or classes is None else len(classes)
    if n is not None and made.has_head and made.head.n_classes != n:
        raise InputError(f"{made.name} has {made.head.n_classes:,} classes, not {n:,}")
    return made


def classifiers_by_name(given: object) -> dict[str, Classifier]:
    """Classifiers by the names to print; one alone by its own. Each may be a session, or whatever holds a classifier.

    Raises:
        InputError: one is no classifier.
    """
    if isinstance(given, Mapping):
        return {str(name): as_classifier(getattr(one, "classifier", one)) for name, one in given.items()}
    classifier = as_classifier(getattr(given, "classifier", given))
    return {classifier.name: classifier}
