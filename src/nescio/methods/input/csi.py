"""Averaging over the turns of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.features import Columns, Features
from nescio.core.needs import Needs
from nescio.core.stage import Chain, InputStage, Network


class CSI(InputStage, name="csi"):
    """Average the logits of each class over the image at 0°, 90°, 180° and 270°, each from the head's part for it.

    ``f_y = 1/4 Σ_k g_{k C + y}(turn_k x)`` takes the place of the logits, g being the head of 4 C classes that the
    network was trained with; ``csi+msp`` is the paper's score. Features are those of the image at 0°; a stage that
    changes features would lose the average, and is refused. Images ``(B, 3, H, H) -> f (B, C)``; four forward passes
    per image.

    Source: Tack, Mo, Jeong and Shin, "CSI: Novelty Detection via Contrastive Learning on Distributionally Shifted
    Instances", NeurIPS 2020, section 2.3. Train a network for it with ``nescio train
    --objective csi``.
    """

    needs = Needs(features=False, heads=frozenset({"csi"}), rerun="options")

    replaces_logits = True

    def forward(self, f: Features) -> Features:
        """Read the mean logits."""
        return f.with_logits(f.probed(self.name)[0])

    def run(self, network: Network, chain: Chain, x: Tensor) -> Features:
        """Features at 0°, prediction of the mean logits, and these as the head's column."""
        del chain
        turned = [network(image) for image in numerics.turned(x)]
        parts = [f.probed(self.name)[0].chunk(numerics.TURNS, dim=1)[turn] for turn, f in enumerate(turned)]
        f, mean = turned[0], torch.stack(parts).mean(dim=0)
        return Features(f.h, f.head, mean.argmax(dim=1), aux=Columns.of({**f.aux, f"{self.name}.0": mean}))
