"""A detector: an ordered list of stages that ends in a score."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from nescio.core.errors import InputError, some
from nescio.core.features import PLAIN_PASS, Features, TrainingData
from nescio.core.files import whole
from nescio.core.fitting import BY_IMAGES, check_width, checked
from nescio.core.spec import parse_stages
from nescio.core.stage import Chain, InputStage, Stage, fit_stage
from nescio.core.tensors import read_tensors, seal

FORMAT = "nescio-detector/1"
BLOCK = 1 << 20
"""Entries of ``h`` that are scored at once: 4 MB, which a core's cache holds from one operation to the next."""
LARGE = 1_000_000_000
"""Bytes of learned tensors above which a user should know what they are about to store and load."""

log = logging.getLogger(__name__)


class Detector(Chain):
    """Stages in the order input → shape → modulate → score, written as one spec string.

    >>> Detector.parse("react:clip=1.6+energy")
    react:clip=1.6+energy
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__(stages)
        self.fitted_to: str | None = None
        """Fingerprint of the head that the detector was fitted for."""

    @classmethod
    def parse(cls, spec: str, model: str | None = None, classes: int | None = None) -> Self:
        """The detector that a spec string or the name of a preset stands for.

        Args:
            spec: e.g. ``fm:p=0.6+react:clip=1.6+ls+energy`` or ``fmls``.
            model: the network's name, ``classifier.name``, for presets with published hyperparameters per network.
            classes: how many it tells apart; None for as many as the published network, or its library's weights, do.

        Raises:
            InputError: the spec cannot be read; the message names the part and the way out.
        """
        (spec,) = specs_of([spec])
        return cls(parse_stages(spec, model, classes))

    @property
    def input_stage(self) -> InputStage | None:
        """The stage that makes a pass of its own, if there is one."""
        first = self.stages[0]
        return first if isinstance(first, InputStage) else None

    @property
    def training_pass_key(self) -> str:
        """Key of the pass whose features the detector is fitted on: its own if that is a fixed one, else the plain."""
        stage = self.input_stage
        return self.pass_key if stage is not None and stage.fixed else PLAIN_PASS

    @property
    def needs_images(self) -> bool:
        """Whether the input stage chooses something by running the network over ID images."""
        return self.input_stage is not None and self.input_stage.needs_images

    def fit(self, data: TrainingData) -> Self:
        """Fit every stage for a head (and on its training features, for stages that need them).

        Raises:
            InputError: a stage needs training images and there are none, or they do not suffice.
        """
        fit_all([self], data)
        return self

    def forward(self, features: Features) -> Tensor:
        """Scores ``(B,)`` float64 of raw features; higher means more in-distribution; NaN where one is not finite.

        Raises:
            RuntimeError: a stage is not fitted; it is named.
            InputError: the detector was fitted for another head, or reads another pass than the one they come from.
        """
        self.check(features)
        return self.usable_scores(features)

    def check(self, features: Features) -> None:
        """Refuse features that the detector cannot score.

        Raises:
            InputError: as for calling it.
        """
        if self.fitted_to not in (None, features.head.fingerprint):
            raise InputError(
                f"detector '{self}' was fitted for another model's head ({self.fitted_to}, not "
                f"{features.head.fingerprint}); fit it again for this model"
            )
        check_width(features)
        if features.network_pass != self.pass_key:
            made = f"'{self.input_stage!r}' makes" if self.input_stage else "runs the network as it is"
            raise InputError(
                f"detector '{self}' reads features of the pass that {made}; these come from another: {BY_IMAGES}"
            )

    def usable_scores(self, features: Features) -> Tensor:
        """Scores ``(B,)`` of features that were checked, NaN where something that the detector reads is not finite."""
        finite = features.finite(self.columns)
        if bool(finite.all()):
            return self.of_any_pass(features).to(torch.float64)
        scores = torch.full(finite.shape, torch.nan, dtype=torch.float64, device=finite.device)
        if finite.any():  # the others stay away from the rows that a stage looks at together
            scores[finite] = self.of_any_pass(features.rows(finite)).to(torch.float64)
        return scores

    score = forward

    @property
    def size(self) -> int:
        """Bytes of what the stages learned: what a file of the detector takes."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    @property
    def pass_key(self) -> str:
        """A hash of all that decides what the input stage's pass does; without one, the name of the plain pass."""
        if self.input_stage is None:
            return PLAIN_PASS
        stages = self.steps[: self.input_stage.depends_on(self.steps)]
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
        learned = {k: v.contiguous() for k, v in self.state_dict().items()}
        metadata["hash"] = seal(learned, metadata)
        big = log.warning if self.size > LARGE else log.info
        big("detector %r takes %s on disk", self, _megabytes(self.size))
        with whole(Path(path)) as partial:
            save_file(learned, partial, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a fitted detector.

        Raises:
            InputError: the file is missing, damaged, or not a detector of a known format.
        """
        try:
            metadata, tensors = read_tensors(Path(path))
        except FileNotFoundError:
            raise InputError(f"no detector file {path}") from None
        except (OSError, ValueError) as e:
            raise InputError(f"{path} cannot be read as a detector: {e}; fit and save it again") from None
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is not a detector file (format {metadata.get('format')!r}, expected {FORMAT!r})")
        if not {"spec", "head"} <= set(metadata):
            raise InputError(f"{path} does not say what detector it holds, or for which head; fit and save it again")
        stored = metadata.pop("hash", None)  # not in the first files
        try:
            detector = cls.parse(metadata["spec"])
            detector.restore(tensors, metadata["head"])
        except InputError as e:
            raise InputError(f"{path}: {e}; fit and save it again") from None
        if stored not in (None, seal(tensors, metadata)):
            raise InputError(f"{path} is damaged: its contents do not match its hash; fit and save it again")
        return detector

    def restore(self, tensors: Mapping[str, Tensor], head: str) -> None:
        """Take over what a detector of the same spec learned.

        Args:
            tensors: its ``state_dict()``.
            head: fingerprint of the head that it was fitted for.

        Raises:
            InputError: these are not what this detector learns.
        """
        learned = {
            f"{owner}.{name}": (module, name)
            for owner, module in self.named_modules()
            if isinstance(module, Stage)
            for name in module.declared()
        }
        if set(learned) != set(tensors):
            odd = some(sorted(set(learned) ^ set(tensors)))
            raise InputError(f"these tensors are not what detector '{self}' learns ({odd})")
        for key, (module, name) in learned.items():
            module.register_buffer(name, tensors[key])
        self.fitted_to = head


def specs_of(given: str | Iterable[str]) -> list[str]:
    """One spec string, or several, as a list.

    Raises:
        InputError: one is no text.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str)
    specs: list[Any] = list(given) if several else [given]
    for spec in specs:
        if not isinstance(spec, str):
            hint = f"; this detector's is {spec!r}" if isinstance(spec, Detector) else ""
            raise InputError(f"expected a detector as a spec string, e.g. 'fmls', got {type(spec).__name__}{hint}")
    return specs


def fit_all(
    detectors: Sequence[Detector], data: TrainingData, failed: Callable[[Detector, InputError], None] | None = None
) -> list[float]:
    """Fit several detectors at once. Equal shape and modulate stages are fitted once and shared between them.

    They can be shared because they are fitted on raw training features, whatever stands before them; a score stage
    is fitted on what the stages before it produce, so it belongs to its detector.

    Args:
        detectors: to be fitted.
        data: training features, as far as the detectors need them.
        failed: told of a detector that cannot be fitted on these data, and why; without it, that is raised.

    Returns:
        the seconds that each detector's stages took to fit, a shared stage's counted in full for each.
    """
    shared: dict[tuple[str, str], tuple[Stage, float]] = {}
    raw: dict[tuple[str, frozenset[str]], TrainingData] = {}
    seconds = []
    for detector in detectors:
        *before, last = detector.steps
        key, columns = detector.training_pass_key, frozenset(detector.columns)
        own = raw.setdefault((key, columns), checked(data.raw, key, columns, repr(detector)))
        spent = 0.0
        try:
            for i, stage in enumerate(before):
                if (key, repr(stage)) not in shared:
                    shared[key, repr(stage)] = (stage, _fit(stage, own))
                detector.stages[i], took = shared[key, repr(stage)]
                spent += took
            spent += _fit(last, own.map(detector.pipeline))
        except InputError as e:
            if failed is None:
                raise
            failed(detector, e)
        else:
            detector.fitted_to = data.head.fingerprint
        seconds.append(spent)
        if detector.size > LARGE:
            log.warning("detector %r holds %s of training features", detector, _megabytes(detector.size))
    return seconds


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@torch.no_grad()
def _fit(stage: Stage, data: TrainingData) -> float:
    start = time.perf_counter()
    fit_stage(stage, data)
    return time.perf_counter() - start


@torch.no_grad()
def score_all(detectors: Sequence[Detector], chunks: Iterable[Features]) -> tuple[list[Tensor], list[float]]:
    """Scores ``(N,)`` of each detector over one pass through a bank's chunks, and the seconds each took.

    Raw logits are computed once per chunk; their time counts for the first detector that asks for them.
    """
    scores: list[list[Tensor]] = [[] for _ in detectors]
    seconds = [0.0] * len(detectors)
    for f in chunks:
        blocks = list(f.blocks(max(1, BLOCK // f.h.shape[1])))
        for i, detector in enumerate(detectors):
            start = time.perf_counter()
            detector.check(f)
            whole = any(stage.groups_by_class for stage in detector.steps)
            scores[i] += [detector.usable_scores(part) for part in ([f] if whole else blocks)]
            seconds[i] += time.perf_counter() - start
    return [torch.cat(s) for s in scores], seconds
