"""Judging a network after an epoch, without any OOD image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.data.corruptions import shuffle_tiles
from nescio.evaluation import metrics
from nescio.models import Classifier
from nescio.run.passes import pass_of
from nescio.run.session import Session
from nescio.training.images import Images
from nescio.training.state import HINT

_BATCH = 128


@dataclass(frozen=True)
class Judgement:
    """What validation says of a network.

    Attributes:
        accuracy: share of the ID validation images classified right.
        shuffled_auroc: AUROC of the objective's score, those images against themselves with their tiles shuffled.
        ood: FPR95 and AUROC on OOD sets that the user asked to watch; never used to select.
    """

    accuracy: float
    shuffled_auroc: float
    ood: dict[str, dict[str, float]]

    @property
    def mean_fpr95(self) -> float:
        """What Pei, ICLR 2024, selects by: it looks at the test."""
        return sum(pair["fpr95"] for pair in self.ood.values()) / len(self.ood)

    def numbers(self) -> dict[str, Any]:
        """For the log."""
        watched = {f"ood/{name}/{k}": v for name, pair in self.ood.items() for k, v in pair.items()}
        return {"val_accuracy": self.accuracy, "val_shuffled_auroc": self.shuffled_auroc, **watched}


def is_better(new: Mapping[str, Any], kept: Mapping[str, Any] | None, best: float, n: int) -> bool:
    """Whether an epoch takes the place of the one that is kept: accuracy first, the stand-in for OOD second.

    Its accuracy must be within one standard error of the best so far; and its AUROC against shuffled images higher than
    the kept epoch's, unless that one's accuracy is no longer as good.

    Args:
        new: ``val_accuracy`` and ``val_shuffled_auroc`` of the epoch.
        kept: those of the kept one; None where there is none yet.
        best: the best accuracy so far, the new epoch's included.
        n: number of validation images.
    """
    least = best - (best * (1 - best) / n) ** 0.5
    if new["val_accuracy"] < least:
        return False
    if kept is None or kept["val_accuracy"] < least:
        return True
    return bool(new["val_shuffled_auroc"] > kept["val_shuffled_auroc"])


@torch.no_grad()
def judge(classifier: Classifier, detector: Detector, val: Images, watched: Mapping[str, Images]) -> Judgement:
    """Accuracy and scores on validation images, the same images shuffled, and watched OOD sets."""
    own_pass, running = pass_of(detector), Session(classifier, engine="plain")
    network = running.network(own_pass, detector.needs.probes)

    def score(x: Tensor) -> tuple[Tensor, Tensor]:
        f = own_pass.run(network, x)
        return detector(f).cpu(), f.pred

    normalise = classifier.transform.normalise
    plain, shuffled, right = [], [], 0
    draws = torch.Generator().manual_seed(0)
    for pixels, numbers in val.batches(_batches(len(val))):
        x = normalise(pixels)
        values, pred = score(x)
        if detector.input_stage is not None:
            pred = running(x).pred  # the label is the plain pass's, whatever the score reads
        right += int((pred.cpu() == val.labels[numbers.cpu()]).sum())
        plain.append(values)
        shuffled.append(score(normalise(shuffle_tiles(pixels, draws)))[0])
    own = torch.cat(plain).numpy()
    if not np.isfinite(own).all():
        raise InputError(f"scores of validation images are no longer finite; {HINT}")
    ood = {
        name: torch.cat([score(normalise(pixels))[0] for pixels, _ in images.batches(_batches(len(images)))]).numpy()
        for name, images in watched.items()
    }
    against = {name: {"fpr95": metrics.fpr_at_tpr(own, v), "auroc": metrics.auroc(own, v)} for name, v in ood.items()}
    return Judgement(right / len(own), metrics.auroc(own, torch.cat(shuffled).numpy()), against)


def _batches(n: int) -> list[list[int]]:
    return [part.tolist() for part in np.split(np.arange(n), range(_BATCH, n, _BATCH))]
