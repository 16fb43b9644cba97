"""The folder that training leaves: what the network is (``run.json``), and its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from nescio.core.artifact import Kind, read, write
from nescio.core.errors import InputError
from nescio.core.features import Head
from nescio.data.transform import Transform
from nescio.models.classifier import FITTED, Classifier
from nescio.models.weights import read_weights

KIND = Kind("run", 2, "a trained network", "undo the change, or train it again")
RUN, WEIGHTS, STATE = "run.json", "model.safetensors", "last.safetensors"
HEAD_PREFIX = "nescio.heads."
"""Before the names of tensors that are not the library network's own, in a file of weights."""
MOST_CLASSES = 1_000_000
"""That a file may ask for: the head of a network is made before its weights are read."""


def is_names(value: object, n: int) -> bool:
    """Whether a value of JSON is a list of n names."""
    return isinstance(value, list) and len(value) == n and all(isinstance(name, str) for name in value)


@dataclass
class Run:
    """What a trained network is, and what it follows from.

    Attributes:
        model: the architecture's name, as ``load_classifier`` takes it.
        n_classes: number of classes.
        classes: their names in label order, where known.
        transform: the test transform.
        objective: what was minimised, as a spec string.
        settings: everything else that the weights follow from: recipe, seed, hashes of the data, initial weights.
        selected: which epochs' weights are kept, and by what they were chosen; None before the first epoch.
        made_with: versions, machine, and ``seconds`` of training up to the last checkpoint, over all sittings; they do
            not bind.
    """

    model: str
    n_classes: int
    classes: list[str] | None
    transform: str
    objective: str
    settings: dict[str, Any]
    selected: dict[str, Any] | None = None
    made_with: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``run.json``.

        Raises:
            InputError: it is missing, damaged, or of a later version.
        """
        path = folder / RUN
        if not path.exists():
            raise InputError(f"{folder} is not a trained network: it has no {RUN}")
        file = read(path, KIND)
        with file.taken_apart():
            run = cls(**file.meta)
            run.check()
        return run

    def check(self) -> None:
        """Raise ValueError where an entry is not of its kind."""
        kinds = {"model": str, "transform": str, "objective": str, "settings": dict, "made_with": dict}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"'{name}' is not of type {kind.__name__}")
        if type(self.n_classes) is not int or not 1 < self.n_classes <= MOST_CLASSES:
            raise ValueError(f"'n_classes' is not a number of classes up to {MOST_CLASSES:,}")
        if self.classes is not None and not is_names(self.classes, self.n_classes):
            raise ValueError(f"'classes' are not {self.n_classes:,} names")
        if not isinstance(self.selected, dict | None):
            raise ValueError("'selected' is not of type dict")
        Transform.parse(self.transform)

    def write(self, folder: Path) -> None:
        """Write ``run.json``, whole."""
        write(folder / RUN, KIND, vars(self))

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """The selected weights, with the heads under ``HEAD_PREFIX``."""
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{folder} has no {WEIGHTS} yet: its training has not finished an epoch")
        return read_weights(folder / WEIGHTS)

    @property
    def test_transform(self) -> Transform:
        """How test images are prepared."""
        return Transform.parse(self.transform)


def state_of(classifier: Classifier) -> dict[str, Tensor]:
    """All weights under the library network's own names; a fitted head, and the heads beside it, under ours."""
    prefix = f"{classifier.head_name}." if classifier.head_name else ""
    head = classifier.layer.state_dict(prefix=prefix) if classifier.has_head else {}
    return classifier.body.state_dict() | head | classifier.heads.state_dict(prefix=HEAD_PREFIX)


def split_heads(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Head | None, dict[str, Tensor]]:
    """A state dict in three: the library network's own, a fitted head, the heads beside it by ``NAME.PARAMETER``."""
    beside = {k.removeprefix(HEAD_PREFIX): t for k, t in state.items() if k.startswith(HEAD_PREFIX)}
    weight, bias = (state.get(f"{FITTED}.{name}") for name in ("weight", "bias"))
    own = {k: t for k, t in state.items() if not k.startswith((HEAD_PREFIX, f"{FITTED}."))}
    return own, None if weight is None or bias is None else Head(weight, bias), beside
