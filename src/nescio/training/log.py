"""Numbers of each epoch: ``metrics.jsonl``, and TensorBoard's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from nescio.core.errors import InputError
from nescio.core.files import write_whole

METRICS = "metrics.jsonl"


class Log:
    """One line of JSON per epoch, and the same numbers for TensorBoard.

    Args:
        folder: the run's.
        epochs: how many are done; what TensorBoard has of later ones, which are run again, is dropped.
        write: whether this process writes at all.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, epochs: int, *, write: bool = True) -> None:
        self.path, self.board = folder / METRICS, None
        if write:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError("training needs an extra: pip install 'nescio[train]'") from None
            self.board = SummaryWriter(folder / "tensorboard", purge_step=epochs + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the lines of all epochs so far."""
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, line: Mapping[str, Any]) -> None:
        """Hand a new epoch's numbers to TensorBoard."""
        for name, value in line.items():
            if self.board is not None and name not in ("epoch", "step"):
                self.board.add_scalar(name, value, line["epoch"])
