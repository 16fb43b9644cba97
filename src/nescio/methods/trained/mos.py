"""Small groups of classes, each of which learns what is none of its own."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor, nn

from nescio.core import numerics
from nescio.core.errors import InputError, check_at_least, some
from nescio.methods.objective import Objective, View, exactly, precise
from nescio.models.classifier import Classifier
from nescio.models.heads import GroupHead, head_of

_ROUNDS = 100
_LEAST = 1e-30
"""Squared distance that equal rows count as having."""


class MOS(Objective, name="mos"):
    """Group softmax: in each group of classes cross entropy over its classes and "others", summed over the groups.

    In the group of the true class the target is that class, in every other group "others". See ``GroupHead`` for the
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

    def __init__(self, *, groups: str = "kmeans", k: int | None = None) -> None:
        super().__init__()
        self.groups = groups
        self.k = k if k is None else check_at_least("k", k, 1)

    def heads(self, classifier: Classifier) -> dict[str, nn.Module]:
        """New "others", one for each group.

        Raises:
            InputError: the file does not give each class a group, or there are more groups than classes.
        """
        rows = classifier.head.weight.detach().cpu()
        k = self.k or max(1, min(8, len(rows) // 2))
        if k > len(rows):
            raise InputError(f"k={k} groups are more than the {len(rows)} classes")
        if self.groups == "kmeans":
            group = kmeans(rows, k)
        elif self.groups == "random":
            group = torch.randperm(len(rows)) % k
        else:
            group = read_groups(Path(self.groups).expanduser(), classifier.classes or len(rows))
        return {"mos": GroupHead(rows.shape[1], group).to(classifier.device)}

    def loss(self, view: View, heads: nn.ModuleDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch."""
        head, h = head_of(heads, GroupHead), precise(view.h)
        with exactly(h):
            classes, others = head.log_probabilities(h, view.head)
        own = classes.gather(1, view.labels[:, None])[:, 0]
        rest = others.sum(dim=1) - others.gather(1, head.group[view.labels][:, None])[:, 0]
        return -(own + rest).mean(), {"cls_loss": -own.detach().mean()}


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
        raise InputError(f"groups={path} cannot be read ({e}); write kmeans, random, or a file's name") from None
    found: dict[int, str] = {}
    for line in lines:
        number = names.index(line[0]) if line[0] in names else int(line[0]) if line[0].isdecimal() else len(names)
        if len(line) != 2 or number >= len(names) or number in found:
            raise InputError(f"{path}: '{','.join(line)}' is no class and its group, or the class stands there twice")
        found[number] = line[1]
    missing = [name for i, name in enumerate(names) if i not in found]
    if missing:
        raise InputError(f"{path} gives no group to {some(missing)}")
    order = list(dict.fromkeys(found.values()))
    return torch.tensor([order.index(found[i]) for i in range(len(names))])
