"""Verdicts on any number of images, in parts that are written whole: a killed job goes on where it stopped."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nescio
from nescio.data.sources import AnySource, Source, open_sources
from nescio.deploy.deployed import Deployed
from nescio.deploy.file import fingerprint
from nescio.deploy.parts import ScoreFolder, Tally
from nescio.deploy.rows import verdict_rows
from nescio.errors import InputError, check_at_least, check_choice
from nescio.progress import progress_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringDone:
    """A finished job.

    Attributes:
        tally: what the folder holds.
        images: those that this run scored; fewer than the folder holds where an earlier one began.
        seconds: that it took.
    """

    tally: Tally
    images: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """All that a worker needs to make a part.

    Attributes:
        deployed: judges the images.
        source: the images.
        folder: where the parts go.
        batch_size: images per step.
        workers: decoding processes, as for ``read_spans``.
    """

    deployed: Deployed
    source: Source
    folder: ScoreFolder
    batch_size: int
    workers: int | None

    def make(self, parts: Sequence[int], seen: Callable[[int], object] = lambda _: None) -> None:
        """Score parts and write them, one after the other.

        Args:
            parts: their numbers.
            seen: told the number of images after each batch.
        """
        batches = {part: self.folder.plan.batches(part, self.batch_size) for part in parts}
        # one stream through all parts: the decoders don't wait for a part to be written
        flat = list(itertools.chain.from_iterable(batches.values()))
        stream = verdict_rows(self.deployed, self.source, flat, self.workers, seen)
        for part in parts:
            self.folder.write(part, itertools.islice(stream, len(batches[part])))


def score_images(
    deployed: Deployed,
    images: AnySource | list[AnySource] | tuple[AnySource, ...],
    out: str | Path,
    *,
    part_size: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    engine: str = "local",
    progress: bool = True,
) -> ScoringDone:
    """A row for each image, in parquet files below ``out``, with the columns of ``nescio.deploy.rows.schema``.

    Memory holds the rows of one part and a few batches of images. A job that was killed, at whatever moment, goes on
    when it is called again: parts that are there stay, none is lost or made twice, and the rows are those of a job that
    ran through. An image that cannot be read, or whose features are not finite, has its reason in the column ``error``
    and in ``_errors.csv``, and null for a verdict.

    Args:
        deployed: judges the images.
        images: as ``open_source`` takes them, or several of these.
        out: a new folder, or the one that the same job began. With ``ray``, all machines must share it.
        part_size: images per file; 10,000 by default.
        batch_size: images per step; 32 on a CPU, 256 on a GPU by default.
        workers: decoding processes; one per core, at most 8, by default; with ``ray``, of each worker, none by default.
        engine: ``local``, or ``ray``: the parts are shared out to a Ray cluster.
        progress: show a bar on a terminal.

    Raises:
        InputError: there are no images; ``out`` cannot be written, or holds something else, or the scores of other
            images or another detector; a store of remote images does not answer.
    """
    check_choice("engine", engine, list(_ENGINES))
    for name, value in (("part_size", part_size), ("batch_size", batch_size)):
        if value is not None:
            check_at_least(name, value, 1)
    if "://" in str(out):
        raise InputError(f"scores cannot be written to {out}: name a folder of this machine (-o)")
    given = list(images) if isinstance(images, list | tuple) else [images]
    source, begin = open_sources(given), time.perf_counter()
    manifest = {
        "detector": fingerprint(deployed),
        "spec": repr(deployed.detector),
        "inputs": [str(g) if isinstance(g, str | Path) else type(g).__name__ for g in given],
        "images": len(source),
        "stamp": source.stamp,
        "version": nescio.__version__,
    }
    with ScoreFolder.opened(Path(out), manifest, part_size) as folder:
        missing = folder.missing()
        todo = sum(len(folder.plan.rows(part)) for part in missing)
        if todo < len(source):
            log.info("%s of %s images are scored already", f"{len(source) - todo:,}", f"{len(source):,}")
        job = Job(deployed, source, folder, batch_size or deployed.batch_size, workers)
        with progress_bar(show=progress) as bar:
            task = bar.add_task("scoring", total=todo)
            if missing:
                _ENGINES[engine](job, missing, lambda n: bar.advance(task, n))
        return ScoringDone(folder.finish(), todo, time.perf_counter() - begin)


def _on_ray(job: Job, parts: Sequence[int], seen: Callable[[int], object]) -> None:
    from nescio.deploy.on_ray import make_on_ray

    make_on_ray(dataclasses.replace(job, workers=job.workers or 0), parts, seen)


_ENGINES: dict[str, Callable[[Job, Sequence[int], Callable[[int], object]], None]] = {"local": Job.make, "ray": _on_ray}
