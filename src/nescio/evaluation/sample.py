"""A small sample of what the network made of each data set: what pictures of the features are drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.artifact import Artifact, Kind, put, read
from nescio.core.detector import Detector
from nescio.core.feature_set import FeatureSet
from nescio.core.reading import parse_json
from nescio.methods.modulate.ls import LS
from nescio.methods.score.cosine import Cosine

KIND = Kind("features", 2, "a sample of features", "delete it and run again")
_ACTIVATION = "activation/"
PER_SET = 300
"""Images of each data set, drawn once and for all."""
OF_CLASS = 2000
"""Images, at most, that the mean activation of a class is over."""

Floats = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SetSample:
    """Some images of one data set, in its order.

    Attributes:
        rows: their positions in the set's source ``(n,)``.
        h: penultimate features ``(n, L)``, float16 (float32 where they exceed it).
        pred: raw predictions ``(n,)``.
        cosine: to the prototype of the predicted class ``(n,)``; None where no detector has prototypes.
        ood: the OOD head's logit at every position ``(n, H·W)``; None where no detector reads it.
    """

    rows: Rows
    h: Floats
    pred: Rows
    cosine: Floats | None = None
    ood: Floats | None = None


@dataclass(frozen=True)
class Activation:
    """The mean feature of a class's ID images, and of the OOD images that are taken for it.

    Attributes:
        label: the class that most of the sampled OOD images are predicted as, among those with ID images.
        labelled: whether the ID images are those with this label; else those with this prediction.
        weights: the head's row of the class ``(L,)``.
        id_mean, ood_mean: ``(L,)``.
        n_id, n_ood: how many images they are over.
    """

    label: int
    labelled: bool
    weights: Floats
    id_mean: Floats
    ood_mean: Floats
    n_id: int
    n_ood: int


@dataclass(frozen=True)
class FeatureSample:
    """The sample of every data set, ``id`` first, and one class's activation; None where no OOD image has a class."""

    sets: dict[str, SetSample]
    activation: Activation | None

    def save(self, path: Path) -> None:
        """Write everything to one file of tensors. Its place it takes together with the other files of results."""
        arrays: dict[str, Any] = {
            f"{s}/{name}": a for s, one in enumerate(self.sets.values()) for name, a in vars(one).items()
        }
        meta: dict[str, Any] = {"sets": list(self.sets)}
        if self.activation is not None:
            drawn = {name: value for name, value in vars(self.activation).items() if isinstance(value, np.ndarray)}
            arrays |= {f"{_ACTIVATION}{name}": a for name, a in drawn.items()}
            meta |= {name: value for name, value in vars(self.activation).items() if name not in drawn}
        put(path, KIND, meta, {name: a for name, a in arrays.items() if a is not None})

    @classmethod
    def load(cls, path: Path) -> FeatureSample | None:
        """What ``save`` wrote; None where there is no such file.

        Raises:
            InputError: the file is of another version, or not what ``save`` writes.
        """
        if not path.is_file():
            return None
        file = read(path, KIND)
        with file.taken_apart():
            meta = parse_json(file.meta["about"]) if file.version == 1 else file.meta
            names = meta.pop("sets")
            sets = {name: SetSample(**_arrays(file, f"{s}/")) for s, name in enumerate(names)}
            drawn = _arrays(file, _ACTIVATION)
            return cls(sets, Activation(**meta, **drawn) if drawn else None)


def _arrays(file: Artifact, prefix: str) -> dict[str, Any]:
    return {name: t.numpy() for name, t in file.under(prefix).items()}


def sample_features(banks: Mapping[str, FeatureSet], detectors: Iterable[Detector]) -> FeatureSample:
    """Up to 300 images of each data set, from banks of the plain pass.

    Args:
        banks: by data set, ``id`` first.
        detectors: fitted ones without an input stage; the first prototypes among them give the cosines.
    """
    centres = prototypes_of(detectors)
    return FeatureSample({name: _sampled(bank, centres) for name, bank in banks.items()}, _activation(banks))


def _sampled(bank: FeatureSet, centres: Tensor | None) -> SetSample:
    at = numerics.drawn(len(bank), PER_SET)
    f = bank.take(at)
    return SetSample(
        rows=bank.positions[at],
        h=_compact(f.h),
        pred=bank.pred[at],
        cosine=None if centres is None else numerics.cosine(f.h, centres[f.pred].to(f.h.dtype)).numpy(),
        ood=_compact(f.aux["ood.0"]) if "ood.0" in f.aux else None,
    )


def _activation(banks: Mapping[str, FeatureSet]) -> Activation | None:
    """Each OOD set counts with as many images as are sampled of it, so that a large one does not stand for all."""
    bank, oods = banks["id"], [bank for name, bank in banks.items() if name != "id"]
    labelled = bool((bank.labels >= 0).any())
    classes = bank.labels if labelled else bank.pred
    samples = [ood.take(numerics.drawn(len(ood), PER_SET)) for ood in oods]
    pred = torch.cat([f.pred for f in samples]) if samples else torch.zeros(0, dtype=torch.int64)
    counts = np.bincount(pred.numpy(), minlength=bank.head.n_classes)
    counts[np.bincount(classes[classes >= 0], minlength=len(counts)) == 0] = 0
    if not counts.any():
        return None
    label = int(counts.argmax())
    of_class = np.flatnonzero(classes == label)
    of_class = of_class[numerics.drawn(len(of_class), OF_CLASS)]
    return Activation(
        label,
        labelled,
        weights=bank.head.weight[label].float().numpy(),
        id_mean=bank.take(of_class).h.mean(dim=0).numpy(),
        ood_mean=torch.cat([f.h for f in samples])[pred == label].mean(dim=0).numpy(),
        n_id=len(of_class),
        n_ood=int(counts[label]),
    )


def _compact(values: Tensor) -> Floats:
    array = values.numpy()
    return array.astype(np.float16 if np.abs(array).max(initial=0.0) <= np.finfo(np.float16).max else np.float32)


def prototypes_of(detectors: Iterable[Detector]) -> Tensor | None:
    """Mean training features by class, from the first detector that learned them from plain features."""
    for detector in detectors:
        first = detector.steps[0]
        if isinstance(first, Cosine) and first.needs.train:  # behind another stage, it would know changed features
            return first.centres
        for stage in detector.modules():
            if isinstance(stage, LS) and stage.needs.train:
                return stage.centres
    return None
