"""Tables of paths or images, and labels: CSV files, pandas and Polars frames, Arrow tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from nescio.core.errors import InputError, some
from nescio.data.coerce import Items, checked, labels_of
from nescio.data.formats.files import of_paths
from nescio.data.formats.imagelist import listed
from nescio.data.formats.parquet import declared_features
from nescio.data.registry import register
from nescio.data.source import Source, as_source
from nescio.data.storage import AnyFile

PATHS = ("path", "file", "image", "filename", "filepath", "file_name", "image_path", "img_path")
LABELS = ("label", "class", "labels", "target")


@register(".csv")
def of_csv(file: AnyFile) -> Source:
    """The images that a CSV file names in its column ``path``, ``file`` or ``image``, relative to its folder.

    A column ``label`` or ``class`` holds class numbers or names.

    Raises:
        InputError: it cannot be read, has no such column, or names files that are not there.
    """
    if not isinstance(file, Path):
        raise InputError(
            f"{file} is an address, and its paths are files of another machine; copy the CSV file and its images to "
            "this one"
        )
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            paths, labels = _columns(rows.fieldnames or [], str(file))
            read = [(row[paths] or "", row[labels] if labels else None) for row in rows]
    except (OSError, csv.Error, UnicodeDecodeError) as e:
        raise InputError(f"{file} cannot be read as CSV: {e}") from None
    found, classes = labels_of([label for _, label in read] if labels else None, len(read))
    hint = f"; paths in {file.name} are relative to its folder, {file.parent}"
    return of_paths([file.parent / Path(path).expanduser() for path, _ in read], found, classes, hint)


def _is_frame(table: Any) -> bool:
    return _has(table, "columns", "iloc") or _has(table, "columns", "get_column")


def _has(table: Any, *names: str) -> bool:
    """Whether its class has these: a query of Polars would compute its own."""
    return all(hasattr(type(table), name) for name in names)


@register(_is_frame)
def of_frame(frame: Any) -> Source:
    """The images that a frame of pandas or Polars names, or holds, in a column of one of these names.

    Paths start from where we are.
    """
    images, labels = _columns([str(c) for c in frame.columns], "the DataFrame")
    return listed(_values(frame[images]), _values(frame[labels]) if labels else None)


@register(lambda table: _has(table, "collect", "collect_schema") and not _is_frame(table))
def of_query(query: Any) -> Source:
    """What a LazyFrame of Polars gives when it is run."""
    return of_frame(query.collect())


@register(lambda table: not _has(table, "columns") and (_has(table, "iloc") or _has(table, "arg_unique")))
def of_series(series: Any) -> Source:
    """The images that a Series names, or holds."""
    return as_source(_values(series))


def _values(column: Any) -> list[Any]:
    values: list[Any] = column.tolist() if hasattr(column, "iloc") else column.to_list()
    return values


@register(pa.Table)
def of_arrow(table: pa.Table) -> Source:
    """The images that an Arrow table names (text), or holds (bytes, or Hugging Face's struct), in such a column.

    What Hugging Face's metadata say of the columns goes first: which are images, and what class numbers mean.
    """
    features = declared_features(table.schema)
    kinds = {str(f.get("_type")): name for name, f in reversed(features.items()) if name in table.column_names}
    if "Image" in kinds:
        images, labels = kinds["Image"], kinds.get("ClassLabel")
    else:
        images, labels = _columns(table.column_names, "the Arrow table")
    column, values = table[images], table[labels].to_pylist() if labels else None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return listed(column.to_pylist(), values)
    numbers, names = labels_of(values, len(table))
    classes = names or (features.get(labels, {}).get("names") if labels else None)
    return checked(Items(_Cells(column), labels=numbers, classes=classes, called="row {}".format))


class _Cells:
    """A column of an Arrow table, each value made when it is read."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, i: int) -> Any:
        return self.column[i].as_py()


def _columns(names: Sequence[str], where: str) -> tuple[str, str | None]:
    """The columns with images and with labels, where there are any."""
    plain = {name.strip().lower(): name for name in reversed(names)}
    images = next((plain[name] for name in PATHS if name in plain), None)
    if images is None:
        raise InputError(f"{where} has no column {', '.join(PATHS[:3])}; its columns: {some(names) or 'none'}")
    return images, next((plain[name] for name in LABELS if name in plain), None)
