"""Parquet files in the Hugging Face image schema: ``image`` = {bytes, path}, ``label``, class names in the metadata."""

from __future__ import annotations

import io
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nescio.core.errors import BadImage, InputError, TooLarge, some
from nescio.core.reading import parse_json
from nescio.data.decode import RATIO, check_bytes
from nescio.data.formats.files import Stored
from nescio.data.registry import register
from nescio.data.source import unlabelled
from nescio.data.storage import AnyFile, unreachable

log = logging.getLogger(__name__)

_LABEL_NAMES = ("label", "labels", "fine_label", "cls")
_KEPT = 2
_GROUP = 1000
_AT_ONCE = 1 << 28
"""Bytes of images that are read at one time, as the file declares them: a row group, or a part of a larger one."""
_BUFFER = 1 << 20
_AS_LONG_AS_STORED = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY"}
_DICTIONARY = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}
_MOST_CLASSES = 1 << 24


@dataclass(frozen=True)
class _Window:
    """Rows that were read at once: ``images`` are those of a row group from its row ``start`` on."""

    group: int
    start: int
    images: Any

    def holds(self, group: int, row: int) -> bool:
        return group == self.group and self.start <= row < self.start + len(self.images)


@register(".parquet")
class ParquetSource(Stored):
    """Rows of one parquet file. Each process keeps one or two windows of rows that it reads from, never the whole file.

    A window is a row group, or a part of a large one.
    """

    def __init__(self, path: AnyFile) -> None:
        self.path, self.files, self._as_dictionary = path, [path], False
        try:
            with self._opened() as file:
                self._look_into(file)
        except (pa.ArrowException, OSError) as e:
            raise InputError(f"{path} cannot be read as parquet: {e}") from None
        self._reset()

    def _look_into(self, file: pq.ParquetFile) -> None:
        """Note the columns and row groups, and read the labels."""
        path, schema, metadata = self.path, file.schema_arrow, file.metadata
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        self._ends = np.cumsum([g.num_rows for g in groups])
        size = path.stat().st_size if isinstance(path, Path) else path.size
        if size is not None and len(self) > size:
            raise InputError(f"{path} declares {len(self):,} images in {size:,} bytes: it is damaged or malicious")
        features = declared_features(schema)
        self._image, leaf = _image_leaf(file, _image_column(schema, features, path), path)
        chunks = [g.column(leaf) for g in groups]
        self._as_dictionary = any(_DICTIONARY & set(c.encodings) for c in chunks)
        self._at_once = [_rows_at_once(c) for c in chunks]
        label = _label_column(schema, features)
        names = features.get(label, {}).get("names") if label else None
        self.classes: list[str] | None = names if isinstance(names, list) else None
        if label:
            self.labels = _labels(file.read(columns=[label]).column(label), self.classes, f"{path}: '{label}'")
        else:
            self.labels = unlabelled(len(self))
            _warn_of_other_labels(schema, path)

    def _opened(self) -> pq.ParquetFile:
        place = self.path if isinstance(self.path, Path) else self.path.open()
        # a value that a file holds once and names in every row stays one
        return pq.ParquetFile(
            place, read_dictionary=[self._image] if self._as_dictionary else None, buffer_size=_BUFFER
        )

    def _reset(self) -> None:
        self._file: pq.ParquetFile | None = None
        self._windows: list[_Window] = []
        self._stream: Iterator[_Window] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, so that a worker process opens its own."""
        return {**self.__dict__, "_file": None, "_windows": [], "_stream": None}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, i: int) -> str:
        """File and row."""
        return f"{self.path}[{i}]"

    def read(self, i: int) -> bytes:
        """The encoded bytes of row ``i``."""
        group = int(np.searchsorted(self._ends, i, "right"))
        row = i - (int(self._ends[group - 1]) if group else 0)
        window = self._window(group, row)
        value = window.images[row - window.start]
        if isinstance(value, pa.StructScalar):
            value = value["bytes"] if value.is_valid else value
        if isinstance(value, pa.DictionaryScalar):
            value = value.value
        if not value.is_valid:
            raise BadImage("the row has no image bytes")
        data = value.as_buffer()
        check_bytes(data.size)
        return bytes(data.to_pybytes())

    def _window(self, group: int, row: int) -> _Window:
        found = next((w for w in self._windows if w.holds(group, row)), None)
        if found is None:
            try:
                found = self._read(group, row)
            except Exception as e:
                self._stream = None
                if isinstance(self.path, Path) or isinstance(e, pa.ArrowInvalid | MemoryError | TooLarge):
                    raise  # damaged: the fault of these rows
                raise unreachable(str(self.path), e) from None
        else:
            self._windows.remove(found)
        self._windows = [*self._windows, found][-_KEPT:]
        return found

    def _read(self, group: int, row: int) -> _Window:
        if self._file is None:
            self._file = self._opened()
        self._windows = self._windows[1 - _KEPT :]  # what will go anyway goes before there is more
        for _ in range(2):  # from where we are in a large row group, else from its start
            for window in self._stream or ():
                if window.group != group or window.start > row:
                    break
                if window.holds(group, row):
                    return window
            self._stream = self._windows_of(self._file, group)
        raise IndexError(row)

    def _windows_of(self, file: pq.ParquetFile, group: int) -> Iterator[_Window]:
        rows, start = self._at_once[group], 0
        if rows == 0:
            raise TooLarge(f"its row group unpacks to more than {RATIO} times its size, which images do not")
        if rows is None:
            yield _Window(group, 0, file.read_row_group(group, columns=[self._image]).column(0))
            return
        for batch in file.iter_batches(rows, row_groups=[group], columns=[self._image]):
            yield _Window(group, start, batch.column(0))
            start += batch.num_rows


def write_parquet(
    path: Path,
    images: Iterable[Image.Image],
    labels: npt.NDArray[np.int64] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write images as PNG, a row group at a time, in the form that ``ParquetSource`` reads."""
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    if labels is not None:
        fields.append(("label", pa.int64()))
    schema = pa.schema(fields)
    if classes:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(classes)}}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    encoded, start = ({"bytes": _png(image), "path": None} for image in images), 0
    with pq.ParquetWriter(path, schema) as writer:
        while rows := list(itertools.islice(encoded, _GROUP)):
            columns = [rows] if labels is None else [rows, labels[start : start + len(rows)]]
            arrays = [pa.array(c, schema.field(i).type) for i, c in enumerate(columns)]
            writer.write_table(pa.table(arrays, schema=schema))
            start += len(rows)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _warn_of_other_labels(schema: pa.Schema, path: AnyFile) -> None:
    for name in _LABEL_NAMES:
        if name in schema.names:
            kind = schema.field(name).type
            log.warning("%s: column '%s' has type %s, not integers: its images count as unlabelled", path, name, kind)


def declared_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata says of the columns; nothing where it is absent or not of the expected form."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f for name, f in features.items() if isinstance(f, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _image_column(schema: pa.Schema, features: dict[str, Any], path: AnyFile) -> str:
    """The column that Hugging Face's metadata calls an image, else the first that looks like one."""
    declared = [name for name, f in features.items() if f.get("_type") == "Image"]
    looks = [
        f.name
        for f in schema
        if pa.types.is_binary(f.type)
        or pa.types.is_large_binary(f.type)
        or (pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0)
    ]
    for name in declared + looks:
        if name in schema.names:
            return str(name)
    raise InputError(f"{path} has no image column (bytes, or a struct with bytes); its columns: {some(schema.names)}")


def _image_leaf(file: pq.ParquetFile, column: str, path: AnyFile) -> tuple[str, int]:
    """Name and number of the stored column with the bytes: an image's path, beside them, is not read."""
    stored = [file.metadata.schema.column(j).path for j in range(file.metadata.num_columns)]
    for name in (column, f"{column}.bytes"):
        if name in stored:
            return name, stored.index(name)
    raise InputError(f"{path}: the image column '{column}' has neither bytes nor a struct with bytes")


def _rows_at_once(chunk: Any) -> int | None:
    """How many rows of a row group may be read together; None: all. 0: none, as it unpacks to what no images do.

    What a file declares bounds what is read where its values are stored as long as they are, or once, in a dictionary.
    """
    if set(chunk.encodings) - _AS_LONG_AS_STORED - _DICTIONARY:
        return 1
    if chunk.total_uncompressed_size > max(_AT_ONCE, RATIO * chunk.total_compressed_size):
        return 0
    windows = -(-chunk.total_uncompressed_size // _AT_ONCE)
    return None if windows <= 1 else max(1, chunk.num_values // windows)


def _labels(column: Any, classes: Sequence[str] | None, where: str) -> npt.NDArray[np.int64]:
    """Integers of any width as labels; null and -1 are unknown."""
    most = len(classes) if classes else _MOST_CLASSES
    try:
        column = column.cast(pa.int64())
        if column.null_count:
            column = column.fill_null(-1)
        # not to_numpy: it imports pandas, a tenth of a second
        chunks = [np.from_dlpack(chunk) for chunk in column.chunks if len(chunk)]
        labels: npt.NDArray[np.int64] = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
        wrong = labels[(labels < -1) | (labels >= most)]
        first = str(wrong[0]) if len(wrong) else ""
    except pa.ArrowInvalid as e:  # above 2^63
        first = str(e)
    if first:
        raise InputError(
            f"{where} has an entry that is not a class: {first}; expected 0 to {most - 1:,}, or -1 or null "
            "where unknown"
        )
    return labels


def _label_column(schema: pa.Schema, features: dict[str, Any]) -> str | None:
    declared = [name for name, f in features.items() if f.get("_type") == "ClassLabel"]
    for name in (*declared, *_LABEL_NAMES):
        if name in schema.names and pa.types.is_integer(schema.field(name).type):
            return name
    return None
