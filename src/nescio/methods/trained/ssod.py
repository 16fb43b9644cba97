"""A classifier that learns what it does not know from the background of its own training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from torch import Tensor, nn

from nescio.core.bounds import AtLeast, Positive
from nescio.core.errors import InputError
from nescio.core.features import Features
from nescio.core.needs import Maps, Needs
from nescio.core.stage import Score
from nescio.methods.background import check_gamma, class_confidence, sure_positions
from nescio.methods.objective import Objective, View, precise, processes, summed
from nescio.models.heads import PositionHead

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier

RARE = 1e-3
"""Share of the patches below which a kind is said to hardly occur."""
TOP = 0.25
"""Share of the positions that ``pool=top`` averages."""


class SSODHead(PositionHead, nn.Conv2d, name="ood", objective="ssod"):
    """``f_ood``: one linear output for every position of a feature map, ``(B, K, H, W) -> (B, 1, H, W)`` logits.

    ``sigmoid`` of a logit is the probability of ID. Of a pooled map ``(B, K, 1, 1)`` it is equation 15 of Pei, "Image
    Background Serves as Good Proxy for Out-of-distribution Data", ICLR 2024. Equation 14 there has two outputs and a
    cross entropy: a softmax over two is the sigmoid of their difference, so one output, their difference, with a binary
    cross entropy is the same function and the same loss.
    """

    probability = "ssod"

    def __init__(self, channels: int) -> None:
        nn.Conv2d.__init__(self, channels, 1, kernel_size=1)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """For as many channels."""
        return cls(state["weight"].shape[1])


class SSODObjective(Objective, name="ssod"):
    """Self-supervised sampling: an OOD head learns from patches that the classification head labels.

    With the feature map ``X (B, K, H, W)``: ``ŷ = f_cls(GAP(X))`` (11). The same head at position i gives the softmax
    confidence ``c_i`` on the true class; without gradient, position i is ID where ``c_i ≥ γ``, OOD where ``c_i < 1-γ``,
    and takes no part otherwise (12). The OOD head reads every position (13), and ``loss = CE(ŷ, y) + α · CE(ŷ_ood,
    y_ood)`` over the labelled positions (14). (14) has two outputs and (15) a sigmoid: see ``SSODHead`` why one output
    with a binary cross entropy is both. Gradients of the second term reach the backbone.

    Args:
        gamma: γ, in (0.5, 1).
        alpha: α, above 0.
        balance: ``lwb``: half the sum of the ID positions' mean loss and the OOD positions' mean loss, one that is
            absent from the batch counting 0. ``dr``: as many positions of either kind are drawn per image as it has of
            the rarer, none if it has only one kind; their mean loss. ``lw``: the mean loss of the labelled positions,
            where those of OOD positions are multiplied by ``weight``.
        weight: factor for ``lw``; the paper does not publish its own.
        outliers: outliers per training image (``--outliers``), all of whose positions are OOD; 0 is the paper's.
        start: epochs of cross entropy alone before the OOD head is trained. 0 is the paper's. With C classes an
            untrained head gives confidence 1/C, so that every position is "OOD" at first where 1/C < 1-γ.

    Batches without a labelled position have a second term of 0. With several processes the counts are those of the
    whole batch; with gradient accumulation, those of each part.

    Source: Pei, "Image Background Serves as Good Proxy for Out-of-distribution Data", ICLR 2024, equations 11-15;
    γ = 0.95, α = 1 and ``lwb`` are the paper's. No code is published.
    """

    detector = "ssod"
    shown = {"id_share": "patches ID {:.0%}", "ood_share": "OOD {:.0%}"}  # noqa: RUF012 - as the base declares it

    def __init__(
        self,
        *,
        gamma: float = 0.95,
        alpha: Annotated[float, Positive] = 1.0,
        balance: Literal["lwb", "dr", "lw"] = "lwb",
        weight: Annotated[float, Positive] = 0.1,
        start: Annotated[float, AtLeast(0)] = 0.0,
        outliers: Annotated[int, AtLeast(0)] = 0,
    ) -> None:
        super().__init__()
        self.gamma, self.alpha, self.balance = check_gamma(gamma), alpha, balance
        self.weight, self.start, self.outliers = weight, start, outliers
        if outliers and balance == "dr":
            raise InputError(
                "balance=dr draws as many ID as OOD positions per image, but outliers have only OOD ones; use another "
                "balance"
            )

    @property
    def needs(self) -> Needs:
        """Feature maps, and the outliers that it is to learn from."""
        return Needs(maps=True, outliers=self.outliers, heads=frozenset({"ood"}))

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """A new OOD head.

        Raises:
            InputError: the network's pooling is not the mean, so a position is no small image.
        """
        split, noise = classifier.split, classifier.noise()
        with torch.no_grad():
            fmap = split.backbone(noise)
            averages = split.averages(fmap)
        if not averages:
            raise InputError(f"{classifier.name} does not average its feature map, which ssod needs")
        return {"ood": SSODHead(fmap.shape[1]).to(classifier.device)}

    def label(self, view: View) -> tuple[Tensor, Tensor]:
        """Which positions are ID and which OOD, from their confidence on the true class (12): ``(B, H·W)`` each."""
        confidence = class_confidence(view.network.logits_at_positions(view.fmap), view.labels)
        return sure_positions(confidence, self.gamma)

    def read(self, head: nn.Module, view: View, is_id: Tensor, is_ood: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the OOD head is trained on: its logits at all positions (13), and their labels."""
        return precise(head(view.fmap).flatten(1)), is_id, is_ood

    def warning(self, means: Mapping[str, float]) -> str | None:
        """That one kind of patch, or both, hardly occurs."""
        absent = [kind for kind, name in (("ID", "id_share"), ("OOD", "ood_share")) if means[name] < RARE]
        if not absent:
            return None
        learns = "nothing" if len(absent) > 1 else "from one kind only"
        return f"almost no patch was labelled {' or '.join(absent)}; the OOD head learns {learns}"

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        own = nn.functional.cross_entropy(view.logits, view.labels)
        is_id, is_ood = self.label(view)
        z, id_rows, ood_rows = self.read(heads["ood"], view, is_id, is_ood)
        if self.outliers:
            far = precise(heads["ood"](view.others(view.fmaps)).flatten(1))
            none = torch.zeros_like(far, dtype=torch.bool)
            z, id_rows, ood_rows = (torch.cat(p) for p in ((z, far), (id_rows, none), (ood_rows, ~none)))
        term = self.ood_term(z, id_rows, ood_rows)
        weight = self.alpha if view.epoch >= self.start else 0.0
        shares = {"id_share": is_id, "ood_share": is_ood}
        watched = {name: found.float().mean() for name, found in shares.items()}
        return own + weight * term, {"cls_loss": own.detach(), "ood_loss": term.detach(), **watched}

    def ood_term(self, z: Tensor, is_id: Tensor, is_ood: Tensor) -> Tensor:
        """The balanced loss of the OOD head, from its logits and the labels of the positions, all ``(B, H·W)``."""
        if self.balance == "dr":
            is_id, is_ood = resample(is_id), resample(is_ood)
            fewer = torch.minimum(is_id.amax(dim=1), is_ood.amax(dim=1))[:, None]
            is_id, is_ood = ((rank > 0) & (rank <= fewer) for rank in (is_id, is_ood))
        losses = (nn.functional.softplus(-z) * is_id, nn.functional.softplus(z) * is_ood)
        sums = torch.stack([part.sum() for part in losses])
        counts = summed(torch.stack([is_id.sum(), is_ood.sum()])).to(sums.dtype)
        if self.balance == "lwb":
            term = (sums / counts.clamp(min=1)).sum() / 2
        else:
            factors = sums.new_tensor([1, self.weight if self.balance == "lw" else 1])
            term = (sums * factors).sum() / counts.sum().clamp(min=1)
        return term * processes()


def _at_positions(maps: Maps) -> Sequence[Tensor]:
    """The OOD head's logit at every position."""
    return [maps.heads["ood"](maps.layers[-1]).flatten(1)]


class SSOD(Score, name="ssod"):
    """Probability of ID from the OOD head that the network was trained with: ``P(ID | x) = sigmoid(f_ood(GAP(X)))``.

    A probe reads the head at every position i of the feature map, ``z (B, H·W)``; the head is linear, so its logit of
    the pooled map is their mean. ``(B, H·W) -> score (B,)`` in [0, 1].

    Args:
        pool: ``image`` is the paper's: the sigmoid of the mean logit. ``mean`` is the mean of the positions'
            probabilities; ``top`` that of the quarter of the positions that look most like ID, for small objects.

    Source: Pei, "Image Background Serves as Good Proxy for Out-of-distribution Data", ICLR 2024, equation 15; ``mean``
    and ``top`` are ours. Train a network for it with ``nescio train --objective ssod``.
    """

    needs = Needs(features=False, probes={"ood": _at_positions}, heads=frozenset({"ood"}))

    def __init__(self, *, pool: Literal["image", "mean", "top"] = "image") -> None:
        super().__init__()
        self.pool = pool

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        z = f.probed("ood")[0].to(torch.float64)
        if self.pool == "image":
            return z.mean(dim=1).sigmoid()
        if self.pool == "top":
            z = z.topk(max(1, round(TOP * z.shape[1])), dim=1).values
        return z.sigmoid().mean(dim=1)


def resample(chosen: Tensor) -> Tensor:
    """Number the chosen positions of each image at random from 1 on; 0 stands at the others. ``(B, P)``."""
    keys = torch.rand(chosen.shape, device=chosen.device).masked_fill(~chosen, torch.inf)
    return torch.where(chosen, keys.argsort(dim=1).argsort(dim=1) + 1, 0)
