"""The folder of a scoring job: a manifest, written first, and a parquet file for each part, each written whole.

What the parts are follows from the input alone, so a job that was killed goes on with those that are not there yet.
Names that begin with an underscore or a dot are not read by those who open the folder as one table.
"""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nescio.core.errors import InputError
from nescio.core.files import alone, whole, write_whole
from nescio.core.reading import read_json
from nescio.core.text import cells
from nescio.data.loader import spans

log = logging.getLogger(__name__)

FORMAT = 1
PART_SIZE = 10_000
"""Images per part, where nobody says otherwise: minutes of work at most are done again after a kill."""
MANIFEST, ERRORS = "_manifest.json", "_errors.csv"
_LOCK, _STRAY = ".lock", ".*.partial"
_GOES_ON = "free some space there and run the same command again: it continues where it stopped"
_WHAT = {
    "format": "was started by another version of nescio",
    "detector": "has the scores of another detector",
    "stamp": "has the scores of other images, or some images have changed since",
    "part_size": "was started with another number of images per part",
}


@dataclass
class Tally:
    """What a finished job has written.

    Attributes:
        images: rows that are counted.
        accepted, rejected, unreadable: how many are which; the last have a reason instead of a verdict.
        shards: number of parquet files.
        named: how many of the unreadable ones the user named one by one.
    """

    images: int = 0
    accepted: int = 0
    rejected: int = 0
    unreadable: int = 0
    shards: int = 0
    named: int = 0

    def count(self, rows: Sequence[Mapping[str, Any]], named: Collection[str]) -> list[tuple[str, str]]:
        """Count some rows; path and reason of those without a verdict come back. ``named``: by the user, one by one."""
        failed = [(row["path"], row["error"]) for row in rows if row["error"] is not None]
        accepted = sum(row["accepted"] or False for row in rows)
        self.images += len(rows)
        self.accepted += accepted
        self.rejected += len(rows) - len(failed) - accepted
        self.unreadable += len(failed)
        self.named += sum(path in named for path, _ in failed)
        return failed


@dataclass(frozen=True)
class ScoreFolder:
    """A scoring job's folder, open to the workers of one job at a time (``opened``).

    Each part has consecutive images, ``part_size`` of them in all but the last.
    """

    path: Path
    images: int
    part_size: int

    def __len__(self) -> int:
        return math.ceil(self.images / self.part_size)

    def rows(self, shard: int) -> range:
        """Positions of a part's images."""
        return range(shard * self.part_size, min((shard + 1) * self.part_size, self.images))

    def batches(self, shard: int, size: int) -> list[range]:
        """A part cut into batches: its rows don't depend on which other parts are done in the same run."""
        return spans(self.rows(shard).start, self.rows(shard).stop, size)

    def file(self, shard: int) -> Path:
        """A part's file."""
        return self.path / f"part-{shard:05}-of-{len(self):05}.parquet"

    @classmethod
    @contextmanager
    def opened(cls, path: Path, manifest: Mapping[str, Any], part_size: int | None) -> Iterator[ScoreFolder]:
        """The folder, new or begun by the same job, closed to other processes.

        Args:
            path: the folder.
            manifest: what the scores follow from: ``detector``, ``images`` and their ``stamp``; and what else is to be
                kept.
            part_size: images per part; as begun, or 10,000, where None.

        Raises:
            InputError: it cannot be written, holds anything else, or the scores of other images or another detector.
        """
        with ExitStack() as stack:
            try:
                _refuse_others(path)
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(
                    alone(path / _LOCK, lambda: log.info("another process is writing to %s: waiting", path))
                )
                for stray in path.glob(_STRAY):
                    stray.unlink()
                begun = _read(path) if (path / MANIFEST).exists() else {}
                size = part_size or begun.get("part_size", PART_SIZE)
                wanted = {"format": FORMAT, **manifest, "part_size": size}
                if begun:
                    _check_same(path, begun, wanted)
                else:
                    write_whole(path / MANIFEST, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
            except OSError as e:
                raise InputError(f"scores cannot be written to {path}: {e}; give another folder: out= (-o)") from None
            yield cls(path, manifest["images"], size)

    def missing(self) -> list[int]:
        """The parts that are still to be written."""
        return [shard for shard in range(len(self)) if not self.has(shard)]

    def has(self, shard: int) -> bool:
        """Whether a part is there, with all of its rows."""
        path = self.file(shard)
        if not path.exists():
            return False
        try:
            if pq.read_metadata(path).num_rows == len(self.rows(shard)):
                return True
        except (pa.ArrowException, OSError):
            pass
        log.warning("%s is damaged: computing it again", path)
        return False

    def write(self, shard: int, rows: Iterable[pa.RecordBatch]) -> None:
        """Write a part.

        Raises:
            InputError: it cannot be written.
        """
        table, path = pa.Table.from_batches(list(rows)), self.file(shard)
        with whole(path, _GOES_ON) as partial:
            pq.write_table(table, partial)

    def finish(self, named: Collection[str] = ()) -> Tally:
        """List the images without a verdict and their reasons in ``_errors.csv``, and count the others.

        Args:
            named: what the user named, one by one.

        Raises:
            InputError: a part is not there: it was written on another machine.
        """
        if missing := self.missing():
            raise InputError(
                f"{len(missing)} of {len(self)} parts are not in {self.path}: give a folder that all machines share"
            )
        tally = Tally(shards=len(self))
        with whole(self.path / ERRORS, _GOES_ON) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "error"])
            for shard in range(len(self)):
                table = pq.read_table(self.file(shard), columns=["path", "accepted", "error"])
                writer.writerows(map(cells, tally.count(table.to_pylist(), named)))
        return tally


def _refuse_others(path: Path) -> None:
    ours = path / MANIFEST
    if path.exists() and not ours.exists() and any(p.name != _LOCK and not p.match(_STRAY) for p in path.iterdir()):
        raise InputError(f"{path} has other files than scores; give a new folder: out= (-o)")


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path / MANIFEST)
    except ValueError as e:
        raise InputError(f"{path / MANIFEST} is damaged ({e}); give a new folder: out= (-o)") from None
    whole = isinstance(manifest, dict) and type(size := manifest.get("part_size")) is int and size > 0
    return manifest if whole else {"format": None}


def _check_same(path: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, what in _WHAT.items():
        if begun.get(key) != wanted[key]:
            reason = f" ({', '.join(begun.get('inputs', []))})" if key == "stamp" else ""
            raise InputError(f"{path} {what}{reason}; give a new folder: out= (-o)")
