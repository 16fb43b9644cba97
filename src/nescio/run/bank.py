"""Features of a data set on disk: memory-mapped, keyed by content, checked when opened, read by every detector."""

from __future__ import annotations

import copy
import csv
import io
import json
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load
from torch import Tensor

from nescio.core.feature_set import FeatureSet
from nescio.core.features import NO_HEAD, Columns, Features, Head
from nescio.core.reading import read_json
from nescio.core.text import as_written
from nescio.data.hashing import combine

FORMAT = 5
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16}
DONE, BAD = 1, 2
_CHUNK = 1 << 25
COLUMNS = ("h", "pred", "label", "status")
MANIFEST, SKIPPED, HEAD, CHECKS = "manifest.json", "skipped.csv", "head.safetensors", "checks.npy"
"""The last has a row for each batch: the checksums of its rows in each column, then that of the list of its skipped
images, and the list's size."""


@dataclass(frozen=True)
class BankKey:
    """Everything that a bank's contents follow from. Equal keys mean equal features, wherever the data lie.

    ``engine`` and ``precision`` are how the network was run; ``probes`` are the names of the probes whose columns it
    holds.
    """

    weights: str
    transform: str
    data: str
    network_pass: str
    dtype: str
    engine: str = "torch"
    precision: str = "float32"
    probes: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def family(self) -> str:
        """What the folders' names begin with of all banks that differ in their probes alone."""
        return combine(json.dumps(asdict(self) | {"probes": ()}, sort_keys=True))

    @property
    def digest(self) -> str:
        """The folder's name."""
        return f"{self.family}-{combine(*self.probes)[:8]}" if self.probes else self.family


class Bank(FeatureSet):
    """A finished bank, opened for reading. Rows whose image was bad are left out everywhere but in ``skipped``.

    Attributes:
        path: the folder.
        head: the network's head.
    """

    def __init__(self, path: Path, probes: Collection[str] | None = None, *, check: bool = True) -> None:
        """Open a bank, and read it once to check it.

        Args:
            path: the folder.
            probes: whose columns are read; all by default.
            check: whether it may have changed since it was written.

        Raises:
            DamagedBank: a file is missing, or is not what was written.
        """
        super().__init__()
        self.path = path
        self.manifest = read_manifest(path)
        try:
            self._open(probes, check=check)
        except Exception as e:  # noqa: BLE001 - what a damaged file raises no library says
            raise e if isinstance(e, DamagedBank) else DamagedBank(f"{type(e).__name__}: {e}") from None

    def _open(self, probes: Collection[str] | None, *, check: bool) -> None:
        small = {name: (self.path / name).read_bytes() for name in (HEAD, SKIPPED, CHECKS)}
        for name, data in small.items():
            if zlib.crc32(data) != self.manifest["files"][name]:
                raise DamagedBank(f"{name} has changed")
        tensors = load(small[HEAD])
        self.head, self.reaction = NO_HEAD, tensors["reaction"]
        if "weight" in tensors:
            self.head = Head(tensors["weight"], tensors["bias"])
        self._knows_pred = "weight" in tensors
        unread = set(self.manifest["key"]["probes"]) - set(self.manifest["key"]["probes"] if probes is None else probes)
        self._aux = [name for name in self.manifest["aux"] if name.rpartition(".")[0] not in unread]
        self._arrays = {}
        checks = np.load(io.BytesIO(small[CHECKS]))
        for i, name in enumerate((*COLUMNS, *self.manifest["aux"])):
            if name in COLUMNS or name in self._aux:
                path = self.path / f"{name}.npy"
                array = np.load(path, mmap_mode="r")
                if check and not sound(path, array, self.manifest["batch_size"], checks[:, i]).all():
                    raise DamagedBank(f"{path.name} has changed")
                self._arrays[name] = array
        lines = map(as_written, list(csv.reader(io.StringIO(small[SKIPPED].decode(), newline="")))[1:])
        self._skipped = [(int(row), image, reason) for row, image, reason in lines]

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """Positions in the data set of the images that the bank holds ``(N,)``."""
        return np.flatnonzero(self._arrays["status"] == DONE)

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """True classes ``(N,)``, -1 where unknown."""
        return np.asarray(self._arrays["label"][self.positions])

    @cached_property
    def pred(self) -> npt.NDArray[np.int64]:
        """Raw predictions ``(N,)``, -1 where there is no head."""
        if not self._knows_pred:
            return self._numbers(lambda f: f.pred if f.has_logits else None)
        return np.asarray(self._arrays["pred"][self.positions])

    def with_head(self, head: Head) -> Bank:
        """The features of an encoder, read by a head ``(C, L)`` that was fitted since. The original is unchanged."""
        twin = copy.copy(self)
        for cached in ("pred", "n_classes", "device", "dtype"):
            twin.__dict__.pop(cached, None)
        twin.head = head.to("cpu")
        return twin

    @property
    def skipped(self) -> list[tuple[int, str, str]]:
        """``(position, image, reason)`` of each image that could not be used."""
        return self._skipped

    @property
    def network_pass(self) -> str:
        """Key of the pass that made the rows."""
        return str(self.manifest["key"]["network_pass"])

    @property
    def has_rows(self) -> bool:
        """It is there."""
        return True

    def chunks(self, size: int | None = None) -> Iterator[Features]:
        """The bank in order, ``size`` rows of the data set at a time, as float32; by default about 128 MB of them."""
        widest = max(a.shape[1] for a in self._arrays.values() if a.ndim == 2)
        size = size or max(256, _CHUNK // widest)
        status = self._arrays["status"]
        for start in range(0, len(status), size):
            at = slice(start, start + size)
            keep = np.asarray(status[at]) == DONE
            if keep.any():
                yield self._record(at, keep)

    def take(self, pick: Any) -> Features:
        """Some of the images, by position among those that the bank holds, in that order; as float32."""
        at = self.positions[pick]
        return self._record(at, np.ones(len(at), dtype=bool))

    def _record(self, at: slice | npt.NDArray[np.int64], keep: npt.NDArray[np.bool_]) -> Features:
        pred = torch.from_numpy(self._arrays["pred"][at][keep])
        return Features(
            _floats(self._arrays["h"][at], keep),
            self.head,
            pred if self._knows_pred else None,  # type: ignore[arg-type]
            torch.from_numpy(self._arrays["label"][at][keep]),
            Columns({name: self._reader(name, at, keep) for name in self._aux}),
            self.network_pass,
        )

    def _reader(
        self, name: str, at: slice | npt.NDArray[np.int64], keep: npt.NDArray[np.bool_]
    ) -> Callable[[], Tensor]:
        return lambda: _floats(self._arrays[name][at], keep)


def _floats(rows: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> Tensor:
    """The kept rows as float32, copied once. NumPy takes many times as long to widen float16."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")  # nothing here writes to it
        kept = torch.from_numpy(np.asarray(rows if keep.all() else rows[keep]))
    return kept.to(torch.float32, copy=True)


class DamagedBank(Exception):
    """A bank's files are not what was written."""


def head_checksum(path: Path, column: np.memmap[Any, Any]) -> int:
    """CRC-32 of what stands before a column's rows and says how they are to be read, and of its name."""
    with path.open("rb") as file:
        return zlib.crc32(path.name.encode() + file.read(column.offset))


def checksum(column: np.memmap[Any, Any], rows: slice, head: int) -> int:
    """CRC-32 of some rows of a column, continued from that of its head."""
    return zlib.crc32(np.ascontiguousarray(column[rows]).data, head)


def sound(
    path: Path, column: np.memmap[Any, Any], batch_size: int, checks: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Whether each batch of a column is what was written."""
    starts, head = range(0, len(column), batch_size), head_checksum(path, column)
    found = [checksum(column, slice(i, i + batch_size), head) for i in starts]
    return np.equal(np.array(found, dtype=np.uint64), checks, dtype=bool)


def same_reaction(stored: Tensor, reaction: Tensor) -> bool:
    """Up to rounding, which differs between machines and thread counts."""
    here = reaction.cpu()
    return stored.shape == here.shape and bool((stored - here).abs().max() <= 1e-3 * here.abs().max().clamp(min=1e-6))


def read_manifest(path: Path) -> dict[str, Any]:
    """What a bank's folder says that it holds. Raises ``DamagedBank`` where it does not."""
    try:
        manifest: dict[str, Any] = read_json(path / MANIFEST)
        key = BankKey(**manifest["key"] | {"probes": tuple(manifest["key"]["probes"])})
        whole = isinstance(manifest["files"], dict) and isinstance(manifest["aux"], list) and manifest["batch_size"] > 0
    except Exception as e:  # noqa: BLE001 - as above
        raise DamagedBank(f"its manifest cannot be read: {type(e).__name__}: {e}") from None
    if key.format != FORMAT:
        raise DamagedBank("another version of nescio wrote it")
    if not whole:
        raise DamagedBank("its manifest is not valid")
    return manifest
