"""Maximum concept matching."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nescio.core.errors import check_positive
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


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

    def __init__(self, *, T: float = 1.0) -> None:
        super().__init__()
        self.T = check_positive("T", T)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        h, w = (normalize(t.to(torch.float64), dim=1) for t in (f.h, f.head.weight))
        return (h @ w.mT / self.T).softmax(dim=1).amax(dim=1)
