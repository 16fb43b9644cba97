"""Distance to the nearest training features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nescio import ops
from nescio.errors import InputError, check_share
from nescio.features import Features, TrainingData
from nescio.stage import Stage


def subsample(data: TrainingData, share: float, seed: int = 0) -> Iterator[Features]:
    """A random share of the training features, the same for any chunking; at least the first one."""
    rng = np.random.default_rng(seed)
    first = True
    for f in data():
        keep = rng.random(len(f)) < share
        keep[0] |= first
        first = False
        if keep.any():
            yield f.rows(torch.from_numpy(np.flatnonzero(keep)).to(f.h.device))


class KNN(Stage, name="knn", place="score"):
    """Negative Euclidean distance to the k-th nearest training feature, all features scaled to length one.

    ``-‖z - z_(k)‖``, ``z = h / ‖h‖``; ``h (B, L) -> score (B,)``. The search is exact: a chunked product finds the
    neighbour, and its distance is then taken by subtraction in float64. A zero vector stays zero.

    Args:
        k: which neighbour, 1 or more; the farthest where there are fewer. 50 is the authors' for CIFAR-10, 200 for
            CIFAR-100, 1000 for ImageNet (10 with alpha=0.01).
        alpha: share of the training features that is kept, drawn at random with a fixed seed, in (0, 1].

    Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.
    """

    needs_train = True
    bank: Tensor

    def __init__(self, *, k: int = 50, alpha: float = 1.0) -> None:
        super().__init__()
        if k < 1:
            raise InputError(f"k={k} must be 1 or more")
        self.k = k
        self.alpha = check_share("alpha", alpha)

    def fit(self, data: TrainingData) -> None:
        """Keep the training features."""
        bank = torch.cat([normalize(f.h) for f in subsample(data, self.alpha)])
        # ‖z - b‖² = ‖z‖² - 2 (z · b - ‖b‖²/2): with this column the nearest has the largest product, zero b or not
        self.bank = torch.cat([bank, bank.square().sum(dim=1, keepdim=True) / 2], dim=1)

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        z, bank = normalize(f.h), self.bank.to(f.h.dtype)
        _, which = ops.top_k_products(torch.cat([z, -torch.ones_like(z[:, :1])], dim=1), bank, self.k)
        neighbour = bank[which[:, -1], :-1].to(torch.float64)
        distance: Tensor = (z.to(torch.float64) - neighbour).norm(dim=1)
        return -distance
