"""CLIP's image tower: as a classifier whose head is made of texts, and by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

_CAPTIONS = 256
"""Captions that the text tower reads at a time."""


class Tower(nn.Module):
    """Images ``(B, 3, H, W)`` to the image tower's embedding ``v(x) (B, L)`` at length 1.

    Args:
        clip: open_clip's network, whose image tower is taken.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.visual = clip.visual

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings."""
        embedding: Tensor = normalize(self.visual(x), dim=-1)
        return embedding


class ZeroShot(nn.Module):
    """Images ``(B, 3, H, W)`` to logits ``(B, C)``: ``e^s cos(v(x), w_c)``, the scaled cosine to each class's text.

    The penultimate feature is the image tower's embedding ``v(x) (B, L)`` at length 1. The head has no bias; its row c
    is ``e^s w_c``, where ``w_c`` is the mean of the embeddings of class c's captions, each at length 1, at length 1
    again, and ``s`` the learned ``logit_scale``. The constant ``logit_bias`` of SigLIP is left out: it changes neither
    softmax nor ranking.

    Args:
        clip: open_clip's network. Its towers are taken apart.
        width: L.
        n_classes: C. The head is random until it is given rows.

    Attributes:
        visual: the image tower.
        text: the rest of the network; None where weights came without it, or nothing is to be read any more.
        fc: the head.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section
    3.1; the ensemble of prompts is averaged as theirs, over embeddings.
    """

    def __init__(self, clip: Any, width: int, n_classes: int) -> None:
        super().__init__()
        self.visual = clip.visual
        del clip.visual
        self.text: Any = clip
        self.fc = nn.Linear(width, n_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(normalize(self.visual(x), dim=-1))
        return logits

    @property
    def scale(self) -> Tensor:
        """``e^s``, with gradient."""
        scale: Tensor = self.text.logit_scale.exp()
        return scale

    def read(self, captions: Tensor) -> Tensor:
        """Embeddings ``(N, L)``, at length 1, of captions ``(N, tokens)``, with gradient."""
        embeddings: Tensor = self.text.encode_text(captions, normalize=True)
        return embeddings

    @torch.no_grad()
    def rows(self, captions: Tensor) -> Tensor:
        """The head's rows ``(C, L)`` from P captions of each class ``(C, P, tokens)``."""
        chunks = torch.split(captions.flatten(0, 1).to(self.scale.device), _CAPTIONS)
        each = torch.cat([self.read(chunk) for chunk in chunks])
        return self.scale * normalize(each.reshape(*captions.shape[:2], -1).mean(dim=1), dim=-1)
