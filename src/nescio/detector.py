"""A detector: an ordered list of stages that ends in a score."""

from __future__ import annotations

import functools
import hashlib
import json
import time
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nescio import input as input_stages
from nescio import modulate, score, shape
from nescio.errors import InputError
from nescio.features import Features, TrainingData
from nescio.files import whole
from nescio.stage import PLACES, REGISTRY, InputStage, Stage, parse_stages

FORMAT = "nescio-detector/1"
FAMILIES = (input_stages, shape, modulate, score)  # importing them fills the registry


class Detector(nn.Module):
    """Stages in the order input → shape → modulate → score, written as one spec string.

    >>> Detector.parse("react:clip=1.6+energy")
    react:clip=1.6+energy
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.fitted_to: str | None = None
        """Fingerprint of the head that the detector was fitted for."""

    @classmethod
    def parse(cls, spec: str, model: str | None = None) -> Self:
        """The detector that a spec string or the name of a preset stands for.

        Args:
            spec: e.g. ``fm:p=0.6+react:clip=1.6+ls+energy`` or ``fmls``.
            model: the architecture's name, for presets with published hyperparameters per model.

        Raises:
            InputError: the spec cannot be read; the message names the part and the way out.
        """
        return cls(parse_stages(expand(spec, model)))

    def __repr__(self) -> str:
        return "+".join(map(repr, self.steps))

    @property
    def steps(self) -> list[Stage]:
        """The stages, typed."""
        return [s for s in self.stages if isinstance(s, Stage)]

    @property
    def needs_train(self) -> bool:
        """Whether fitting reads training features."""
        return any(s.needs_train for s in self.steps)

    @property
    def input_stage(self) -> InputStage | None:
        """The stage that makes a pass of its own, if there is one."""
        first = self.stages[0]
        return first if isinstance(first, InputStage) else None

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every hyperparameter of every stage, defaults included, and the single numbers that fitting chose."""
        return {s.name: s.settings() | s.learned() for s in self.steps}

    def fit(self, data: TrainingData) -> Self:
        """Fit every stage for a head (and on its training features, for stages that need them).

        Raises:
            InputError: a stage needs training images and there are none, or they do not suffice.
        """
        fit_all([self], data)
        return self

    def pipeline(self, f: Features) -> Features:
        """Everything before the score."""
        for stage in self.steps[:-1]:
            f = stage(f)
        return f

    def forward(self, features: Features) -> Tensor:
        """Scores ``(B,)`` float64 of raw features; higher means more in-distribution.

        Raises:
            RuntimeError: a stage is not fitted; it is named.
            InputError: the detector was fitted for another head.
        """
        if self.fitted_to not in (None, features.head.fingerprint):
            raise InputError(
                f"detector '{self}' was fitted for another model's head ({self.fitted_to}, not "
                f"{features.head.fingerprint}); fit it again for this model"
            )
        scores: Tensor = self.stages[-1](self.pipeline(features))
        return scores

    score = forward

    @property
    def pass_key(self) -> str:
        """A hash of all that decides what an input stage's pass does: every stage but the score, as fitted."""
        stages = self.steps[:-1]
        digest = hashlib.blake2b("+".join(map(repr, stages)).encode(), digest_size=16)
        for stage in stages:
            for name, t in sorted(stage.state_dict().items()):
                digest.update(name.encode() + t.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the fitted detector to one safetensors file with JSON metadata; an existing file is replaced whole."""
        if self.fitted_to is None:
            raise InputError(f"detector '{self}' is not fitted; fit it before saving")
        metadata = {
            "format": FORMAT,
            "spec": repr(self),
            "head": self.fitted_to,
            "settings": json.dumps(self.settings()),
        }
        with whole(Path(path)) as partial:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, partial, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a fitted detector.

        Raises:
            InputError: the file is missing, damaged, or not a detector of a known format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except FileNotFoundError:
            raise InputError(f"no detector file {path}") from None
        except (SafetensorError, OSError) as e:
            raise InputError(f"{path} cannot be read as a detector: {e}; fit and save it again") from None
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is not a detector file (format {metadata.get('format')!r}, expected {FORMAT!r})")
        detector = cls.parse(metadata["spec"])
        for key, tensor in tensors.items():
            owner, _, name = key.rpartition(".")
            detector.get_submodule(owner).register_buffer(name, tensor)
        detector.fitted_to = metadata["head"]
        return detector


def fit_all(detectors: Sequence[Detector], data: TrainingData) -> list[float]:
    """Fit several detectors at once. Equal shape and modulate stages are fitted once and shared between them.

    They can be shared because they are fitted on raw training features, whatever stands before them; a score stage
    is fitted on what the stages before it produce, so it belongs to its detector.

    Returns:
        the seconds that each detector's stages took to fit, a shared stage's counted in full for each.
    """
    shared: dict[str, tuple[Stage, float]] = {}
    seconds = []
    for detector in detectors:
        *before, last = detector.steps
        spent = 0.0
        for i, stage in enumerate(before):
            key = repr(stage)
            if key not in shared:
                shared[key] = (stage, _fit(stage, data))
            detector.stages[i] = shared[key][0]
            spent += shared[key][1]
        seconds.append(spent + _fit(last, data.map(detector.pipeline)))
        detector.fitted_to = data.head.fingerprint
    return seconds


@torch.no_grad()
def _fit(stage: Stage, data: TrainingData) -> float:
    start = time.perf_counter()
    stage.fit(data)
    return time.perf_counter() - start


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """The named detectors, from the data file."""
    return tomllib.loads(resources.files("nescio").joinpath("presets.toml").read_text())


def expand(spec: str, model: str | None = None) -> str:
    """The spec string that a preset's name stands for, for this model if it has published values; else ``spec``."""
    preset = presets().get(spec.strip())
    if preset is None:
        return spec.strip()
    expanded: str = preset.get("models", {}).get(model, preset["spec"])
    return expanded


def all_specs() -> list[str]:
    """One detector for every stage, with its defaults, and every preset: what ``--detector all`` stands for.

    A score stands alone; a shape or modulate stage stands before energy, an input stage before MSP. A stage that has
    options without a default is left out.
    """
    ends = {"score": "", "shape": "+energy", "modulate": "+energy", "input": "+msp"}
    stages = sorted(REGISTRY.values(), key=lambda s: (-PLACES.index(s.place), s.name))
    complete = [s for s in stages if all(p.default is not p.empty for p in s.options().values())]
    return [s.name + ends[s.place] for s in complete] + list(presets())


@torch.no_grad()
def score_all(detectors: Sequence[Detector], chunks: Iterable[Features]) -> tuple[list[Tensor], list[float]]:
    """Scores ``(N,)`` of each detector over one pass through a bank's chunks, and the seconds each took.

    Raw logits are computed once per chunk; their time counts for the first detector that asks for them.
    """
    scores: list[list[Tensor]] = [[] for _ in detectors]
    seconds = [0.0] * len(detectors)
    for f in chunks:
        for i, detector in enumerate(detectors):
            start = time.perf_counter()
            scores[i].append(detector(f))
            seconds[i] += time.perf_counter() - start
    return [torch.cat(s) for s in scores], seconds
