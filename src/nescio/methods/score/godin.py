"""The parts of decomposed confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core.errors import check_choice
from nescio.core.features import Features
from nescio.core.needs import Needs
from nescio.core.stage import Score


class GODIN(Score, name="godin"):
    """A part of decomposed confidence ``h_i(x) / g(x)``: the largest numerator ``max_i h_i(x)``, or ``g(x)``.

    Both come from the head that the network was trained with, ``(B, 2) -> score (B,)``: a numerator is a cosine, a
    logit or a negative squared distance; ``g`` lies in (0, 1).

    Args:
        read: ``h`` for the numerator, ``g`` for the denominator.

    Source: Hsu, Shen, Jin and Kira, "Generalized ODIN: Detecting Out-of-distribution Image without Learning from
    Out-of-distribution Data", CVPR 2020, section 3.3: with cosines they find ``h`` the better, and with inner products
    ``g``. Train a network for it with ``nescio train --objective godin``.
    """

    needs = Needs(features=False, heads=frozenset({"godin"}))

    def __init__(self, *, read: str = "h") -> None:
        super().__init__()
        self.read = check_choice("read", read, ("h", "g"))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return f.probed("godin")[0][:, "hg".index(self.read)].to(torch.float64)
