"""Parquet files in the Hugging Face image schema: ``image`` = {bytes, path}, ``label``, class names in the metadata."""

from __future__ import annotations

import io
import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nescio.data.hashing import combine
from nescio.data.places import Place, hash_places, stamp, unreachable
from nescio.errors import BadImage, InputError, some

log = logging.getLogger(__name__)

_LABEL_NAMES = ("label", "labels", "fine_label", "cls")
_KEPT_GROUPS = 2
_GROUP = 1000


class ParquetSource:
    """Rows of one parquet file. Each process keeps the one or two row groups it reads from, never the whole file."""

    def __init__(self, path: Place) -> None:
        self.path = path
        try:
            file = self._opened()
        except (pa.ArrowException, OSError) as e:
            raise InputError(f"{path} cannot be read as parquet: {e}") from None
        with file:
            schema = file.schema_arrow
            self._ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)])
            features = _declared_features(schema)
            self._image = _image_column(schema, features, path)
            label = _label_column(schema, features)
            self.classes: list[str] | None = features.get(label, {}).get("names") if label else None
            if label:
                column = file.read(columns=[label]).column(label).fill_null(-1)
                self.labels = column.to_numpy().astype(np.int64)
            else:
                self.labels = np.full(len(self), -1, dtype=np.int64)
                _warn_of_other_labels(schema, path)
        self._reset()

    def _opened(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path if isinstance(self.path, Path) else self.path.open())

    def _reset(self) -> None:
        self._file: pq.ParquetFile | None = None
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, so that a worker process opens its own."""
        return {**self.__dict__, "_file": None, "_groups": OrderedDict()}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, i: int) -> str:
        """File and row."""
        return f"{self.path}[{i}]"

    def read(self, i: int) -> bytes:
        """The encoded bytes of row ``i``."""
        group = int(np.searchsorted(self._ends, i, "right"))
        start = int(self._ends[group - 1]) if group else 0
        value = self._group(group)[i - start].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise BadImage("the row holds no image bytes")
        return bytes(data)

    def _group(self, group: int) -> Any:
        if group not in self._groups:
            if self._file is None:
                self._file = self._opened()
            try:
                self._groups[group] = self._file.read_row_group(group, columns=[self._image]).column(0)
            except Exception as e:
                if isinstance(self.path, Path) or isinstance(e, pa.ArrowInvalid):
                    raise  # damaged: the fault of these rows
                raise unreachable(str(self.path), e) from None
            if len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]

    @cached_property
    def identity(self) -> str:
        """Of the file's bytes."""
        return combine(*hash_places([self.path]))

    @property
    def stamp(self) -> str:
        """Of the file."""
        return stamp([self.path])


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


def _warn_of_other_labels(schema: pa.Schema, path: Place) -> None:
    for name in _LABEL_NAMES:
        if name in schema.names:
            kind = schema.field(name).type
            log.warning("%s: column '%s' holds %s, no integers: its images count as unlabelled", path, name, kind)


def _declared_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata says of the columns; nothing where it is absent or not of the expected form."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f for name, f in features.items() if isinstance(f, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _image_column(schema: pa.Schema, features: dict[str, Any], path: Place) -> str:
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


def _label_column(schema: pa.Schema, features: dict[str, Any]) -> str | None:
    declared = [name for name, f in features.items() if f.get("_type") == "ClassLabel"]
    for name in (*declared, *_LABEL_NAMES):
        if name in schema.names and pa.types.is_integer(schema.field(name).type):
            return name
    return None
