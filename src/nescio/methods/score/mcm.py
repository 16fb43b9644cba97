"""Maximum concept matching."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nescio.core.arrays import of_arrays
from nescio.core.bounds import Positive
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


@of_arrays
def mcm(h: Tensor, weight: Tensor, T: float = 1.0) -> Tensor:
    """``MCM`` of features ``h (B, L)`` and a row for each class, ``weight (C, L)``: scores ``(B,)`` float64."""
    h, w = (normalize(t.to(torch.float64), dim=1) for t in (h, weight))
    return (h @ w.mT / T).softmax(dim=1).amax(dim=1)


class MCM(Score, name="mcm"):
    """Largest softmax share of the cosines to the classes' texts: ``max_k softmax(cos(h, w_k) / T)_k``.

    ``h (B, L) -> score (B,)`` in (0, 1]. Row k of the head, ``w_k``, is class k's text in a classifier made of class
    names (``clip:``), at the length of the logit scale; so with T the inverse of that scale (0.01 for most of CLIP)
    this is MSP. For other classifiers it is the same formula on the head's rows, without the bias.

    Args:
        T: temperature of the cosines, above 0. The default 1 is the authors'.

    Source: Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations", NeurIPS
    2022, section 3. The prompt of their code is "a photo of a {}", without a full stop (``prompt=``).
    """

    needs = Needs(head=True)

    def __init__(self, *, T: Annotated[float, Positive] = 1.0) -> None:
        super().__init__()
        self.T = T

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return mcm(f.h, f.head.weight, self.T)
