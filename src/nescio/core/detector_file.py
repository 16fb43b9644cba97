"""A detector in a file: its spec, what its stages learned, and the head that it was fitted for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from torch import Tensor

from nescio.core.artifact import Kind, read, write
from nescio.core.errors import InputError, NotFitted, some
from nescio.core.features import NO_HEAD, Head, NoHead
from nescio.core.spec import check_order
from nescio.core.stage import REGISTRY, Chain, Stage

KIND = Kind("detector", 2, "a detector", "fit and save it again")
_HEAD = "head."
"""Before the names of the head's tensors in a file; those that stages learned begin with ``stages.``."""
LARGE = 1_000_000_000
"""Bytes of learned tensors above which a user should know what they are about to store and load."""

log = logging.getLogger(__name__)


class StoredChain(Chain):
    """Stages and what they were fitted for, which a file can hold."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__(stages)
        self.fitted_to: str | None = None
        """Fingerprint of the head that the detector was fitted for; empty where there was none."""
        self.head: Head = NO_HEAD
        """The head that it was fitted with: arrays of features that it is called on are read by this one."""
        self.fit_seconds = 0.0
        """What fitting took, a stage that it shares with others counted in full."""
        self.width: int | None = None
        """L of the features that it was fitted on."""

    def check_complete(self) -> None:
        """Refuse a detector that has no score yet.

        Raises:
            InputError: it has none.
        """
        if self.steps[-1].place != "score":
            check_order(self.steps, repr(self))

    @property
    def size(self) -> int:
        """Bytes of what the stages learned: what a file of the detector takes."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def save(self, path: str | Path) -> None:
        """Write the detector to one file that ``nescio.load`` reads; an existing file is replaced whole.

        The file is enough to score arrays: it holds the head, too, where a stage reads the head or logits.

        Raises:
            NotFitted: it has still to learn something.
            InputError: it holds a function, or a stage without a name: no file can say what these do.
        """
        self.check_storable()
        learned = dict(self.state_dict())
        if (self.needs.head or self.needs.logits) and not isinstance(self.head, NoHead):
            learned |= {f"{_HEAD}weight": self.head.weight, f"{_HEAD}bias": self.head.bias}
        meta = {"spec": repr(self), "head": self.fitted_to, "width": self.width, "settings": self.settings()}
        big = log.warning if self.size > LARGE else log.info
        big("detector %r takes %s on disk", self, megabytes(self.size))
        write(Path(path), KIND, meta, learned)

    def check_storable(self) -> None:
        """Refuse a detector that no file can hold.

        Raises:
            NotFitted, InputError: as ``save``.
        """
        self.check_complete()
        stages = [module for module in self.modules() if isinstance(module, Stage)]
        for stage in stages:
            if REGISTRY.get(stage.name) is not type(stage):
                raise InputError(
                    f"detector '{self}' cannot be saved: '{stage!r}' is a function without a name; write it as a "
                    "class with one (class MyScore(nescio.Score, name='my-score')), and import it before loading"
                )
        if any(getattr(stage, name) is None for stage in stages for name in stage.declared()):
            raise NotFitted(f"detector '{self}' is not fitted; fit it before saving")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            InputError: the file is missing, damaged, not a detector or of a later version, or its stages are not known.
        """
        file = read(Path(path), KIND)
        with file.taken_apart():
            detector, stored = cls(file.meta["spec"]), file.under(_HEAD)
            head = Head(stored["weight"], stored["bias"]) if stored else NO_HEAD
            learned = {name: t for name, t in file.tensors.items() if not name.startswith(_HEAD)}
            detector.restore(learned, file.meta["head"], head, file.meta.get("width"))
        return detector

    def restore(self, learned: Mapping[str, Tensor], fitted_to: str | None, head: Head, width: int | None) -> None:
        """Take over what a detector of the same spec learned.

        Args:
            learned: its ``state_dict()``.
            fitted_to: fingerprint of the head that it was fitted for; None where it was not fitted.
            head: that head, as far as it is known.
            width: L of the features that it was fitted on; None where that is not known.

        Raises:
            InputError: these are not what this detector learns, or do not fit each other.
        """
        own = {
            f"{owner}.{name}": (module, name)
            for owner, module in self.named_modules()
            if isinstance(module, Stage)
            for name in module.declared()
        }
        if set(own) != set(learned):
            odd = some(sorted(set(own) ^ set(learned)))
            raise InputError(f"these tensors are not those that detector '{self}' learns ({odd})")
        known = not isinstance(head, NoHead)
        if not isinstance(fitted_to, str | None) or (known and head.fingerprint != fitted_to):
            raise InputError(f"the head is not the one that detector '{self}' was fitted for")
        if width is not None and (type(width) is not int or (known and head.weight.shape[1] != width)):
            raise InputError(f"the width {width!r:.40} of detector '{self}' differs from that of its head")
        for key, (module, name) in own.items():
            module.register_buffer(name, learned[key])
        self.fitted_to, self.head, self.width = fitted_to, head, width


def megabytes(size: int) -> str:
    """Bytes in words."""
    return f"{size / 1e6:,.1f} MB"
