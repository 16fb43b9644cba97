"""The classes' share of an image, beside labels that they are not."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


class NegLabel(Score, name="neglabel"):
    """The classes' share of a softmax beside negative labels: ``mean_g Σ_c e^f_c / (Σ_c e^f_c + Σ_p e^n_gp)``.

    ``f (B, C)`` are the logits, ``n_gp`` the scaled cosines to the texts of the g-th group of negative labels: words
    that are far from all classes. Their column ``log Σ_p e^n_gp (B, G) -> score (B,)`` in [0, 1].

    Source: Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models", ICLR 2024: its
    score with the grouping strategy. Words, as the authors choose them but with the classes' own prompts:
    ``--model 'clip:NAME:negatives=FILE'``.
    """

    needs = Needs(features=False, logits=True, heads=frozenset({"neglabel"}))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        own = f.logits.to(torch.float64).logsumexp(dim=1, keepdim=True)
        return (own - f.probed("neglabel")[0].to(torch.float64)).sigmoid().mean(dim=1)
