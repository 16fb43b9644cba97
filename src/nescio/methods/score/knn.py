"""Distance to the nearest training features."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.arrays import of_arrays
from nescio.core.bounds import AtLeast, Share
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.fitting import subsample
from nescio.core.needs import Needs
from nescio.core.stage import Score


@of_arrays
def knn(h: Tensor, bank: Tensor, k: int = 50) -> Tensor:
    """``KNN`` of features ``h (B, L)`` among training features ``bank (N, L)``: scores ``(B,)`` float64."""
    z, prepared = numerics.normalised(h), _prepared(numerics.normalised(bank.to(h.dtype)))
    return _distance(z, prepared, _nearest(z, prepared, k))


def _prepared(directions: Tensor) -> Tensor:
    """Training directions ``(N, L + 1)``, each with half its squared length: 0 or 1/2.

    ``‖z - b‖² = ‖z‖² - 2 (z · b - ‖b‖²/2)``: with this column the nearest has the largest product, zero b or not.
    """
    return torch.cat([directions, directions.square().sum(dim=1, keepdim=True) / 2], dim=1)


def _nearest(z: Tensor, bank: Tensor, k: int) -> Tensor:
    """Row of the k-th neighbour ``(B,)``."""
    return numerics.top_k_products(torch.cat([z, -torch.ones_like(z[:, :1])], dim=1), bank, k)[1][:, -1]


def _distance(z: Tensor, bank: Tensor, which: Tensor) -> Tensor:
    distance: Tensor = (z.to(torch.float64) - bank[which, :-1].to(torch.float64)).norm(dim=1)
    return -distance


class KNN(Score, name="knn"):
    """Negative Euclidean distance to the k-th nearest training feature, all features scaled to length one.

    ``-‖z - z_(k)‖``, ``z = h / ‖h‖``; ``h (B, L) -> score (B,)``. The search is exact: a chunked product finds the
    neighbour, and its distance is then taken by subtraction in float64. A zero vector stays zero.

    Args:
        k: which neighbour, 1 or more; the farthest where there are fewer. 50 is the authors' for CIFAR-10, 200 for
            CIFAR-100, 1000 for ImageNet (10 with alpha=0.01).
        alpha: share of the training features that is kept, drawn at random with a fixed seed, in (0, 1].
        index: how the neighbour is found: ``exact`` by a matrix product in PyTorch, or by FAISS (the extra
            ``nescio[faiss]``), for large banks: ``flat`` (the same neighbours), ``ivf`` (√N cells, of which a sixteenth
            are searched) or ``hnsw`` (a graph): these two may miss a neighbour and then score a little lower.

    Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.
    """

    needs = Needs(train=True)

    bank: Tensor

    def __init__(
        self,
        *,
        k: Annotated[int, AtLeast(1)] = 50,
        alpha: Annotated[float, Share(above_zero=True)] = 1.0,
        index: Literal["exact", "flat", "ivf", "hnsw"] = "exact",
    ) -> None:
        super().__init__()
        self.k, self.alpha, self.index = k, alpha, index
        self._searcher: Any = None
        if index != "exact":
            _import_faiss()

    def fit(self, data: FeatureSet) -> None:
        """Keep the training features."""
        self._searcher = None
        self.bank = _prepared(torch.cat([numerics.normalised(f.h) for f in subsample(data, self.alpha)]))

    def unexportable(self) -> str | None:
        """The search of FAISS is no graph."""
        return None if self.index == "exact" else "uses FAISS, which ONNX does not have; fit it with index=exact"

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        z, bank = numerics.normalised(f.h), self.bank.to(f.h.dtype)
        return _distance(z, bank, _nearest(z, bank, self.k) if self.index == "exact" else self._search(z, bank))

    def _search(self, z: Tensor, bank: Tensor) -> Tensor:
        """Row of the k-th neighbour ``(B,)`` by FAISS; exactly where its cells hold fewer than k."""
        if self._searcher is None:  # not saved with the detector: a file from elsewhere must not feed a native reader
            self._searcher = _build(self.index, bank[:, :-1].float().cpu().contiguous().numpy(), self.k)
        _, found = self._searcher.search(z.detach().float().cpu().contiguous().numpy(), min(self.k, len(bank)))
        which = torch.from_numpy(found[:, -1]).to(z.device)
        missing = which < 0
        if missing.any():
            which[missing] = _nearest(z[missing], bank, self.k)
        return which


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError("knn with a FAISS index needs the package faiss-cpu: pip install 'nescio[faiss]'") from None
    return faiss


def _build(kind: str, vectors: Any, k: int) -> Any:
    faiss = _import_faiss()
    n, width = vectors.shape
    if kind == "flat":
        index = faiss.IndexFlatL2(width)
    elif kind == "ivf":
        cells = max(1, int(n**0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, cells)
        index.nprobe = max(1, cells // 16)
        index.train(vectors)
    else:
        index = faiss.IndexHNSWFlat(width, 32)
        index.hnsw.efSearch = 2 * k
    index.add(vectors)
    return index
