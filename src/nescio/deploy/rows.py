"""Verdicts as rows of a table: one for each image, in order, with the reason where there is no verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nescio.data.loader import Batch, read_spans
from nescio.data.source import Source
from nescio.deploy.deployed import Deployed

NOT_FINITE = "the network's features of it are not finite"


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
