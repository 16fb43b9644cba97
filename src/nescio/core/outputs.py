"""Where results go: what cannot be written is refused before the work; and tables that are one file."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nescio.core.errors import InputError
from nescio.core.files import make_folder, whole
from nescio.core.reading import plain
from nescio.core.text import cells

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".csv", ".json", ".parquet")
"""How the name of a table in one file ends."""


def is_table(out: str | Path | None) -> bool:
    """Whether a name is that of a table in one file, and not of a folder."""
    return out is not None and Path(out).suffix.lower() in TABLES and not Path(out).is_dir()


def check_folder(out: str | Path, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Refuse a folder that results could not be written to, before the work is done.

    Args:
        out: the folder; it need not be there yet.
        files: names of the files that will be written to it.
        folders: names of the folders.

    Raises:
        InputError: it is a file, an address, or not writable; or something else has the name of what will be written.
    """
    out = _local(out)
    if _exists(out) and not out.is_dir():
        raise InputError(f"results cannot be written to {out}: it is a file; give a folder")
    taken = [name for name in files if (out / name).is_dir()] + [name for name in folders if (out / name).is_file()]
    if taken:
        raise InputError(f"results cannot be written to {out}: {taken[0]} in it is in the way; move it")
    _check_writable(out, out)


def check_file(out: str | Path, endings: Sequence[str] = ()) -> None:
    """Refuse a file that could not be written, before the work is done.

    Args:
        out: the file. One that is there will be replaced.
        endings: how its name may end; in any way if none are given.

    Raises:
        InputError: it is a folder, a device, an address, or not writable, or its name ends in another way.
    """
    out = _local(out)
    if endings and out.suffix.lower() not in endings:
        raise InputError(f"{out} must end in {', '.join(endings[:-1])} or {endings[-1]}")
    if out.is_dir():
        raise InputError(f"{out} cannot be written: it is a folder; give a file")
    if _exists(out) and not out.is_file():
        raise InputError(f"{out} cannot be written: it is not a regular file; give another")
    _check_writable(out, out.parent)


def check_out(out: str | Path, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """As ``check_file`` for a table in one file, else as ``check_folder``."""
    if is_table(out):
        check_file(out, TABLES)
    else:
        check_folder(out, files, folders)


def _local(out: str | Path) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(out)):
        raise InputError(f"results cannot be written to the address {out}; give a path on this machine")
    return Path(out).expanduser()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as e:
        raise InputError(f"{path} cannot be written: {e.strerror}; give another path") from None


def _check_writable(out: Path, folder: Path) -> None:
    """Try it, in the last of the folders above that is there: what a permission is worth, no flag says."""
    folder = folder.absolute()
    there = next(p for p in (folder, *folder.parents) if _exists(p))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as e:
        raise InputError(f"{out} cannot be written: {there}: {e.strerror}; give another path") from None


def write_table(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same names to one file, whole, in the form that its name ends in."""
    import pyarrow as pa

    with table_writer(out, pa.Table.from_pylist([dict(row) for row in rows]).schema) as write:
        write(rows)


@contextmanager
def table_writer(out: Path, schema: pa.Schema) -> Iterator[Any]:
    """A function that writes some rows, as mappings, to one file, which is there at the end, whole, or not at all.

    Numbers that are not finite are null in JSON and empty in CSV, as what is missing is.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    make_folder(out.parent)
    kind = out.suffix.lower()
    with whole(out) as partial:
        if kind == ".parquet":
            with pq.ParquetWriter(partial, schema) as parquet:
                yield lambda rows: parquet.write_table(pa.Table.from_pylist([dict(r) for r in rows], schema))
            return
        with partial.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            write = _csv(file, schema.names) if kind == ".csv" else _json(file)
            yield write
            if kind == ".json":
                file.write("\n]\n" if file.tell() else "[]\n")


def _csv(file: Any, names: list[str]) -> Any:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)

    def write(rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            values = [plain(row.get(name)) for name in names]
            writer.writerow(cells(str(v).lower() if isinstance(v, bool) else v for v in values))

    return write


def _json(file: Any) -> Any:
    def write(rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            file.write(",\n " if file.tell() else "[\n ")
            file.write(json.dumps(plain(row), ensure_ascii=False))

    return write
