"""All that training continues from, in one safetensors file, written whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nescio.core.artifact import Kind, read, write
from nescio.core.errors import InputError
from nescio.core.files import whole
from nescio.models.classifier import Classifier
from nescio.models.runs import HEAD_PREFIX


@dataclass
class State:
    """A network in training.

    Attributes:
        objective: what else is trained or remembered; its tensors are neither averaged nor kept with the weights.
        network: the library's network, whose keys the weights are stored under.
        classifier: the same parameters as a classifier, with the heads.
        decay: of the averaged weights, per step; 0 for none. Early steps are averaged over fewer: ``(1 + n)/(10 + n)``
            where that is less.
        settings: a hash of all that the run follows from; a file of another run is refused.
        optimizer: over all parameters, once there is one.
        step: steps of the optimiser so far.
        sums: running sums of what is watched in this epoch.
        selected: the epochs whose weights are kept, and by what they were chosen.
        lines: the numbers of each epoch so far.
        average: the averaged weights, each tensor under the first of its names.
    """

    network: nn.Module
    classifier: Classifier
    objective: nn.Module = field(default_factory=nn.Module)
    decay: float = 0.0
    settings: str = ""
    optimizer: torch.optim.Optimizer = field(init=False)
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    selected: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decay:
            self.average = {name: t.detach().clone() for name, t in self._distinct().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The weights and statistics as they are, the heads under ``HEAD_PREFIX``."""
        return self.network.state_dict() | self.classifier.heads.state_dict(prefix=HEAD_PREFIX)

    def all_tensors(self) -> list[Tensor]:
        """These, and the objective's own."""
        return [*self.tensors().values(), *self.objective.state_dict().values()]

    def _distinct(self) -> dict[str, Tensor]:
        """The same, a tensor that has several names under the first of them."""
        first: dict[tuple[Any, ...], str] = {}
        tensors = self.tensors()
        for name, t in tensors.items():
            first.setdefault(_place(t), name)
        return {name: tensors[name] for name in first.values()}

    def weights(self) -> dict[str, Tensor]:
        """What is judged and kept: the averaged weights, where there are some."""
        if not self.average:
            return self.tensors()
        by_place = {_place(t): self.average[name] for name, t in self._distinct().items()}
        return {name: by_place[_place(t)] for name, t in self.tensors().items()}

    @torch.no_grad()
    def advance(self) -> None:
        """Count a step of the optimiser and average the weights."""
        self.step += 1
        # timm.utils.ModelEmaV3 warms up otherwise, keeps a whole second network, and does not swap it with the first
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, t in self._distinct().items() if self.average else ():
            if t.is_floating_point():
                self.average[name].lerp_(t, 1 - decay)
            else:
                self.average[name].copy_(t)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the averaged weights in the place of the others, and the other way round."""
        for name, t in self._distinct().items() if self.average else ():
            other = t.clone()
            t.copy_(self.average[name])
            self.average[name].copy_(other)

    def check_finite(self) -> None:
        """Raise InputError where a weight is not finite any more."""
        for name, t in self.tensors().items():
            if not bool(t.isfinite().all()):
                raise InputError(f"the weights are no longer finite ('{name}'); {HINT}")

    def save(self, path: Path) -> None:
        """Write everything. Raises InputError where it cannot be written; what stood there before then stays."""
        stored = self.optimizer.state_dict()["state"]
        inner = {
            f"optimizer.{i}.{key}": torch.as_tensor(value)
            for i, values in stored.items()
            for key, value in values.items()
            if value is not None
        }
        groups = {"model": self.tensors(), "average": self.average, "objective": self.objective.state_dict(), "": inner}
        tensors = {f"{part}.{k}" if part else k: t for part, named in groups.items() for k, t in named.items()}
        write(path, KIND, {name: getattr(self, name) for name in _NUMBERS}, tensors, KEPT)

    def load(self, path: Path) -> None:
        """Go on from a file that ``save`` wrote for the same run.

        Raises:
            InputError: the file is damaged, or another run's.
        """
        file = read(path, KIND)
        if file.meta.get("settings") != self.settings:
            raise InputError(f"{path} is the checkpoint of another run; move it away, or give another folder")
        for part, own in (
            ("model.", self.tensors()),
            ("average.", self.average),
            ("objective.", self.objective.state_dict()),
        ):
            self._copy(path, own, file.under(part))
        with file.taken_apart():
            stored: dict[int, dict[str, Any]] = {}
            for key, t in file.under("optimizer.").items():
                i, name = key.split(".")
                stored.setdefault(int(i), {})[name] = t
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": stored, "param_groups": groups})
            for name in _NUMBERS:
                setattr(self, name, file.meta[name])

    @staticmethod
    def _copy(path: Path, own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
        wrong = [k for k in {**own, **stored} if k not in own or k not in stored or own[k].shape != stored[k].shape]
        if wrong:
            raise InputError(f"{path} is the checkpoint of another network: '{wrong[0]}' does not fit")
        with torch.no_grad():
            for name, t in own.items():
                t.copy_(stored[name])


KIND = Kind("state", 2, "a checkpoint", "train again, or continue from another copy", unmarked=True, finite=False)
KEPT = "the last one is kept, and resume=True (--resume) continues from it"
_NUMBERS = ("settings", "step", "sums", "selected", "lines")
HINT = (
    "try a lower learning rate, optimizer= (--optimizer NAME:lr=…), clip=1 (--clip 1) or precision='32' "
    "(--precision 32)"
)


def _place(t: Tensor) -> tuple[Any, ...]:
    """Equal for two names of one tensor."""
    return (t.data_ptr(), t.shape, t.stride()) if t.numel() else (id(t),)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of weights alone, which any library reads; written whole.

    Raises:
        InputError: it cannot be written (the disk is full, say). What stood there before stays.
    """
    with whole(path, KEPT) as partial:
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, partial)
