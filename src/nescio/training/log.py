"""Numbers of each epoch: ``metrics.jsonl``, and TensorBoard's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nescio.files import write_whole

METRICS = "metrics.jsonl"


class Log:
    """One line of JSON per epoch, and the same numbers for TensorBoard.

    Args:
        folder: the run's.
        epochs: how many are done; later lines, of epochs that are run again, are dropped.
        write: whether this process writes at all.
    """

    def __init__(self, folder: Path, epochs: int, *, write: bool = True) -> None:
        self.path, self.board = folder / METRICS, None
        if write:
            from torch.utils.tensorboard import SummaryWriter

            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            write_whole(self.path, "".join(line + "\n" for line in lines[:epochs]))
            self.board = SummaryWriter(folder / "tensorboard", purge_step=epochs + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()

    def write(self, numbers: Mapping[str, Any]) -> None:
        """Add an epoch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")
        for name, value in numbers.items():
            if self.board is not None and name not in ("epoch", "step"):
                self.board.add_scalar(name, value, numbers["epoch"])
