"""Pictures for the cards: features or logits before and after a stage, and scores over a plane."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nescio import Detector, FeatureSet
from nescio.core.features import Features
from nescio.core.stage import PLACES, Stage
from nescio.methods.cards import Card

GREY, TEAL, AMBER = "#8a939b", "#009485", "#d98200"
STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": GREY,
    "axes.titlesize": 9,
    "font.size": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "nescio",
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}
WIDTH, CLASSES = 32, 4
SIDE = 120
"""Points of the plane along each axis."""


def picture(card: Card) -> tuple[bytes, str]:
    """An SVG for a card and the text that says what it shows; nothing where a picture would say little."""
    draw = DRAWN.get(card.name) if card.place in PLACES else None
    if draw is None:
        return b"", ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.9, 2.7) if draw is _plane else (6.4, 2.3))
        text = draw(figure, card)
        for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
            patch.set_alpha(0)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue(), text


def _training() -> FeatureSet:
    """Features of four classes, as after a ReLU, and a head that reads them."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(CLASSES).repeat(100)
    weight = torch.randn(CLASSES, WIDTH, generator=generator) * 0.4
    noise = torch.randn(len(labels), WIDTH, generator=generator)
    h = (weight[labels] * 1.2 + 0.6 * noise + 0.2).relu()
    return FeatureSet(h, labels, head=(weight, torch.zeros(CLASSES)))


def _strange(training: FeatureSet) -> Features:
    """Features of two images: one of a class, and one that excites a few features far too strongly."""
    known = next(training.chunks()).h[:1]
    generator = torch.Generator().manual_seed(8)
    odd = (torch.randn(1, WIDTH, generator=generator) * 0.5).relu()
    odd[0, torch.randperm(WIDTH, generator=generator)[:4]] += 1.8
    rows = FeatureSet(torch.cat([known, odd]), head=training.head)
    return next(rows.chunks())


def _fitted(spec: str) -> tuple[Stage, FeatureSet]:
    """The first stage of a detector, fitted on made-up training features, and these."""
    training = _training()
    stage = Detector(spec).steps[0]
    stage.fit(training)
    return stage, training


def _features(figure: Figure, card: Card) -> str:
    stage, training = _fitted(SPECS.get(card.name, f"{card.name}+energy"))
    before = _strange(training)
    _bars(figure, "feature", before.h, stage(before).h)
    _legend(figure.axes[0], "activation")
    return f"Made-up features of two images before and after `{stage!r}`."


def _weights(figure: Figure, card: Card) -> str:
    stage, training = _fitted(SPECS[card.name])
    before = _strange(training)
    weight, masked = before.head.weight, stage(before).head.weight
    limit = float(weight.abs().max())
    for axes, matrix, title in zip(_two(figure), (weight, masked), ("W", "M ⊙ W"), strict=True):
        shown = torch.where(matrix == 0, torch.nan, matrix).double().numpy()
        axes.imshow(shown, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.set(title=title, xlabel="feature", yticks=range(CLASSES))
    figure.axes[0].set_ylabel("class")
    return f"Weights of a made-up head before and after `{stage!r}`."


def _logits(figure: Figure, card: Card) -> str:
    stage, training = _fitted(SPECS.get(card.name, f"{card.name}+energy"))
    before = _strange(training)
    _bars(figure, "class", before.logits, stage(before).logits)
    for axes in figure.axes:
        axes.axhline(0, color=GREY, lw=0.6)
        axes.set_xticks(range(CLASSES))
    _legend(figure.axes[0], "logit")
    return f"Logits of two images with made-up features before and after `{stage!r}`."


def _bars(figure: Figure, label: str, before: Tensor, after: Tensor) -> None:
    """Numbers of two images, one of a class and a strange one, and what became of them."""
    x = np.arange(before.shape[1])
    pairs = zip(before.detach().double().numpy(), after.detach().double().numpy(), strict=True)
    titles = ("an image of a class", "a strange image")
    for axes, (old, new), title in zip(_two(figure), pairs, titles, strict=True):
        axes.bar(x, old, width=0.9, color=GREY, alpha=0.35, label="before")
        axes.bar(x, new, width=0.45, color=TEAL, label="after")
        axes.set(title=title, xlabel=label)


def _plane(figure: Figure, card: Card) -> str:
    """The share of ID points whose score is lower: so all scores are on one scale."""
    h, labels, head = _plane_training()
    detector = Detector(SPECS.get(card.name, card.name)).fit(h, labels, head=head)
    lows, highs = h.amin(dim=0) - 3, h.amax(dim=0) + 3
    x, y = (torch.linspace(float(a), float(b), SIDE) for a, b in zip(lows, highs, strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    known = np.sort(np.asarray(detector(h)))
    scores = np.asarray(detector(grid))
    share = np.searchsorted(known, scores, side="right").reshape(SIDE, SIDE) / len(known)
    figure.subplots_adjust(0.06, 0.09, 0.94, 0.98)
    axes = figure.add_subplot()
    extent = (float(x[0]), float(x[-1]), float(y[0]), float(y[-1]))
    shown = axes.imshow(share, origin="lower", extent=extent, cmap="GnBu", vmin=0, vmax=1, aspect="equal", alpha=0.85)
    limit = known[int(0.05 * len(known))]
    axes.contour(x, y, scores.reshape(SIDE, SIDE), levels=[limit], colors=[AMBER], linewidths=1.4, linestyles="solid")
    for c, marker in zip(range(3), "o^s", strict=True):
        axes.scatter(*h[labels == c].T, s=4, marker=marker, color="#26323a", alpha=0.45, linewidths=0)
    axes.set(xticks=[], yticks=[], xlabel="first feature", ylabel="second feature")
    figure.colorbar(shown, ax=axes, label="share of ID points that score lower")
    return (
        f"`{detector!r}` over a plane of two made-up features. The darker, the more like the training images: the dots "
        "of three classes. The line keeps 95 % of them."
    )


def _plane_training() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Three classes in a plane, and the linear head that is best for such Gaussians."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[3.0, 8.0], [8.5, 7.0], [6.0, 2.5]])
    labels = torch.arange(3).repeat(100)
    h = centres[labels] + 0.75 * torch.randn(len(labels), 2, generator=generator)
    middle = centres.mean(dim=0)
    weight = centres - middle
    return h, labels, (weight, -(weight @ middle))


def _two(figure: Figure) -> Iterator[Axes]:
    figure.subplots_adjust(0.08, 0.19, 0.99, 0.9, wspace=0.06)
    yield from figure.subplots(1, 2, sharey=True)


def _legend(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=7, labelcolor=GREY)


SPECS: Mapping[str, str] = {
    "dice": "dice:p=0.7+energy",
    "knn": "knn:k=10",
    "line": "line:p_a=0.5,p_w=0.5+energy",
    "mean": "mean(energy,knn:k=10)",
    "openmax": "openmax:alpha=3",
    "react": "react:q=0.95+energy",
    "temperature": "temperature:T=2+energy",
}
"""What is drawn where the defaults are for other networks than the made-up one."""

DRAWN: Mapping[str, Callable[[Figure, Card], str]] = {
    **dict.fromkeys(("fm", "react", "ashp", "ashb", "ashs", "scale", "vra", "typical", "line"), _features),
    "dice": _weights,
    **dict.fromkeys(("ls", "lts", "temperature"), _logits),
    **dict.fromkeys(("msp", "energy", "cosine", "fdbd", "gmm", "gradnorm", "knn", "mahalanobis"), _plane),
    **dict.fromkeys(("mean", "nci", "nnguide", "openmax", "rmd", "she", "vim"), _plane),
}
"""Which methods have a picture; the others' would look like one of these."""
