"""Negative labels: names of what the classes are not, chosen from a list of words and read by CLIP's text tower."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nescio.core.errors import InputError
from nescio.core.features import Features, Head
from nescio.core.needs import Needs
from nescio.core.stage import Score
from nescio.models.heads import FeatureHead

SHARE = 0.15
"""Of the words, those that are taken."""
QUANTILE = 0.95
"""Of a word's cosines to the classes: what its nearness to them is judged by."""
GROUPS = 100
"""The classes are compared with one group at a time, so that many words do not drown them."""
_AT_ONCE = 1024
"""Words whose captions are held at a time."""

log = logging.getLogger(__name__)


def read_words(path: str | Path) -> list[str]:
    """The words of a file, one a line, each once.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(
            f"the negative labels in {path} cannot be read ({e}); give a file of words, one per line"
        ) from None
    words = list(dict.fromkeys(word for line in lines if (word := line.strip())))
    if not words:
        raise InputError(f"{path} has no words; give one per line")
    return words


def chosen(words: Tensor, classes: Tensor) -> Tensor:
    """The words that are farthest from the classes, in groups.

    Args:
        words: embeddings of the words ``(N, L)``.
        classes: embeddings of the classes ``(C, L)``; lengths do not matter.

    Returns:
        Rows of ``words``, ``(G, P, L)``: the 15 % whose cosines to the classes have the lowest 0.95 quantile, in 100
        random groups of one size, or as many as there are. A remainder is left out.
    """
    near = normalize(words, dim=1) @ normalize(classes, dim=1).T
    far = words[near.quantile(QUANTILE, dim=1).argsort(stable=True)[: max(1, int(SHARE * len(words)))]]
    shuffled = far[torch.randperm(len(far), generator=torch.Generator().manual_seed(0))]
    groups = min(GROUPS, len(far))
    size = len(far) // groups
    return shuffled[: groups * size].reshape(groups, size, -1)


class NegLabelHead(FeatureHead, name="neglabel", objective=""):
    """Texts of negative labels in groups, beside those of the classes that are the classification layer's rows.

    As a column, for each group, ``log Σ_p exp(r_gp · h)`` over its rows: ``(B, G)``.

    Args:
        rows: texts at the length of the logit scale ``(G, P, L)``.
    """

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    @classmethod
    def hint(cls) -> str:
        """How a network comes by one, for a message."""
        return "the model 'clip:NAME:negatives=FILE' has one"

    @classmethod
    def of_words(cls, path: str | Path, embed: Callable[[list[str]], Tensor], classes: Tensor) -> Self:
        """Of those words of a file that are far from all classes.

        Args:
            path: the words, one a line.
            embed: words to rows ``(N, L)`` at the length of the logit scale.
            classes: embeddings of the classes ``(C, L)``.

        Raises:
            InputError: the file cannot be read, or holds no words.
        """
        words = read_words(path)
        log.info("reading %s words to choose negative labels from", f"{len(words):,}")
        rows = [embed(words[i : i + _AT_ONCE]).cpu() for i in range(0, len(words), _AT_ONCE)]
        return cls(chosen(torch.cat(rows), classes))

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Self:
        """Of as many texts."""
        return cls(torch.empty_like(state["rows"]))

    def forward(self, h: Tensor, head: Head) -> Tensor:
        """How near features are to each group's texts."""
        near = h @ self.rows.flatten(0, 1).T
        return near.reshape(-1, *self.rows.shape[:2]).logsumexp(dim=2)


class NegLabel(Score, name="neglabel"):
    """The classes' share of a softmax beside negative labels: ``mean_g Σ_c e^f_c / (Σ_c e^f_c + Σ_p e^n_gp)``.

    ``f (B, C)`` are the logits, ``n_gp`` the scaled cosines to the texts of the g-th group of negative labels: words
    that are far from all classes. Their column ``log Σ_p e^n_gp (B, G) -> score (B,)`` in [0, 1].

    Source: Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language Models", ICLR 2024: its
    score with the grouping strategy. Words, as the authors choose them but with the classes' own prompts:
    ``--model 'clip:NAME:negatives=FILE'``.
    """

    needs = Needs(features=False, logits=True, heads=frozenset({"neglabel"}))

    def forward(self, f: Features) -> Tensor:
        """Score a batch."""
        own = f.logits.to(torch.float64).logsumexp(dim=1, keepdim=True)
        return (own - f.probed("neglabel")[0].to(torch.float64)).sigmoid().mean(dim=1)
