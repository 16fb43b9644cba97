"""Tables of paths and labels: CSV files and pandas DataFrames."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nescio.core.errors import InputError, some
from nescio.data.coerce import labels_of
from nescio.data.formats.files import of_paths
from nescio.data.formats.imagelist import listed
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
        raise InputError(f"{file} names files of another machine; a CSV file must lie where its images do")
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            paths, labels = _columns(rows.fieldnames or [], str(file))
            read = [(row[paths] or "", row[labels] if labels else None) for row in rows]
    except (OSError, csv.Error, UnicodeDecodeError) as e:
        raise InputError(f"{file} cannot be read as CSV: {e}") from None
    found, classes = labels_of([label for _, label in read] if labels else None, len(read))
    hint = f"; paths in {file.name} start from its folder, {file.parent}"
    return of_paths([file.parent / Path(path).expanduser() for path, _ in read], found, classes, hint)


def _is_frame(table: Any) -> bool:
    return hasattr(table, "iloc") and hasattr(table, "columns")


@register(_is_frame)
def of_frame(frame: Any) -> Source:
    """The images that a DataFrame names, or holds, in a column of one of these names; paths start from where we are."""
    images, labels = _columns([str(c) for c in frame.columns], "the DataFrame")
    return listed(frame[images].tolist(), frame[labels].tolist() if labels else None)


@register(lambda table: hasattr(table, "iloc") and not hasattr(table, "columns"))
def of_series(series: Any) -> Source:
    """The images that a Series names, or holds."""
    return as_source(series.tolist())


def _columns(names: Sequence[str], where: str) -> tuple[str, str | None]:
    """The columns with images and with labels, where there are any."""
    plain = {name.strip().lower(): name for name in reversed(names)}
    images = next((plain[name] for name in PATHS if name in plain), None)
    if images is None:
        raise InputError(f"{where} has no column {', '.join(PATHS[:3])}; its columns: {some(names) or 'none'}")
    return images, next((plain[name] for name in LABELS if name in plain), None)
