"""Plates of the sampled features: a map of them, activation against head weights, cosines to prototypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.evaluation import metrics
from nescio.evaluation.sample import Activation, FeatureSample
from nescio.report.curves import ID_AND_OOD, draw_histograms
from nescio.report.figures import ID_COLOUR, INK, OOD_COLOUR, Key, Panel, Plate

Floats = npt.NDArray[np.float64]

MAPPED = 1000
"""Points of the map: t-SNE's time grows with them, and more would hide each other."""
_PRINCIPAL = 50
_RUNNING = 0.02
"""Share of the channels that a mean of activations runs over, so that its trend shows."""


def feature_map(sample: FeatureSample) -> tuple[Plate, str]:
    """ID features against those of each OOD set, in one common map to two dimensions; and how the map was made.

    Each panel shows the part of the map where its own points are: one set far away would leave little room to all.
    """
    oods = [name for name in sample.sets if name != "id"]
    most = max(1, (MAPPED - len(sample.sets["id"].h)) // max(1, len(oods)))
    sampled = {name: s.h if name == "id" else s.h[_spaced(len(s.h), most)] for name, s in sample.sets.items()}
    points, how = _flat(np.concatenate([h.astype(np.float64) for h in sampled.values()]))
    points = _principal(points)  # wider than high, as the panels are
    ends = np.cumsum([len(h) for h in sampled.values()])[:-1]
    placed = dict(zip(sampled, np.split(points, ends), strict=True))

    def panel(ood: str) -> Panel:
        def draw(ax: Any) -> None:
            for name, colour in (("id", ID_COLOUR), (ood, OOD_COLOUR)):
                ax.plot(*placed[name].T, ".", color=colour, markersize=5.5, markeredgewidth=0, alpha=0.7)
            ax.margins(0.03)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, alpha=0.35)

        return Panel(ood, draw, f"{how} of {len(placed['id'])} ID and {len(placed[ood])} OOD features")

    return Plate("features", [panel(name) for name in oods], ID_AND_OOD, (3.4, 2.6)), how


def _spaced(n: int, most: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _principal(h: Floats) -> Floats:
    """Points ``(N, L)`` along their principal axes, the longest first; at least two of these."""
    u, s, v = np.linalg.svd(h - h.mean(axis=0), full_matrices=False)
    sign = np.sign(v[np.arange(len(v)), np.abs(v).argmax(axis=1)])  # SVD leaves it open
    return np.pad(u * s * sign, ((0, 0), (0, max(0, 2 - len(s)))))


def _flat(h: Floats) -> tuple[Floats, str]:
    """Points of the plane for features ``(N, L)``, the same every time: by t-SNE where scikit-learn is installed."""
    principal = _principal(h)
    spread = principal[:, 0].std()
    perplexity = min(30.0, (len(h) - 1) / 4)
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        return principal[:, :2], "PCA"
    if perplexity < 1 or not spread:
        return principal[:, :2], "PCA"
    start = (principal[:, :2] / spread * 1e-4).astype(np.float32)
    with threadpool_limits(1):  # sums in threads come out a little different every time
        tsne = TSNE(perplexity=perplexity, init=start, learning_rate="auto", angle=0.8, random_state=0)
        return tsne.fit_transform(principal[:, :_PRINCIPAL]).astype(np.float64), "t-SNE"


def activation(found: Activation, name: str) -> Plate:
    """A class's head weights in descending order, and the mean activation of its ID and of the OOD images by channel.

    Figure 2 of the FM + LS paper. Thin lines are channels, thick ones a running mean.
    """
    order = np.argsort(-found.weights, kind="stable")

    def draw(ax: Any) -> None:
        channels = np.arange(len(order))
        for values, colour in ((found.id_mean[order], ID_COLOUR), (found.ood_mean[order], OOD_COLOUR)):
            ax.fill_between(channels, values, color=colour, alpha=0.35, linewidth=0, step="mid")
            ax.plot(channels, _running_mean(values), color=colour, linewidth=1.4)
        ax.set(xlabel="feature channel, by the class's head weight", ylabel="mean activation", xlim=(0, len(order) - 1))
        right = ax.twinx()
        right.plot(channels, found.weights[order], color=INK, linewidth=1.0, linestyle="--")
        right.set_ylabel("head weight")
        right.spines["right"].set_visible(True)

    about = f"mean activation of {found.n_id} ID images of the class and of {found.n_ood} OOD images taken for it"
    keys = (Key("ID images", ID_COLOUR), Key("OOD images", OOD_COLOUR), Key("head weight (right)", INK, "--"))
    return Plate("activation", [Panel(f"class {name}", draw, about)], keys, (3.9, 2.5))


def _running_mean(values: Floats) -> Floats:
    width = max(1, round(_RUNNING * len(values)))
    ones = np.ones(2 * width + 1)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def cosines(sample: FeatureSample) -> Plate | None:
    """Cosine of the features to the prototype of the predicted class; Figure 5 of the FM + LS paper."""
    cosine = sample.sets["id"].cosine
    if cosine is None:
        return None
    ids = cosine.astype(np.float64)

    def panel(ood: str, oods: Floats) -> Panel:
        def draw(ax: Any) -> None:
            draw_histograms(ax, ids, oods)
            ax.set(xlabel=f"cosine to the prototype{ax.get_xlabel()}", ylabel="% of images")

        fpr95, about = metrics.fpr_at_tpr(ids, oods), f"cosines of {len(ids)} ID and {len(oods)} OOD features"
        return Panel(f"{ood}: FPR95 ≈ {fpr95 * 100:.1f} %", draw, about)

    oods = {
        name: s.cosine.astype(np.float64) for name, s in sample.sets.items() if name != "id" and s.cosine is not None
    }
    return Plate("cosine", [panel(*item) for item in oods.items()], ID_AND_OOD)
