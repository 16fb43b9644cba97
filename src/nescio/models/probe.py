"""A linear head fitted on an encoder's features: multinomial logistic regression."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from nescio.core.errors import InputError, some
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Head

MOST_ENTRIES = 1 << 26
"""Entries of the features that are fitted on, 512 MB in float64; of more rows as many are drawn."""
FOLDS = 5
STRENGTHS: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(2, -9, -1))
"""Of the penalty, the strongest first: λ in the objective of ``fit_weights``."""

log = logging.getLogger(__name__)


def fit_probe(features: FeatureSet, *, classes: int | Sequence[str]) -> Head:
    """The head ``(C, L)`` of a multinomial logistic regression on standardised features, for the features as they are.

    The penalty is the one of eleven strengths whose cross-entropy on left-out images is the smallest, over five folds
    with images of every class. At most 512 MB of features are fitted on, rows drawn at random where there are more.

    Args:
        features: penultimate features ``(N, L)`` with labels; rows without one are left out.
        classes: number of classes, or their names in label order.

    Raises:
        InputError: there are no labels, a class has fewer than two images, or a label is no class.
    """
    names = [str(c) for c in range(classes)] if isinstance(classes, int) else list(classes)
    h, labels = _gathered(features)
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    if len(counts) > len(names):
        raise InputError(f"label {len(counts) - 1} is not a class: there are {len(names)} classes, numbered from 0")
    few = [name for name, n in zip(names, counts, strict=True) if n < 2]
    if few or len(names) < 2:
        raise InputError(
            f"to fit a head, give two or more classes and two or more images of each; too few: {some(few)}"
        )
    mean, spread = h.mean(dim=0), h.std(dim=0, correction=0)
    spread[spread <= 1e-12 * h.abs().amax(dim=0).clamp(min=1e-30)] = 1  # a feature that is always the same
    z, basis = _rotated((h - mean) / spread)
    strength = _chosen(z, labels, len(names))
    weight, bias = fit_weights(z, labels, len(names), strength)
    weight = weight @ basis.T / spread
    return Head(weight.float(), (bias - weight @ mean).float())


def _gathered(features: FeatureSet) -> tuple[Tensor, Tensor]:
    """Labelled rows ``(N, L)`` in float64, and their labels; drawn where they are more than are fitted on."""
    n, masks = 0, []
    for f in features.chunks():
        known = torch.zeros(len(f), dtype=torch.bool) if f.labels is None else f.labels >= 0
        masks.append(known.cpu())
        n += int(known.sum())
    if n == 0:
        raise InputError("a head is fitted on labelled features, but there are no labels: give them")
    width = next(iter(features.chunks())).h.shape[1]
    most = max(1, MOST_ENTRIES // width)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most].sort().values if n > most else None
    if order is not None:
        log.warning("the head is fitted on %s of %s images (512 MB of features)", f"{most:,}", f"{n:,}")
    taken = torch.ones(n, dtype=torch.bool) if order is None else torch.zeros(n, dtype=torch.bool)
    if order is not None:
        taken[order] = True
    rows, labels, start = [], [], 0
    for known, f in zip(masks, features.chunks(), strict=True):
        if f.labels is None or not bool(known.any()):
            continue
        at = known.nonzero().flatten()
        at = at[taken[start : start + len(at)]]
        start += int(known.sum())
        rows.append(f.h[at.to(f.h.device)].double())
        labels.append(f.labels[at.to(f.labels.device)])
    return torch.cat(rows), torch.cat(labels)


def _rotated(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(N, L)`` in an orthonormal basis ``(L, R)`` of the space that they span: fewer columns, same distances.

    A penalty on the length of the weights does not see the rotation.
    """
    if x.shape[1] <= x.shape[0]:
        return x, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    q, r = torch.linalg.qr(x.T)
    return r.T.contiguous(), q


def _chosen(z: Tensor, labels: Tensor, n_classes: int) -> float:
    """The strength with the smallest cross-entropy on left-out rows."""
    fold = torch.empty_like(labels)
    generator = torch.Generator().manual_seed(0)
    for c in range(n_classes):
        at = (labels == c).nonzero().flatten()
        at = at[torch.randperm(len(at), generator=generator).to(at.device)]
        fold[at] = torch.arange(len(at), device=at.device) % FOLDS
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for k in range(FOLDS):
        out = fold == k
        start = None
        for strength in STRENGTHS:
            start = fit_weights(z[~out], labels[~out], n_classes, strength, start, tolerance=1e-4)
            logits = torch.addmm(start[1], z[out], start[0].T)
            losses[strength] += float(torch.nn.functional.cross_entropy(logits, labels[out], reduction="sum"))
    strength = min(STRENGTHS, key=losses.__getitem__)
    log.info(
        "penalty %g, cross-entropies on left-out images %s",
        strength,
        [f"{loss / len(z):.4f}" for loss in losses.values()],
    )
    return strength


def fit_weights(
    z: Tensor,
    labels: Tensor,
    n_classes: int,
    strength: float,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-7,
) -> tuple[Tensor, Tensor]:
    """Weights ``(C, R)`` and bias ``(C,)`` that minimise the mean cross-entropy plus ``λ / 2 · ‖W‖²``, by L-BFGS.

    Args:
        z: rows ``(N, R)``.
        labels: classes ``(N,)``.
        n_classes: C.
        strength: λ; scikit-learn's C is ``1 / (N λ)``.
        start: weights and bias to start from.
        tolerance: largest entry of the gradient at the end.
    """
    weight, bias = start or (z.new_zeros(n_classes, z.shape[1]), z.new_zeros(n_classes))
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [w, b],
        max_iter=1000,
        max_eval=2000,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = torch.nn.functional.cross_entropy(torch.addmm(b, z, w.T), labels) + strength / 2 * w.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    return w.detach(), b.detach()
