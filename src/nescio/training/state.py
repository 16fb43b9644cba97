"""All that training continues from, in one safetensors file, written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nescio.errors import InputError
from nescio.files import whole
from nescio.models.classifier import Classifier
from nescio.models.runs import HEAD_PREFIX


@dataclass
class State:
    """A network in training.

    Attributes:
        network: the library's network, whose keys the weights are stored under.
        classifier: the same parameters as a classifier, with the heads.
        decay: of the averaged weights, per step; 0 for none.
        optimizer: over all parameters, once there is one.
        step: steps of the optimiser so far.
        sums: running sums of what is watched in this epoch.
        best: the largest value by which a checkpoint was selected so far, of each kind.
        average: the averaged weights.
    """

    network: nn.Module
    classifier: Classifier
    decay: float = 0.0
    optimizer: torch.optim.Optimizer = field(init=False)
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decay:
            self.average = {name: t.detach().clone() for name, t in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The weights and statistics as they are, the heads under ``HEAD_PREFIX``."""
        return self.network.state_dict() | self.classifier.heads.state_dict(prefix=HEAD_PREFIX)

    def weights(self) -> dict[str, Tensor]:
        """What is judged and kept: the averaged weights, where there are some."""
        return self.average or self.tensors()

    @torch.no_grad()
    def advance(self) -> None:
        """Count a step of the optimiser and average the weights."""
        self.step += 1
        for name, t in self.tensors().items() if self.average else ():
            if t.is_floating_point():
                self.average[name].lerp_(t, 1 - self.decay)
            else:
                self.average[name].copy_(t)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the averaged weights in the place of the others, and the other way round."""
        for name, t in self.tensors().items() if self.average else ():
            other = t.clone()
            t.copy_(self.average[name])
            self.average[name].copy_(other)

    def save(self, path: Path) -> None:
        """Write everything. Raises InputError where it cannot be written; what stood there before then stays."""
        stored = self.optimizer.state_dict()["state"]
        inner = {
            f"optimizer.{i}.{key}": torch.as_tensor(value)
            for i, values in stored.items()
            for key, value in values.items()
            if value is not None
        }
        parts = {"model": self.tensors(), "average": self.average, "": inner}
        tensors = {f"{part}.{k}" if part else k: t for part, named in parts.items() for k, t in named.items()}
        numbers = {"step": self.step, "sums": self.sums, "best": self.best}
        save_tensors(path, tensors, {"nescio": json.dumps(numbers)})

    def load(self, path: Path) -> None:
        """Go on from a file that ``save`` wrote for the same network and optimiser.

        Raises:
            InputError: the file is damaged, or another network's.
        """
        try:
            with safe_open(path, "pt") as file:
                numbers = json.loads(file.metadata()["nescio"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            raise InputError(f"{path} cannot be read as a checkpoint: {e}") from None
        for part, own in (("model", self.tensors()), ("average", self.average)):
            self._copy(path, own, {k.removeprefix(f"{part}."): t for k, t in tensors.items() if k.startswith(part)})
        stored: dict[int, dict[str, Any]] = {}
        for key, t in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                stored.setdefault(int(i), {})[name] = t
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": stored, "param_groups": groups})
        self.step, self.sums, self.best = numbers["step"], numbers["sums"], numbers["best"]

    @staticmethod
    def _copy(path: Path, own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
        wrong = [k for k in {**own, **stored} if k not in own or k not in stored or own[k].shape != stored[k].shape]
        if wrong:
            raise InputError(f"{path} is the checkpoint of another network: '{wrong[0]}' does not fit")
        with torch.no_grad():
            for name, t in own.items():
                t.copy_(stored[name])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, written whole.

    Raises:
        InputError: it cannot be written (the disk is full, say). What stood there before stays.
    """
    try:
        with whole(path) as partial:
            save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, partial, metadata)
    except (OSError, SafetensorError) as e:
        raise InputError(f"{path} cannot be written ({e}); the last one stays, and --resume goes on from it") from None
