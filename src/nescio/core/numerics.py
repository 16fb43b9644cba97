"""Numerics that methods share. Everything that sees a training set takes an iterable and streams."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TURNS = 4
"""How often an image can be turned by 90° until it is itself again."""
_STRIPE = 256


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity along the last dimension; 0 where either vector is zero.

    Shapes: ``(..., L), (..., L) -> (...)``.
    """
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    if _overflows(norm):
        return cosine(a.to(torch.float64), b.to(torch.float64)).to(a.dtype)
    dot = (a * b).sum(dim=-1)
    return torch.where(norm > 0, dot / torch.where(norm > 0, norm, torch.ones_like(norm)), torch.zeros_like(dot))


def normalised(x: Tensor) -> Tensor:
    """``x / ‖x‖`` along the last dimension, ``(..., L) -> (..., L)``; a zero vector stays zero."""
    if _overflows(x.norm(dim=-1)):
        return normalised(x.to(torch.float64)).to(x.dtype)
    return torch.nn.functional.normalize(x, dim=-1)


def _overflows(norm: Tensor) -> bool:
    """Whether squares were too large for float32, as those of features above 1e19 are. A traced graph does not ask."""
    return norm.dtype == torch.float32 and not torch.compiler.is_compiling() and not bool(norm.isfinite().all())


def drawn(n: int, most: int) -> npt.NDArray[np.int64]:
    """That many of the positions ``0…n - 1``, in order, the same at every call; all of them where there are no more."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def class_means(chunks: Iterable[tuple[Tensor, Tensor]], n_classes: int) -> tuple[Tensor, Tensor]:
    """Mean vector of each class in one pass, accumulated in float64.

    Args:
        chunks: pairs ``h (B, L)``, ``y (B,)`` with ``y`` in ``[0, n_classes)``.
        n_classes: C.

    Returns:
        means ``(C, L)`` float64 (zero for an empty class) and counts ``(C,)`` int64.

    Raises:
        ValueError: there was no chunk at all.
    """
    total = counts = None
    for h, y in chunks:
        if total is None or counts is None:
            total = h.new_zeros(n_classes, h.shape[1], dtype=torch.float64)
            counts = torch.zeros(n_classes, dtype=torch.int64, device=h.device)
        total.index_add_(0, y, h.to(torch.float64))
        counts += torch.bincount(y, minlength=n_classes)
    if total is None or counts is None:
        raise ValueError("class_means: no features to average")
    return total / counts.clamp(min=1)[:, None], counts


@dataclass(frozen=True)
class Moments:
    """First and second moments of labelled features, in float64.

    Attributes:
        means: per class ``(C, L)``, zero for an empty class.
        counts: per class ``(C,)``.
        mean: of all features ``(L,)``.
        within: covariance around the class means, shared by all classes ``(L, L)``.
        total: covariance around ``mean`` ``(L, L)``.
    """

    means: Tensor
    counts: Tensor
    mean: Tensor
    within: Tensor
    total: Tensor


@dataclass(frozen=True)
class Scatter:
    """Sums over N features ``h (L,)`` that their second moment around any point follows from, in float64.

    Attributes:
        n: N.
        shift: a point near their mean ``(L,)``: products of centred features do not cancel.
        total: ``Σ (h - shift)``, ``(L,)``.
        products: ``Σ (h - shift) (h - shift)ᵀ``, ``(L, L)``.
    """

    n: int
    shift: Tensor
    total: Tensor
    products: Tensor

    def around(self, point: Tensor) -> Tensor:
        """``Σ (h - point) (h - point)ᵀ``, ``(L, L)``."""
        away = self.shift - point
        mixed = self.total.outer(away)
        return self.products + mixed + mixed.T + self.n * away.outer(away)


def scatter(chunks: Iterable[Tensor]) -> Scatter:
    """Second moment of features ``h (B, L)`` in one pass, around the first chunk's mean.

    Raises:
        ValueError: there was no chunk at all.
    """
    shift, n = None, 0
    for h in chunks:
        if shift is None:
            shift = h.to(torch.float64).mean(dim=0)
            total, products = torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift))
        x = h.to(torch.float64) - shift
        n += len(x)
        total += x.sum(dim=0)
        add_square(products, x)
    if shift is None:
        raise ValueError("scatter: no features")
    return Scatter(n, shift, total, whole_square(products))


def add_square(products: Tensor, x: Tensor) -> None:
    """Add ``xᵀ x`` of ``x (B, L)`` to ``products (L, L)``, above its diagonal alone: six tenths of the work."""
    for i in range(0, len(products), _STRIPE):
        products[i : i + _STRIPE, i:].addmm_(x[:, i : i + _STRIPE].T, x[:, i:])


def whole_square(products: Tensor) -> Tensor:
    """The symmetric matrix of what ``add_square`` has made."""
    upper = products.triu()
    return upper + upper.triu(1).T


def moments(scatter: Scatter, means: Tensor, counts: Tensor) -> Moments:
    """Covariances from the second moment of all features, and the classes' means ``(C, L)`` and sizes ``(C,)``."""
    mean = scatter.total / scatter.n
    centred = (means - scatter.shift) * (counts > 0)[:, None]
    between = centred.T @ (centred * counts[:, None])
    within = (scatter.products - between) / scatter.n
    total = scatter.products / scatter.n - mean.outer(mean)
    return Moments(means, counts, mean + scatter.shift, within, total)


def whitening(covariance: Tensor, shrink: float) -> Tensor:
    """A matrix ``A (L, L)`` with ``A Aᵀ = (Σ + shrink · mean(diag Σ) · I)⁻¹``.

    ``‖(x - y) A‖`` is then the Mahalanobis distance. The shrinkage keeps the inverse defined for any data; where all
    features are constant, Σ counts as the identity.
    """
    scale = covariance.diagonal().mean()
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0) + shrink * scale if scale > 0 else torch.ones_like(values)
    whitened: Tensor = (vectors / values.sqrt()).contiguous()
    return whitened


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``‖x_i - y_j‖²`` by one matrix product. Shapes: ``(B, L), (N, L) -> (B, N)``; never negative."""
    return (x.square().sum(1, keepdim=True) - 2 * x @ y.T + y.square().sum(1)).clamp_(min=0)


def top_k_products(x: Tensor, bank: Tensor, k: int, *, at_once: int = 1 << 25) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of ``x_i · bank_j`` for each i, exactly, and which j they are.

    Shapes: ``(B, L), (N, L) -> (B, k), (B, k)``, in descending order; k is N where the bank holds fewer. At most about
    ``at_once`` products are in memory at a time.
    """
    values, indices = x[:, :0], torch.empty_like(x[:, :0], dtype=torch.int64)
    # in a graph that is traced the size of the batch is open: it has one product
    step = len(bank) if torch.compiler.is_compiling() else max(k, at_once // max(1, len(x)))
    for start in range(0, len(bank), step):
        part = bank[start : start + step]
        new, at = (x @ part.T).topk(min(k, len(part)), dim=1)
        values, best = torch.cat([values, new], dim=1).topk(min(k, values.shape[1] + new.shape[1]), dim=1)
        indices = torch.cat([indices, at + start], dim=1).gather(1, best)
    return values, indices


def at_most(ordered: Tensor, values: Tensor) -> Tensor:
    """How many entries of each ascending row are at most the value: ``(m, N), (m, B) -> (m, B)`` int64."""
    if torch.compiler.is_compiling():  # ONNX has no search
        return (ordered[:, None, :] <= values[:, :, None]).sum(dim=2)
    return torch.searchsorted(ordered, values, right=True)


def sign_step(gradient: Tensor, eps: float) -> Tensor:
    """``eps · sign(gradient)``, NaN where the gradient is not finite, so that such an image is found out."""
    return eps * gradient.sign() + 0 * gradient


def turned(x: Tensor) -> list[Tensor]:
    """Square images ``(B, 3, H, H)`` turned by 0°, 90°, 180° and 270°."""
    return [torch.rot90(x, turn, (2, 3)) for turn in range(TURNS)]


def sum_over_top(h: Tensor, share: float) -> Tensor:
    """``Σ h / Σ (the largest entries of h)`` over non-negative parts, ``(B, L) -> (B, 1)``: at least 1, and 1 for zero.

    ``share``, in (0, 1], says how many entries count as the largest: ``L - round(L (1 - share))``, at least one.
    Negative features count as zero: ratios of sums of either sign would mean nothing.
    """
    h = h.clamp(min=0)
    top = h.topk(n_top(h.shape[1], share), dim=1).values.sum(dim=1, keepdim=True)
    return torch.where(top > 0, h.sum(dim=1, keepdim=True) / torch.where(top > 0, top, 1), 1)


def n_top(width: int, share: float) -> int:
    """How many of ``width`` entries a share keeps: ``width - round(width (1 - share))``, at least one."""
    return max(1, width - round(width * (1 - share)))
