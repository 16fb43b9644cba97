"""Verdicts on any number of images, in parts that are written whole: a killed job goes on where it stopped."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import nescio
from nescio.core.errors import InputError, check_at_least, check_choice
from nescio.core.outputs import check_out, is_table, table_writer
from nescio.core.progress import progress_bar
from nescio.data.formats.remote import local_path
from nescio.data.loader import Batch, read_spans, spans
from nescio.data.source import AnySource, Source, open_sources
from nescio.deploy.deployed import Deployed
from nescio.deploy.file import fingerprint
from nescio.deploy.shards import ScoreFolder, Tally
from nescio.run.heap import kept_heap

log = logging.getLogger(__name__)

NOT_FINITE = "the network's features of it are not finite"
MOST_IN_ONE_FILE = 100_000
"""Images: minutes of work, which a kill would lose."""


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

    def make(self, shards: Sequence[int], seen: Callable[[int], object] = lambda _: None) -> None:
        """Score parts and write them, one after the other.

        Args:
            shards: their numbers.
            seen: told the number of images after each batch.
        """
        batches = {shard: self.folder.batches(shard, self.batch_size) for shard in shards}
        # one stream through all parts: the decoders don't wait for a part to be written
        flat = list(itertools.chain.from_iterable(batches.values()))
        stream = verdict_rows(self.deployed, self.source, flat, self.workers, seen)
        with kept_heap():
            for shard in shards:
                self.folder.write(shard, itertools.islice(stream, len(batches[shard])))


def score_images(
    deployed: Deployed,
    images: AnySource | list[AnySource] | tuple[AnySource, ...],
    out: str | Path,
    *,
    part_size: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    on: str = "local",
    progress: bool = True,
) -> ScoringDone:
    """A row for each image, in parquet files below ``out``, with the columns of ``schema``.

    Where ``out`` ends in ``.csv``, ``.json`` or ``.parquet`` it is one file of up to 100,000 rows. It is there at the
    end, whole; a job that was killed leaves nothing and begins anew.

    Memory holds the rows of one part and a few batches of images. A job that was killed, at whatever moment, goes on
    when it is called again: parts that are there stay, none is lost or made twice, and the rows are those of a job that
    ran through. An image that cannot be read, or whose features are not finite, has its reason in the column ``error``
    and in ``_errors.csv``, and null for a verdict.

    Args:
        deployed: judges the images.
        images: as ``open_source`` takes them, or several of these.
        out: a new folder, or the one that the same job began, which with ``ray`` all machines must share; or one file.
        part_size: images per file; 10,000 by default.
        batch_size: images per step; 32 on a CPU, 256 on a GPU by default.
        workers: decoding processes; one per core, at most 8, by default; with ``ray``, of each worker, none by default.
        on: ``local``, or ``ray``: the parts are shared out to a Ray cluster.
        progress: show a bar on a terminal.

    Raises:
        InputError: there are no images, or too many for one file; ``out`` cannot be written, or holds something else,
            or the scores of other images or another detector; a store of remote images does not answer.
    """
    check_choice("on", on, list(_PLACES))
    for name, value in (("part_size", part_size), ("batch_size", batch_size)):
        if value is not None:
            check_at_least(name, value, 1)
    check_out(out)
    sources = list(images) if isinstance(images, list | tuple) else [images]
    if is_table(out):
        if on != "local" or part_size is not None:
            raise InputError(
                f"{out} is one file, without parts: give a folder, out= (-o), or drop on= (--on) and "
                "part_size= (--part-size)"
            )
        return _to_one_file(deployed, sources, Path(out), batch_size, workers, progress=progress)
    source, begin = open_sources(sources), time.perf_counter()
    manifest = {
        "detector": fingerprint(deployed),
        "spec": repr(deployed.detector),
        "inputs": [str(g) if isinstance(g, str | Path) else type(g).__name__ for g in sources],
        "images": len(source),
        "stamp": source.stamp,
        "version": nescio.__version__,
    }
    with ScoreFolder.opened(Path(out), manifest, part_size) as folder:
        missing = folder.missing()
        todo = sum(len(folder.rows(shard)) for shard in missing)
        if todo < len(source):
            log.info("%s of %s images have scores already", f"{len(source) - todo:,}", f"{len(source):,}")
        job = Job(deployed, source, folder, batch_size or deployed.session.batch, workers)
        with progress_bar(show=progress) as bar:
            task = bar.add_task("scoring", total=todo)
            if missing:
                _PLACES[on](job, missing, lambda n: bar.advance(task, n))
        return ScoringDone(folder.finish(named_files(sources)), todo, time.perf_counter() - begin)


def named_files(sources: Sequence[AnySource]) -> set[str]:
    """What was given by name, as rows have it: that of an image says which file was meant, others match none."""
    names = [str(g) for g in sources if isinstance(g, str | Path)]
    here = [(local_path(name) or name) if "://" in name else Path(name).expanduser() for name in names]
    return {text(str(name)) for name in here}


def _to_one_file(
    deployed: Deployed,
    sources: Sequence[AnySource],
    out: Path,
    batch_size: int | None,
    workers: int | None,
    *,
    progress: bool,
) -> ScoringDone:
    source, named, begin = open_sources(sources), named_files(sources), time.perf_counter()
    if len(source) > MOST_IN_ONE_FILE:
        raise InputError(
            f"{len(source):,} images are too many for one file, since an interrupted job would start over: "
            f"at most {MOST_IN_ONE_FILE:,}; give a folder, out= (-o scores/)"
        )
    batches = spans(0, len(source), batch_size or deployed.session.batch)
    tally = Tally(shards=1)
    with progress_bar(show=progress) as bar, table_writer(out, schema(deployed)) as write:
        task = bar.add_task("scoring", total=len(source))
        for batch in verdict_rows(deployed, source, batches, workers, lambda n: bar.advance(task, n)):
            rows = batch.to_pylist()
            write(rows)
            tally.count(rows, named)
    return ScoringDone(tally, len(source), time.perf_counter() - begin)


def _on_ray(job: Job, shards: Sequence[int], seen: Callable[[int], object]) -> None:
    from nescio.deploy.on_ray import make_on_ray

    make_on_ray(dataclasses.replace(job, workers=job.workers or 0), shards, seen)


_PLACES: dict[str, Callable[[Job, Sequence[int], Callable[[int], object]], None]] = {"local": Job.make, "ray": _on_ray}


def schema(deployed: Deployed) -> pa.Schema:
    """The columns, as in ``Verdict`` (``p_id`` if there is one), and ``error``, which is null where they are not."""
    columns = [
        ("path", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float64()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("accepted", pa.bool_()),
        ("error", pa.string()),
    ]
    if deployed.gives_p_id:
        columns.insert(5, ("p_id", pa.float64()))
    return pa.schema(columns)


def verdict_rows(
    deployed: Deployed,
    source: Source,
    batches: Sequence[range],
    workers: int | None,
    seen: Callable[[int], object] = lambda _: None,
) -> Iterator[pa.RecordBatch]:
    """The rows of each batch of images.

    Args:
        deployed: judges them.
        source: the images.
        batches: the positions of each.
        workers: decoding processes, as for ``read_spans``.
        seen: told the number of images after each batch.
    """
    for batch in read_spans(source, deployed.classifier.transform, batches, workers):
        yield _rows(deployed, source, batch)
        seen(batch.size)


def _rows(deployed: Deployed, source: Source, batch: Batch) -> pa.RecordBatch:
    columns: dict[str, npt.NDArray[Any]] = {}
    errors = dict(batch.bad)
    if batch.images is not None:
        judged = deployed.judge(batch.images)
        errors |= {int(i): NOT_FINITE for i in batch.good[np.isnan(judged.score)]}
        names = deployed.classifier.classes
        label = np.array([names[i] if names else str(i) for i in judged.pred.tolist()], dtype=object)
        columns = vars(judged) | {"label": label}
    failed = np.array([i in errors for i in range(batch.size)])
    known: dict[str, Any] = {
        "path": pa.array([text(source.name(batch.start + i)) for i in range(batch.size)]),
        "error": pa.array([text(errors[i]) if i in errors else None for i in range(batch.size)], pa.string()),
    }
    form = schema(deployed)
    arrays = [
        known[field.name] if field.name in known else _column(columns.get(field.name), batch, failed, field.type)
        for field in form
    ]
    return pa.record_batch(arrays, schema=form)


def _column(
    values: npt.NDArray[Any] | None, batch: Batch, failed: npt.NDArray[np.bool_], kind: pa.DataType
) -> pa.Array:
    """The values of the images that could be read, in their places."""
    if values is None:
        return pa.nulls(batch.size, kind)
    column = np.zeros(batch.size, values.dtype)
    column[batch.good] = values
    return pa.array(column, kind, mask=failed)


def text(name: str) -> str:
    """With what a file's name holds beside Unicode written out: parquet knows nothing else."""
    return name.encode("utf-8", "backslashreplace").decode()
