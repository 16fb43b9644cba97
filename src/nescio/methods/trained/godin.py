"""A class's similarity divided by one number that learns how far an image is from all classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.core.features import Features, Head
from nescio.core.needs import Needs
from nescio.core.stage import Score
from nescio.methods.objective import Objective, View, exactly, precise
from nescio.models.heads import FeatureHead, head_of

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier

SIMILARITIES = ("cosine", "inner", "euclid")
_LEAST = 1e-24
"""Smallest squared length that is divided by."""


class GODINHead(FeatureHead, name="godin"):
    """Decomposed confidence: numerators ``h_i(x) (B, C)`` for the classes over one denominator ``g(x) (B, 1)``.

    ``g = sigmoid(BN(linear(h)))``. With the rows ``w_i`` of the classification layer the numerators are ``cos(w_i, h)``
    (``cosine``), ``w_i · h + b_i`` (``inner``) or ``-‖h - w_i / 2‖²`` (``euclid``). Each grows, for a given image, with
    the logit of a linear layer: that with rows of length 1 and no bias, the layer as it is, or that with the bias
    ``-‖w_i‖² / 4``. In that form (``tied``) the layer's own prediction is that of the quotients, as ``g > 0``.
    As a column: the largest numerator, and ``g``; ``(B, 2)``.
    """

    similarity: Tensor

    def __init__(self, width: int, similarity: str) -> None:
        super().__init__()
        self.kind = similarity
        self.linear, self.norm = nn.Linear(width, 1), nn.BatchNorm1d(1)
        self.register_buffer("similarity", torch.tensor(SIMILARITIES.index(similarity)))

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """Of the same width and similarity."""
        return cls(state["linear.weight"].shape[1], SIMILARITIES[int(state["similarity"])])

    def tied(self, head: Head) -> Head:
        """The classification layer in the form whose prediction is that of the numerators."""
        if self.kind == "cosine":
            return Head(nn.functional.normalize(head.weight), torch.zeros_like(head.bias))
        return head if self.kind == "inner" else Head(head.weight, -head.weight.square().sum(dim=1) / 4)

    def numerators(self, h: Tensor, head: Head) -> Tensor:
        """``h_i(x)``, ``(B, C)``."""
        linear, squared = self.tied(head).linear(h), h.square().sum(dim=1, keepdim=True)
        if self.kind == "cosine":
            return linear / squared.clamp(min=_LEAST).sqrt()
        return linear if self.kind == "inner" else linear - squared

    def denominator(self, h: Tensor) -> Tensor:
        """``g(x)``, ``(B, 1)`` in (0, 1)."""
        return torch.sigmoid(self.norm(self.linear(h)))

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """The largest numerator and the denominator."""
        return torch.cat([self.numerators(h, head).amax(dim=1, keepdim=True), self.denominator(h)], dim=1)


class GODINObjective(Objective, name="godin"):
    """Generalized ODIN: cross entropy of ``f_i(x) = h_i(x) / g(x)``, numerators over a learnt denominator in (0, 1).

    See ``GODINHead`` for ``h`` and ``g``. The numerators' weights are the rows of the network's own last layer,
    which is kept in the form that predicts what the quotients do: rows of length 1 without bias for ``cosine``. So the
    label, post-hoc methods and the plain file of weights all follow from one layer. Where ``g = 1``, ``inner`` is cross
    entropy. The score is ``godin``; ``perturbid`` is the paper's input perturbation.

    Args:
        similarity: ``cosine`` (DeConf-C), ``inner`` (DeConf-I) or ``euclid`` (DeConf-E).

    Source: Hsu, Shen, Jin and Kira, "Generalized ODIN: Detecting Out-of-distribution Image without Learning from
    Out-of-distribution Data", CVPR 2020, equations 4 to 8. Length and bias of rows are set after each step, which
    changes no cosine; a public reimplementation lets them drift, and begins at weights of its own, where here it is the
    network's last layer. The paper has no weight decay on ``h``: for ``cosine`` it would change nothing, for the others
    here it is the recipe's.
    """

    detector = "godin"
    needs = Needs(heads=frozenset({"godin"}))

    def __init__(self, *, similarity: Literal["cosine", "inner", "euclid"] = "cosine") -> None:
        super().__init__()
        self.similarity = similarity

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """A new denominator.

        Raises:
            InputError: the last layer has no bias, without which it cannot predict what distances do.
        """
        bias = classifier.layer.bias
        if self.similarity == "euclid" and bias is None:
            raise InputError(
                f"the last layer of {classifier.name} has no bias, which similarity=euclid needs; use another "
                "similarity"
            )
        if self.similarity != "inner" and isinstance(bias, Tensor):
            bias.requires_grad = False  # it follows from the rows
        width = classifier.head.weight.shape[1]
        return {"godin": GODINHead(width, self.similarity).to(classifier.device)}

    def after_step(self, classifier: Classifier) -> None:
        """Tie length and bias of the last layer's rows."""
        head = head_of(classifier.heads, GODINHead)
        classifier.rewrite_head(head.tied(classifier.head))

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        head, h = head_of(heads, GODINHead), precise(view.h)
        with exactly(h):  # small numbers are divided by
            g = head.denominator(h)
            loss = nn.functional.cross_entropy(head.numerators(h, view.head) / g, view.labels)
        return loss, {"g": g.detach().mean()}


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

    def __init__(self, *, read: Literal["h", "g"] = "h") -> None:
        super().__init__()
        self.read = read

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return f.probed("godin")[0][:, "hg".index(self.read)].to(torch.float64)
