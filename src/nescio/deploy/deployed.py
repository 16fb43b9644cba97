"""A classifier, a fitted detector and its calibration: images go in, verdicts come out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nescio.calibration.conformal import Calibration
from nescio.calibration.posterior import ProxyCalibrator
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.core.features import Features
from nescio.core.spec import parse_stages
from nescio.core.stage import Chain, Network
from nescio.data.coerce import pictures
from nescio.data.source import AnySource
from nescio.models import Classifier
from nescio.models.heads import decide, probability
from nescio.run.engines import FLOAT32
from nescio.run.passes import PLAIN, Pass, pass_of
from nescio.run.session import Session, as_session

UNDECIDED = 0.5
"""Tolerances from the least accepted score within which rounding may decide."""
UNDECIDED_WIDE = 500.0
"""The same in lower precision, and where an input stage follows a gradient's signs: rounding turns some (ODIN on
EfficientNet-Lite0: 40)."""


@dataclass(frozen=True)
class Verdict:
    """What is said of one image.

    Attributes:
        label: the classifier's own prediction, whatever the detector does: a class name, or its number as text.
        index: the same as a number.
        probability: of the label, by the classifier's softmax: ``P(label | x ∈ ID, x)``.
        score: the detector's; higher means more in-distribution.
        p_value: share of ID images that score this low, as the calibration images show it. Not a probability of ID.
        accepted: whether the score reaches the calibrated threshold.
        p_id: ``P(x ∈ ID | x)``, from an OOD head or a calibrator against a named proxy; None where there is neither.
    """

    label: str
    index: int
    probability: float
    score: float
    p_value: float
    accepted: bool
    p_id: float | None = None

    @property
    def posterior(self) -> float | None:
        """``P(label | x)``: ``probability · p_id`` (Pei, ICLR 2024, equation 7); None where there is no ``p_id``."""
        return None if self.p_id is None else self.probability * self.p_id


@dataclass(frozen=True)
class Judged:
    """What is said of B images, column by column, as in ``Verdict``. Where features are not finite, scores are NaN."""

    pred: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    p_value: npt.NDArray[np.float64]
    accepted: npt.NDArray[np.bool_]
    p_id: npt.NDArray[np.float64] | None


class Deployed:
    """A detector that is ready for use, as ``nescio.fit`` makes it and ``nescio.load`` reads it.

    Args:
        session: the network and how it is run, or a classifier.
        detector: fitted for it.
        calibration: its threshold.
        calibrator: ``P(x ∈ ID | x)`` of a score; a network's own OOD head goes before it.
        about: what else is known: where it comes from, versions.
    """

    def __init__(
        self,
        session: Session | Classifier,
        detector: Detector,
        calibration: Calibration,
        *,
        calibrator: ProxyCalibrator | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.session, self.detector, self.calibration = as_session(session), detector, calibration
        self.calibrator, self.about = calibrator, about or {}

    def __call__(self, images: AnySource, *, batch_size: int | None = None) -> list[Verdict]:
        """A verdict for each image.

        Args:
            images: a path, a PIL image, an array, a tensor, or several of these; see ``nescio.data.source.as_source``.
            batch_size: images per step; 32 on a CPU, 256 on a GPU by default.

        Raises:
            InputError: one of them is no image; it is named.
        """
        size = batch_size or self.session.batch
        geometry = self.classifier.transform.geometry
        seen = (geometry(picture) for picture in pictures(images))
        verdicts: list[Verdict] = []
        while batch := list(itertools.islice(seen, size)):
            verdicts += self.verdicts(self.judge(torch.stack(batch)))
        return verdicts

    def save(self, path: str | Path, *, weights: bool = True) -> None:
        """Write one file that ``nescio.load`` reads, whole.

        Args:
            path: usually ends in ``.nescio``.
            weights: put the network's weights into the file; else their hash alone, and ``load`` must be given them.
        """
        from nescio.deploy.file import save

        save(self, path, weights=weights)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Deployed:
        """Read what ``save`` wrote; the options are those of ``nescio.deploy.file.load``."""
        from nescio.deploy.file import load

        return load(cls, path, **options)

    def __repr__(self) -> str:
        n, accept = self.classifier.head.n_classes, self.calibration.accept
        return f"Deployed({self.detector} on {self.classifier.name}, {n:,} classes, accepts {accept:.0%} of ID images)"

    def verdicts(self, judged: Judged) -> Iterator[Verdict]:
        """Row by row.

        Raises:
            InputError: as ``verdict``.
        """
        for i in range(len(judged.pred)):
            yield self.verdict(judged, i)

    def verdict(self, judged: Judged, i: int) -> Verdict:
        """Row ``i``.

        Raises:
            InputError: the network's features of the image are not finite.
        """
        if np.isnan(judged.score[i]):
            raise InputError("the network's features of an image are not finite: there is no verdict; leave it out")
        index = int(judged.pred[i])
        return Verdict(
            self.class_name(index),
            index,
            float(judged.probability[i]),
            float(judged.score[i]),
            float(judged.p_value[i]),
            bool(judged.accepted[i]),
            None if judged.p_id is None else float(judged.p_id[i]),
        )

    def class_name(self, index: int) -> str:
        """A class's name, or its number where none is known."""
        return self.classifier.classes[index] if self.classifier.classes else str(index)

    @torch.no_grad()
    def judge(self, images: Tensor) -> Judged:
        """Verdicts for images as the transform's geometry leaves them: uint8 ``(B, 3, crop, crop)``.

        An image's last bits depend on the batch that it is in. Where these could decide, the image is judged alone, so
        that its verdict is the same in every batch.
        """
        return self.judge_through(None, images)[0]

    @torch.no_grad()
    def judge_through(self, network: Network | None, images: Tensor) -> tuple[Judged, Features]:
        """As ``judge``, with the features of the plain pass.

        Args:
            network: runs the plain pass, for one with more probes in it; an image judged alone goes through the usual
                one, so that the verdict is the same.
            images: as ``judge`` takes them.
        """
        plain, own = self.features(images, network)
        judged = self.judged(plain, own)
        if len(images) > 1:
            stage = self.detector.input_stage
            settled = (stage is None or stage.fixed) and self.session.precision == FLOAT32
            reach = UNDECIDED if settled else UNDECIDED_WIDE
            for i in np.flatnonzero(self.calibration.close(judged.score, judged.pred, reach)):
                alone = self.judged(*self.features(images[i : i + 1]))
                for column, decided in zip(vars(judged).values(), vars(alone).values(), strict=True):
                    if column is not None:
                        column[i] = decided[0]
        return judged, plain

    @torch.no_grad()
    def features(self, images: Tensor, network: Network | None = None) -> tuple[Features, Features | None]:
        """What ``judged`` needs of images: the plain pass (through ``network``, if given), and the detector's own."""
        x = self.classifier.transform.normalise(images.to(self.classifier.device, non_blocking=True))
        return self._passes(x.contiguous(memory_format=torch.channels_last), network)

    @torch.no_grad()
    def judged(self, plain: Features, own: Features | None = None) -> Judged:
        """Verdicts from features.

        Args:
            plain: of the network's plain pass.
            own: of the detector's own pass, where it has an input stage.

        Raises:
            InputError: the features are another model's.
        """
        read = plain if own is None else own
        score = self._detector(read).cpu().numpy()
        pred = plain.pred.cpu().numpy()
        logits = decide(self.classifier.heads, plain.h, plain.head)
        probability = logits.to(torch.float64).softmax(dim=1).max(dim=1).values
        return Judged(
            pred,
            probability.cpu().numpy(),
            score,
            self.calibration.p_values(score, pred),
            self.calibration.accepted(score, pred),
            self._p_id(plain, score),
        )

    @property
    def gives_p_id(self) -> bool:
        """Whether verdicts have a ``p_id``."""
        return bool(self.head_p_id or self.calibrator)

    @property
    def classifier(self) -> Classifier:
        """The network."""
        return self.session.classifier

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made on first use: traced networks cannot be pickled."""
        made = {name for name, of_class in vars(type(self)).items() if isinstance(of_class, cached_property)}
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def _p_id(self, plain: Features, score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
        if self.head_p_id is not None:
            p: npt.NDArray[np.float64] = self.head_p_id(plain).cpu().numpy()
            return p
        return None if self.calibrator is None else self.calibrator(torch.from_numpy(score)).numpy()

    @cached_property
    def head_p_id(self) -> Chain | None:
        """The score that is ``P(x ∈ ID | x)`` by one of the network's own heads, if one gives it."""
        spec = probability(self.classifier.heads)
        return Chain(parse_stages(spec)) if spec else None

    @cached_property
    def _detector(self) -> Detector:
        """The detector where the network is."""
        return copy.deepcopy(self.detector).to(self.classifier.device)

    @cached_property
    def _own_pass(self) -> Pass:
        return pass_of(self.detector, self.classifier.device)

    @cached_property
    def _networks(self) -> tuple[Network, Network | None]:
        plain = self.session.network(PLAIN, self.plain_probes)
        if self.detector.input_stage is None:
            return plain, None
        return plain, self.session.network(self._own_pass, self.detector.needs.probes)

    @property
    def plain_probes(self) -> dict[str, Any]:
        """What is to be computed from feature maps in the plain pass."""
        own = {} if self.detector.input_stage else dict(self.detector.needs.probes)
        return own | (dict(self.head_p_id.needs.probes) if self.head_p_id is not None else {})

    def _passes(self, x: Tensor, network: Network | None) -> tuple[Features, Features | None]:
        plain, other = self._networks
        own = None
        if other is not None:
            own = self._bound(self._own_pass.run(other, x))
        return self._bound((network or plain)(x)), own

    @cached_property
    def _head(self) -> Any:
        return self.classifier.head

    def _bound(self, f: Features) -> Features:
        """With one head for all batches, whose hash is taken once."""
        return f.with_fields(head=self._head)
