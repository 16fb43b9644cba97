"""A class's similarity divided by one number that learns how far an image is from all classes."""

from __future__ import annotations

from torch import Tensor, nn

from nescio.core.errors import InputError, check_choice
from nescio.methods.objective import Objective, View, exactly, precise
from nescio.models.classifier import Classifier
from nescio.models.heads import SIMILARITIES, DividingHead, head_of


class GODIN(Objective, name="godin"):
    """Generalized ODIN: cross entropy of ``f_i(x) = h_i(x) / g(x)``, numerators over a learnt denominator in (0, 1).

    See ``DividingHead`` for ``h`` and ``g``. The numerators' weights are the rows of the network's own last layer,
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

    def __init__(self, *, similarity: str = "cosine") -> None:
        super().__init__()
        self.similarity = check_choice("similarity", similarity, SIMILARITIES)

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """A new denominator.

        Raises:
            InputError: the last layer has no bias, without which it cannot predict what distances do.
        """
        bias = classifier.layer.bias
        if self.similarity == "euclid" and bias is None:
            raise InputError(f"the last layer of {classifier.name} has no bias, which similarity=euclid needs")
        if self.similarity != "inner" and isinstance(bias, Tensor):
            bias.requires_grad = False  # it follows from the rows
        width = classifier.head.weight.shape[1]
        return {"godin": DividingHead(width, self.similarity).to(classifier.device)}

    def settle(self, classifier: Classifier) -> None:
        """Tie length and bias of the last layer's rows."""
        head = head_of(classifier.heads, DividingHead)
        classifier.rewrite_head(head.tied(classifier.head))

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        head, h = head_of(heads, DividingHead), precise(view.h)
        with exactly(h):  # small numbers are divided by
            g = head.denominator(h)
            loss = nn.functional.cross_entropy(head.numerators(h, view.head) / g, view.labels)
        return loss, {"g": g.detach().mean()}
