"""Every OOD metric as one torchmetrics ``Metric``, as Lightning users have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nescio.core.errors import InputError, check_at_least, check_share
from nescio.evaluation import binned, metrics

try:
    from torchmetrics import Metric
except ImportError:

    class Metric:  # type: ignore[no-redef]
        """Stands in where the library is missing, so that the name can be imported and says what it lacks."""

        def __init__(self, **_: Any) -> None:
            raise InputError("OODMetrics needs an extra: pip install 'nescio[metrics]'")


_WRONG, _RIGHT, _UNKNOWN, _OOD = range(4)


class OODMetrics(Metric):
    """All OOD metrics of scores that come in batches.

    >>> metrics = OODMetrics()
    >>> metrics.update([2.0, 3.0], is_id=True)  # in a loop: metrics.update(detector(session(x)), is_id)
    >>> metrics.update([1.0, 2.5], is_id=False)
    >>> float(metrics.compute()["auroc"])
    0.75

    ``compute`` gives a dict of float64 numbers, all shares in [0, 1]; ID is the positive class and a higher score means
    more in-distribution. They are those of the functions of ``nescio.evaluation.metrics``:

    - ``fpr95``: share of OOD images accepted where at least ``tpr`` of ID are (``fpr90`` for ``tpr=0.9``);
      ``fpr95_ood_positive``: share of ID images rejected where at least ``tpr`` of OOD are.
    - ``auroc``; ``aupr_in`` and ``aupr_out``, average precision with ID and with OOD as the positive class.
    - ``detection_accuracy``: share judged right by the best threshold where a share ``ood_share`` of images is OOD.
    - ``aurc`` and ``augrc``, of the ID images, where ``correct`` was given for them.

    All scores are kept, as float64, unless ``bins`` is given: then counts alone are, 32 bytes for each bin. Scores of
    one bin then count as tied. Beside each value stands the most that it may differ from the exact one
    (``auroc_error``), which follows from the counts. Where no bin holds more than a share w of the ID images, nor of
    the OOD images, it is at most w for both FPR, w / 2 for AUROC and detection accuracy, and w / 8 for AUGRC.

    Several processes: the states are gathered, or the counts added up, as torchmetrics does.

    Args:
        tpr: share that both FPR are taken at.
        ood_share: share of OOD images that the detection accuracy is for.
        bins: number of bins, two of which hold what lies outside ``limits``.
        limits: lowest and highest score of the other bins, which are equally wide.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        InputError: the extra ``nescio[metrics]`` is not installed, a share is none, or the bins have no limits.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    scores: list[Tensor] | Tensor
    kinds: list[Tensor] | Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        tpr: float = 0.95,
        ood_share: float = 0.5,
        bins: int | None = None,
        limits: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tpr, self.ood_share = check_share("tpr", tpr), check_share("ood_share", ood_share)
        if (bins is None) != (limits is None):
            raise InputError("give bins and limits together: bins=4096, limits=(lowest score, highest score)")
        self.bins, self.limits = bins, limits
        if bins is None or limits is None:
            for name in ("scores", "kinds"):
                self.add_state(name, [], dist_reduce_fx="cat")
            self.reset()
            return
        check_at_least("bins", bins, 3)
        if len(limits) != 2 or not float("-inf") < limits[0] < limits[1] < float("inf"):
            raise InputError(f"limits={tuple(limits)}: expected two finite numbers, the lower first")
        self.add_state("counts", torch.zeros(4, bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Any, is_id: Any, correct: Any = None) -> None:
        """Take in a batch.

        Args:
            scores: of a detector ``(B,)``.
            is_id: whether each image is in-distribution ``(B,)``, or one value for all.
            correct: whether the classifier was right ``(B,)``; read for ID images alone.

        Raises:
            InputError: shapes do not fit, a score is NaN, or a value is neither true nor false.
        """
        # through NumPy, which keeps a list's float64
        given = (
            scores.detach() if isinstance(scores, Tensor) else torch.from_numpy(np.asarray(scores, dtype=np.float64))
        )
        scores = given.to(self.device, torch.float64)
        if scores.ndim != 1:
            raise InputError(f"expected scores of shape (B,), got {tuple(scores.shape)}")
        if bool(scores.isnan().any()):
            raise InputError(f"{int(scores.isnan().sum())} of the scores are NaN: leave these images out")
        kinds = torch.full_like(scores, _UNKNOWN, dtype=torch.int8)
        if correct is not None:
            kinds = torch.where(_truth("correct", correct, scores), _RIGHT, _WRONG).to(torch.int8)
        kinds = kinds.where(_truth("is_id", is_id, scores), _OOD)
        if self.bins is None or self.limits is None:
            self.scores, self.kinds = [*self.scores, scores], [*self.kinds, kinds]
            return
        low, high = self.limits
        bin_of = ((scores - low) * ((self.bins - 2) / (high - low))).floor().add(1).clamp(0, self.bins - 1).long()
        counts = torch.bincount(bin_of + self.bins * kinds.long(), minlength=4 * self.bins)
        self.counts += counts.view(4, self.bins)

    def reset(self) -> None:
        """Forget all scores."""
        super().reset()
        if self.bins is None:  # a process without a batch takes part in the gathering with tensors of the right types
            empty = torch.empty(0, device=self.device)
            self.scores, self.kinds = [empty.to(torch.float64)], [empty.to(torch.int8)]

    def compute(self) -> dict[str, Tensor]:
        """All metrics, by name.

        Raises:
            InputError: there are no ID or no OOD scores yet, or ``correct`` was given for some ID images alone.
        """
        found = self._exact() if self.bins is None else self._binned()
        return {self._named(k): torch.tensor(v, dtype=torch.float64, device=self.device) for k, v in found.items()}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the values of one ``compute``, or of several: figure and axes, as torchmetrics gives them."""
        values = val or self.compute()
        several = [values] if isinstance(values, dict) else values
        shown = [{k: v for k, v in each.items() if not k.endswith("_error")} for each in several]
        return self._plot(shown[0] if isinstance(values, dict) else shown, ax)

    def _exact(self) -> dict[str, float]:
        rows = (torch.cat(r) if isinstance(r, list) else r for r in (self.scores, self.kinds))
        scores, kinds = (r.cpu().numpy() for r in rows)
        ids, oods = scores[kinds != _OOD], scores[kinds == _OOD]
        found = {
            "fpr_at_tpr": metrics.fpr_at_tpr(ids, oods, self.tpr),
            "fpr_at_tpr_ood_positive": metrics.fpr_at_tpr_ood_positive(ids, oods, self.tpr),
            "auroc": metrics.auroc(ids, oods),
            "aupr_in": metrics.aupr_in(ids, oods),
            "aupr_out": metrics.aupr_out(ids, oods),
            "detection_accuracy": metrics.detection_accuracy(ids, oods, self.ood_share),
        }
        if _all_known(int((kinds == _UNKNOWN).sum()), len(ids)):
            right = kinds[kinds != _OOD] == _RIGHT
            found |= {"aurc": metrics.aurc(ids, right), "augrc": metrics.augrc(ids, right)}
        return found

    def _binned(self) -> dict[str, float]:
        wrong, right, unknown, oods = self.counts.cpu().numpy()
        ids = wrong + right + unknown
        found = binned.detection(ids, oods, tpr=self.tpr, ood_share=self.ood_share)
        if _all_known(int(unknown.sum()), int(ids.sum())):
            found |= binned.selective(right, wrong)
        return {k: v.value for k, v in found.items()} | {f"{k}_error": v.error for k, v in found.items()}

    def _named(self, function: str) -> str:
        return function.replace("fpr_at_tpr", f"fpr{100 * self.tpr:g}")


def _truth(name: str, given: Any, scores: Tensor) -> Tensor:
    """Whether, for each score.

    Raises:
        InputError: the values are not true or false, or not as many.
    """
    values = torch.as_tensor(given, device=scores.device)
    if values.ndim and values.shape != scores.shape:
        raise InputError(f"expected {len(scores):,} values of {name}, got {tuple(values.shape)}")
    if values.dtype != torch.bool and not bool(((values == 0) | (values == 1)).all()):
        raise InputError(f"{name}: expected true or false for each image, got other numbers (labels?)")
    return values.to(torch.bool).expand(scores.shape)


def _all_known(unknown: int, ids: int) -> bool:
    """Whether all ID images are known to be right or wrong.

    Raises:
        InputError: some are.
    """
    if 0 < unknown < ids:
        raise InputError(f"correct was given for {ids - unknown:,} of {ids:,} ID images: give it for all or none")
    return unknown == 0
