"""A detector that is ready for use, as one function of a batch of images: this is what an exported graph computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nescio.calibration.conformal import Calibration
from nescio.core.features import Features
from nescio.core.stage import Chain
from nescio.deploy.deployed import Deployed
from nescio.models.heads import decide

OUTPUTS = {
    "logits": "float32 (batch, C): the classifier's logits; the largest gives the label",
    "score": "float64 (batch,): the detector's; higher means more in-distribution; NaN where features are not finite",
    "p_value": "float64 (batch,): share of calibration ID images that score this low or lower; not a probability of ID",
    "accepted": "bool (batch,): whether the score reaches the threshold; false where the score is NaN",
    "p_id": "float64 (batch,): P(x in ID | x)",
}
"""What the graph gives, in this order. ``p_id`` only where there is an OOD head or a calibrator."""
IMAGE, THRESHOLD = "image", "threshold"
"""What the graph takes. The threshold is optional: the calibrated one is stored in the graph."""
LAYOUTS = ("nchw", "nhwc")
BEGIN, END = "normalised", "features"
"""Marks in a graph: what the network sees, and the penultimate features that it ends in."""


class Judge(nn.Module):
    """Images to ``logits, score, p_value, accepted`` and, where there is one, ``p_id``: see ``OUTPUTS``.

    Args:
        deployed: classifier, detector and calibration, all on the CPU.
        layout: images are the RGB pixels that the transform's geometry leaves, uint8 ``(B, 3, crop, crop)`` for
            ``nchw`` or ``(B, crop, crop, 3)`` for ``nhwc``; None for normalised float32 ``(B, 3, crop, crop)``.
    """

    def __init__(self, deployed: Deployed, layout: str | None) -> None:
        super().__init__()
        classifier = deployed.classifier
        self.network, self.heads = classifier.probed(deployed.plain_probes), classifier.heads
        self.chain = Chain(deployed.detector.steps)  # a detector would hash the head, which a graph cannot
        self.verdict = Threshold(deployed.calibration, classifier.head.n_classes)
        self.p_id = deployed.head_p_id
        self.calibrator = deployed.calibrator
        self.transform, self.layout, self.name = classifier.transform, layout, classifier.name
        self.marked = False  # whether it also returns what its network begins with and ends in

    @property
    def outputs(self) -> list[str]:
        """Names of what it returns."""
        names = [name for name in OUTPUTS if name != "p_id" or self.p_id is not None or self.calibrator is not None]
        return [*names, *self.marks]

    @property
    def marks(self) -> list[str]:
        """Names of what shows where its network ends and, with a layout, where it begins."""
        return [] if not self.marked else [END] if self.layout is None else [END, BEGIN]

    def forward(self, image: Tensor, threshold: Tensor | None = None) -> tuple[Tensor, ...]:
        """Judge a batch, with the calibrated thresholds or with others, float64 ``(groups,)``."""
        x = self.normalised(image)
        f = self.network(x)
        return (*self.columns(f, threshold), *(t for t, _ in zip((f.h, x), self.marks, strict=False)))

    def normalised(self, image: Tensor) -> Tensor:
        """What the network sees: float32 ``(B, 3, crop, crop)``."""
        if self.layout is None:
            return image
        # contiguous, or every view that the network takes of its maps would be spelt out, element by element
        return self.transform.normalise(image.permute(0, 3, 1, 2).contiguous() if self.layout == "nhwc" else image)

    def columns(self, f: Features, threshold: Tensor | None = None) -> tuple[Tensor, ...]:
        """What follows from a batch's features, by ``outputs`` without the marks."""
        usable = f.h.isfinite().all(dim=1)
        score = torch.where(usable, self.chain(f), torch.nan)
        logits = decide(self.heads, f.h, f.head)
        columns = (logits, score, *self.verdict(score, f.pred, threshold))
        if self.p_id is not None:
            return (*columns, torch.where(usable, self.p_id(f), torch.nan))
        return columns if self.calibrator is None else (*columns, self.calibrator(score))


class Threshold(nn.Module):
    """What ``Calibration`` says of scores ``(B,)`` and predictions ``(B,)``, in operations on tensors."""

    group: Tensor
    thresholds: Tensor
    references: Tensor
    counts: Tensor

    def __init__(self, calibration: Calibration, n_classes: int) -> None:
        super().__init__()
        groups = calibration.groups
        group = torch.zeros(n_classes, dtype=torch.int64)
        for i, g in enumerate(groups):
            group[list(range(n_classes) if g.classes is None else g.classes)] = i
        references = [torch.from_numpy(g.reached) for g in groups]
        for name, t in {
            "group": group,
            "thresholds": torch.tensor([g.least for g in groups], dtype=torch.float64),
            "references": nn.utils.rnn.pad_sequence(references, batch_first=True, padding_value=torch.inf),
            "counts": torch.tensor([len(r) for r in references]),
        }.items():
            self.register_buffer(name, t)

    def forward(self, score: Tensor, pred: Tensor, thresholds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """P-values ``(B,)`` float64, NaN where the score is, and whether each score is accepted ``(B,)``.

        Args:
            score: ``(B,)``.
            pred: the raw predictions ``(B,)``.
            thresholds: one for each group ``(groups,)``; the calibrated ones by default.
        """
        least = self.thresholds if thresholds is None else thresholds
        group = self.group[pred]
        # one group serves all images: its scores are not repeated for each
        references = self.references if len(self.references) == 1 else self.references[group]
        lower = (references <= score[:, None]).sum(dim=1)
        n = self.counts[group]
        p = (1 + torch.minimum(lower, n)).to(torch.float64) / (1 + n).to(torch.float64)
        return torch.where(score.isnan(), torch.nan, p), score >= least[group]
