"""Small groups of classes, each of which learns what is none of its own."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import torch
from torch import Tensor, nn

from nescio.core import numerics
from nescio.core.bounds import AtLeast
from nescio.core.errors import InputError, some
from nescio.core.features import Features, Head
from nescio.core.needs import Needs
from nescio.core.stage import Score
from nescio.methods.objective import Objective, View, exactly, precise
from nescio.models.heads import FeatureHead, head_of

if TYPE_CHECKING:
    from nescio.models.classifier import Classifier

_ROUNDS = 100
_LEAST = 1e-30
"""Squared distance that equal rows count as having."""


class MOSHead(FeatureHead, name="mos"):
    """One more class for each group of classes, "others": a linear layer from features to a logit per group.

    Softmax goes over the classes of a group and its "others"; the label is the class whose probability within its group
    is the highest. As a column: ``log p(others)`` of each group, ``(B, G)``.

    Args:
        width: L.
        group: the group of each class ``(C,)`` int64; each of ``0…G - 1`` has some.
    """

    decides = True
    group: Tensor
    members: Tensor
    absent: Tensor

    def __init__(self, width: int, group: Tensor) -> None:
        super().__init__()
        counts = group.bincount().tolist()
        self.linear = nn.Linear(width, len(counts))
        members = nn.utils.rnn.pad_sequence(list(torch.split(group.argsort(stable=True), counts)), batch_first=True)
        absent = torch.arange(max(counts)) >= torch.tensor(counts)[:, None]
        self.register_buffer("group", group)
        self.register_buffer("members", members)
        self.register_buffer("absent", absent)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """Of the same width and groups."""
        return cls(state["linear.weight"].shape[1], state["group"].cpu())

    def log_probabilities(self, h: Tensor, head: Head) -> tuple[Tensor, Tensor]:
        """Of each class within its group ``(B, C)``, and of each group's "others" ``(B, G)``."""
        logits, others = head.linear(h), self.linear(h)
        inside = logits[:, self.members].masked_fill(self.absent, -torch.inf)
        total = torch.cat([inside, others[..., None]], dim=2).logsumexp(dim=2)
        return logits - total[:, self.group], others - total

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """How likely none of each group's classes is."""
        return self.log_probabilities(h, head)[1]

    def decide(self, h: Tensor, head: Head) -> Tensor:
        """Log-probabilities within the groups."""
        return self.log_probabilities(h, head)[0]


class MOSObjective(Objective, name="mos"):
    """Group softmax: in each group of classes cross entropy over its classes and "others", summed over the groups.

    In the group of the true class the target is that class, in every other group "others". See ``MOSHead`` for the
    layout and the label. With one group whose "others" has a logit of -∞ it is cross entropy. The score is ``mos``.

    Args:
        groups: ``kmeans`` of the last layer's rows, which means something where that layer is trained (``--init`` a
            network with the same classes); ``random``; or a file of lines ``CLASS,GROUP``, each class by its name or
            number: a level of a taxonomy.
        k: how many groups ``kmeans`` and ``random`` make; by default 8, the paper's for 1,000 classes, or half the
            classes where that is less.

    Source: Huang and Li, "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space", CVPR 2021,
    equations 3 and 4. The paper clusters the classes' mean features in a pretrained network, and fine-tunes from one
    (BiT) with mixup and without weight decay; here the recipe says how it is trained.
    """

    detector = "mos"
    needs = Needs(heads=frozenset({"mos"}))

    def __init__(self, *, groups: str = "kmeans", k: Annotated[int, AtLeast(1)] | None = None) -> None:
        super().__init__()
        self.groups, self.k = groups, k

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """New "others", one for each group.

        Raises:
            InputError: the file does not give each class a group, or there are more groups than classes.
        """
        rows = classifier.head.weight.detach().cpu()
        k = self.k or max(1, min(8, len(rows) // 2))
        if k > len(rows):
            raise InputError(f"k={k} groups, but only {len(rows)} classes; give a smaller k")
        if self.groups == "kmeans":
            group = kmeans(rows, k)
        elif self.groups == "random":
            group = torch.randperm(len(rows)) % k
        else:
            group = read_groups(Path(self.groups).expanduser(), classifier.classes or len(rows))
        return {"mos": MOSHead(rows.shape[1], group).to(classifier.device)}

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        head, h = head_of(heads, MOSHead), precise(view.h)
        with exactly(h):
            classes, others = head.log_probabilities(h, view.head)
        own = classes.gather(1, view.labels[:, None])[:, 0]
        rest = others.sum(dim=1) - others.gather(1, head.group[view.labels][:, None])[:, 0]
        return -(own + rest).mean(), {"cls_loss": -own.detach().mean()}


class MOS(Score, name="mos"):
    """The least of the probabilities of "others" over the groups of classes, negative: ``-min_g p(others | g)``.

    An ID image belongs to one group, which knows it; an OOD image to none. ``log p (B, G) -> score (B,)`` in [-1, 0].

    Source: Huang and Li, "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space", CVPR 2021,
    equation 5. Train a network for it with ``nescio train --objective mos``.
    """

    needs = Needs(features=False, heads=frozenset({"mos"}))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        return -f.probed("mos")[0].to(torch.float64).amin(dim=1).exp()


def kmeans(rows: Tensor, k: int) -> Tensor:
    """Which of k clusters each row ``(N, L)`` belongs to, ``(N,)``; none is empty. Lloyd's, begun as k-means++."""
    rows, group = rows.to(torch.float64), torch.full((len(rows),), -1)
    chosen = [int(torch.randint(len(rows), ()))]
    for _ in range(k - 1):
        squared = torch.cdist(rows, rows[chosen]).amin(dim=1).square()
        chosen.append(int(torch.multinomial(squared + _LEAST, 1)))
    centres = rows[chosen]
    for _ in range(_ROUNDS):
        distances = torch.cdist(rows, centres)
        nearest = distances.argmin(dim=1)
        for empty in (nearest.bincount(minlength=k) == 0).nonzero().flatten().tolist():
            shared = nearest.bincount(minlength=k)[nearest] > 1
            nearest[int(distances.amin(dim=1).masked_fill(~shared, -1).argmax())] = empty
        if torch.equal(nearest, group):
            break
        group = nearest
        centres, _ = numerics.class_means([(rows, group)], k)
    return group


def read_groups(path: Path, classes: list[str] | int) -> Tensor:
    """The group of each class ``(C,)`` from a file of lines ``CLASS,GROUP``, numbered as they first occur.

    Args:
        path: the file.
        classes: their names, or how many there are.

    Raises:
        InputError: the file is missing, or names a class that there is not, one twice, or not all.
    """
    names = [str(c) for c in (classes if isinstance(classes, list) else range(classes))]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"groups={path} cannot be read ({e}); give kmeans, random, or a file") from None
    found: dict[int, str] = {}
    for line in lines:
        number = names.index(line[0]) if line[0] in names else int(line[0]) if line[0].isdecimal() else len(names)
        if len(line) != 2 or number >= len(names) or number in found:
            raise InputError(f"{path}: '{','.join(line)}' is not a class and its group, or repeats a class")
        found[number] = line[1]
    missing = [name for i, name in enumerate(names) if i not in found]
    if missing:
        raise InputError(f"{path} has no group for {some(missing)}; add a line for each")
    order = list(dict.fromkeys(found.values()))
    return torch.tensor([order.index(found[i]) for i in range(len(names))])
