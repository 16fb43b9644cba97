"""A detector: an ordered list of stages that ends in a score."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from nescio.core.detector_file import LARGE, StoredChain, megabytes
from nescio.core.errors import InputError
from nescio.core.feature_set import BLOCK, AnyHead, FeatureSet, as_head
from nescio.core.features import PLAIN_PASS, Features, NoHead
from nescio.core.fitting import BY_IMAGES, check_width, checked
from nescio.core.joint_fit import fit_chain, shared
from nescio.core.spec import check_order
from nescio.core.stage import Chain, InputStage, Stage
from nescio.core.steps import AnyStages, check_there, steps_of
from nescio.core.together import Together

log = logging.getLogger(__name__)


class Detector(StoredChain):
    """Stages in the order input → shape → modulate → score, written as one spec string.

    >>> Detector("react:clip=1.6+energy")
    react:clip=1.6+energy
    >>> repr(Detector("fm:p=0.3+energy")) == repr(FM(p=0.3) + Energy())  # this is how two are compared
    True
    >>> scores = Detector("knn:k=2").fit(np.eye(3))(np.eye(3))  # arrays in, an array out; tensors in, a tensor out

    Args:
        stages: a spec string (``fm:p=0.6+react:clip=1.6+ls+energy``), the name of a preset (``fmls``), a stage, or
            several of these in order, as ``FM(p=0.6) + "ls+energy"`` joins them.
        model: the network's name, ``classifier.name``, for presets with published hyperparameters per network.
        classes: how many it tells apart; None for as many as the published network, or its library's weights, do.

    Raises:
        InputError: the spec cannot be read, or the stages are no detector; the message names the part and the way out.
    """

    def __init__(self, stages: AnyStages, model: str | None = None, classes: int | None = None) -> None:
        items = [stages] if isinstance(stages, str | Stage | Chain) or not isinstance(stages, Iterable) else stages
        whole = isinstance(stages, str)
        steps = [step for item in items for step in steps_of(item, model, classes, partial=not whole)]
        if not whole:
            check_order(steps, "+".join(map(repr, steps)))
        super().__init__(steps)
        self._keyed: tuple[list[Any], list[Tensor], str] = ([], [], "")
        """The key of its pass, and what that was made of: hashing all that stages learned takes long."""

    @classmethod
    def joined(cls, items: Sequence[Any]) -> Detector:
        """What ``+`` makes: a detector that may lack its score yet."""
        steps = [step for item in items for step in steps_of(item, partial=True)]
        check_order(steps, "+".join(map(repr, steps)), partial=True)
        made = cls("msp")
        made.stages = torch.nn.ModuleList(steps)
        return made

    def __add__(self, other: AnyStages) -> Detector:
        return Detector.joined([self, other])

    def __radd__(self, other: AnyStages) -> Detector:
        return Detector.joined([other, self])

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

    def fit(
        self, features: Any = None, labels: Any = None, *, head: AnyHead | None = None, held_out: Any = None
    ) -> Self:
        """Fit every stage on training features, as far as it learns from any.

        Args:
            features: training features ``(N, L)`` as an array or tensor, or a ``FeatureSet`` with all that follows.
            labels: their true classes ``(N,)``.
            head: the classification head, ``(W, b)`` or an ``nn.Linear``; needless where no stage reads one.
            held_out: ID features that are none of these, for ensembles and a fitted temperature; without, a share of
                the training features is kept apart for them.

        Raises:
            InputError: a stage needs training features, labels or a head and there are none, or they do not suffice.
        """
        data = self._set(features, labels, head)
        if held_out is not None:
            apart = held_out if isinstance(held_out, FeatureSet) else FeatureSet(held_out, head=data.head)
            data = data.with_held_out(apart)
        fit_all([self], data)
        return self

    def forward(self, features: Any = None, *, logits: Any = None, head: AnyHead | None = None) -> Any:
        """Scores ``(N,)`` float64; higher means more in-distribution; NaN for a row that is not finite.

        Args:
            features: penultimate features ``(N, L)`` as an array or tensor, ``Features``, or a ``FeatureSet``.
            logits: ``(N, C)``, where these are at hand; enough for a detector that reads nothing else.
            head: what reads features given as an array; by default the head that the detector was fitted with.

        Returns:
            an array for arrays; for tensors a tensor, on their device.

        Raises:
            InputError: a stage is not fitted, or needs what these features lack, or the detector was fitted for another
                head, or reads another pass than the one they come from.
        """
        if isinstance(features, Features):
            self.check(features)
            return self.usable_scores(features)
        if isinstance(features, FeatureSet):
            return score_all([self], self._set(features, None, head).chunks())[0][0]
        rows = logits if features is None else features
        if rows is None:
            raise InputError(f"detector '{self}' scores features or logits: give one of them")
        record = FeatureSet(features, head=self.head if head is None else as_head(head), logits=logits).record()
        with torch.no_grad():
            self.check(record)
            scores = self.usable_scores(record)
        return scores if isinstance(rows, Tensor) else scores.cpu().numpy()

    def _set(self, features: Any, labels: Any, head: AnyHead | None) -> FeatureSet:
        """Features with what is given beside them.

        Raises:
            InputError: labels are given beside a set, which has its own.
        """
        if not isinstance(features, FeatureSet):
            return FeatureSet(features, labels, head=head)
        if labels is not None:
            raise InputError("give labels in the FeatureSet: FeatureSet(h, labels)")
        return features if head is None else features.with_head(as_head(head))

    def check(self, features: Features) -> None:
        """Refuse features that the detector cannot score.

        Raises:
            InputError: as for calling it.
        """
        self.check_complete()
        own, theirs = self.fitted_to, features.head.fingerprint
        if own and theirs and own != theirs:
            raise InputError(
                f"detector '{self}' was fitted for the head of another model ({own}, not {theirs}); fit it again for "
                "this model"
            )
        check_width(features)
        if self.width is not None and features.has_h and features.h.shape[1] != self.width:
            raise InputError(
                f"detector '{self}' was fitted on features of length {self.width:,}, but these have length "
                f"{features.h.shape[1]:,}; fit it again on features of this network"
            )
        if features.network_pass != self.pass_key:
            made = f"'{self.input_stage!r}' makes" if self.input_stage else "runs the unchanged network"
            raise InputError(
                f"detector '{self}' reads features of the pass that {made}, but these come from another pass: "
                f"{BY_IMAGES}"
            )
        if not (features.has_head and features.has_h):
            check_there(self.steps, features)

    def usable_scores(self, features: Features) -> Tensor:
        """Scores ``(B,)`` of features that were checked, NaN where something that the detector reads is not finite."""
        finite = features.finite(self.columns)
        if bool(finite.all()):
            return self._scores(features)
        scores = torch.full(finite.shape, torch.nan, dtype=torch.float64, device=finite.device)
        if finite.any():  # the others stay away from the rows that a stage looks at together
            scores[finite] = self._scores(features.rows(finite))
        return scores

    def _scores(self, features: Features) -> Tensor:
        scores = torch.as_tensor(self.of_any_pass(features))
        if scores.shape != (len(features),):
            got = f"{tuple(scores.shape)} for {len(features):,} rows"
            raise InputError(f"'{self.steps[-1]!r}' gives scores of shape {got}; expected one per row, (B,)")
        return scores.to(torch.float64)

    @property
    def pass_key(self) -> str:
        """A hash of all that decides what the input stage's pass does; without one, the name of the plain pass."""
        if self.input_stage is None:
            return PLAIN_PASS
        stages = self.steps[: self.input_stage.depends_on(self.steps)]
        state = [(name, t) for stage in stages for name, t in sorted(stage.state_dict(keep_vars=True).items())]
        now = [repr(stages), *(t._version for _, t in state)]  # noqa: SLF001 - no public way says so
        known, tensors, key = self._keyed
        if known != now or any(t is not other for (_, t), other in zip(state, tensors, strict=True)):
            digest = hashlib.blake2b("+".join(map(repr, stages)).encode(), digest_size=16)
            for name, t in state:
                digest.update(name.encode() + t.detach().cpu().contiguous().numpy().tobytes())
            key = digest.hexdigest()
            self._keyed = (now, [t for _, t in state], key)
        return key


Stage.join = Detector.joined
AnyDetector = AnyStages | Callable[[Features], Tensor]


def detectors_of(
    detectors: AnyDetector | Iterable[AnyDetector], model: str | None = None, classes: int | None = None
) -> dict[str, Detector]:
    """Detectors by what the caller called them: the spec string as it was given, else the detector's own.

    Args:
        detectors: one or several: spec strings, stages, detectors, functions of features.
        model: the network's name, for presets.
        classes: how many it tells apart.

    Raises:
        InputError: one is no detector.
    """
    several: Iterable[Any] = [detectors]
    if isinstance(detectors, Iterable) and not isinstance(detectors, str | Stage | Chain):
        several = detectors
    found: dict[str, Detector] = {}
    for one in several:
        detector = one if isinstance(one, Detector) else Detector([one] if callable(one) else one, model, classes)
        detector.check_complete()
        name = one.strip() if isinstance(one, str) else repr(detector)
        if name in found and isinstance(one, str):
            continue
        same = [n for n in found if n == name or re.fullmatch(re.escape(name) + r" \(\d+\)", n)]
        if not any(found[n] is detector for n in same):  # another of the same name, fitted on other features say
            found[f"{name} ({len(same) + 1})" if same else name] = detector
    return found


def fit_all(
    detectors: Sequence[Detector], data: FeatureSet, failed: Callable[[Detector, InputError], None] | None = None
) -> None:
    """Fit several detectors at once: one read of the features serves all, and what several compute is computed once.

    Equal shape and modulate stages are fitted once and shared between detectors. They can be because they are fitted
    on raw training features, whatever stands before them; a score stage is fitted on what the stages before it
    produce, so it belongs to its detector. Everything is learned to the last bit as if each were fitted alone.

    Args:
        detectors: to be fitted.
        data: training features, as far as the detectors need them.
        failed: told of a detector that cannot be fitted on these data, and why; without it, that is raised.
    """
    together, rows = Together(), shared(data.raw)
    sets: dict[tuple[str, frozenset[str]], FeatureSet] = {}
    for detector in detectors:
        detector.check_complete()
        read = detector.training_pass_key, frozenset(detector.columns)
        sets.setdefault(read, checked(rows, *read, repr(detector)))

    def fit(detector: Detector) -> InputError | None:
        own = sets[detector.training_pass_key, frozenset(detector.columns)]
        try:
            _check_enough(detector, data)
            fit_chain(detector, own, own)
        except InputError as e:
            if failed is None:
                raise
            return e
        return None

    fits = [together.task(partial(fit, detector))[0] for detector in detectors]
    together.run(fits)
    for detector, task in zip(detectors, fits, strict=True):
        error = task.result()
        if error is None:
            detector.head, detector.fitted_to, detector.width = data.head, data.head.fingerprint, _width(data)
        elif failed is not None:
            failed(detector, error)
        detector.fit_seconds = task.seconds
        if detector.size > LARGE:
            log.warning("detector %r keeps %s of training features", detector, megabytes(detector.size))


def _check_enough(detector: Detector, data: FeatureSet) -> None:
    """Refuse data that lack what a stage declares to be fitted on, also where it never asks for it.

    Raises:
        InputError: the stage, and what it is fitted on.
    """
    for stage in detector.steps:
        needs = stage.needs
        if needs.train and not data.has_rows:
            raise InputError(
                f"stage '{stage.name}' must be fitted, but no training features were given: give them as "
                "fit(h, labels), or give images with train= (--train)"
            )
        if needs.train and needs.labels and data.unlabelled:
            raise InputError(
                f"stage '{stage.name}' is fitted on labelled features, but there are no labels: give them "
                "as fit(h, labels)"
            )


def _width(data: FeatureSet) -> int | None:
    if not isinstance(data.head, NoHead):
        return data.head.weight.shape[1]
    first = next(data.chunks(), None) if data.has_rows else None
    return first.h.shape[1] if first is not None and first.has_h else None


@torch.no_grad()
def score_all(detectors: Sequence[Detector], chunks: Iterable[Features]) -> tuple[list[Tensor], list[float]]:
    """Scores ``(N,)`` of each detector over one pass through a bank's chunks, and the seconds each took.

    Raw logits are computed once per chunk; their time counts for the first detector that asks for them.
    """
    scores: list[list[Tensor]] = [[] for _ in detectors]
    seconds = [0.0] * len(detectors)
    for f in chunks:
        blocks = list(f.blocks(max(1, BLOCK // f.width)))
        for i, detector in enumerate(detectors):
            start = time.perf_counter()
            detector.check(f)
            whole = any(stage.groups_by_class for stage in detector.steps)
            scores[i] += [detector.usable_scores(block) for block in ([f] if whole else blocks)]
            seconds[i] += time.perf_counter() - start
    return [torch.cat(s) for s in scores], seconds
