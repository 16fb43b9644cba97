"""Negative labels: names of what the classes are not, chosen from a list of words and read by CLIP's text tower."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nescio.core.errors import InputError

SHARE = 0.15
"""Of the words, those that are taken."""
QUANTILE = 0.95
"""Of a word's cosines to the classes: what its nearness to them is judged by."""
GROUPS = 100
"""The classes are compared with one group at a time, so that many words do not drown them."""


def read_words(path: str | Path) -> list[str]:
    """The words of a file, one a line, each once.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(
            f"the negative labels in {path} cannot be read ({e}); give a file of words, one a line"
        ) from None
    words = list(dict.fromkeys(word for line in lines if (word := line.strip())))
    if not words:
        raise InputError(f"{path} holds no words; give one a line")
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
