"""Features of a data set on disk: memory-mapped, keyed by content, written once, read by every detector."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nescio.data.hashing import combine, hash_files
from nescio.errors import InputError, some
from nescio.features import Columns, Features, Head
from nescio.files import alone, whole
from nescio.text import as_written, cells

log = logging.getLogger(__name__)

FORMAT = 3
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16}
PENDING, DONE, BAD = 0, 1, 2
_CHUNK = 1 << 25
COLUMNS = ("h", "pred", "label", "status")
_MANIFEST, _STATE, _SKIPPED, _HEAD = "manifest.json", "state.json", "skipped.csv", "head.safetensors"


@dataclass(frozen=True)
class BankKey:
    """Everything that a bank's contents follow from. Equal keys mean equal features, wherever the data lie.

    ``probes`` are the names of the probes whose columns it holds.
    """

    weights: str
    transform: str
    data: str
    network_pass: str
    dtype: str
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


class Bank:
    """A finished bank, opened for reading. Rows whose image was bad are left out everywhere but in ``skipped``.

    Attributes:
        path: the folder.
        head: the network's head.
        skipped: ``(row, image, reason)`` of each image that could not be used.
    """

    def __init__(self, path: Path) -> None:
        """Open a bank. Raises ``DamagedBank`` when a file is missing or has changed since it was written."""
        self.path = path
        self.manifest = _read_manifest(path)
        _verify(path, self.manifest["files"])
        tensors = load_file(path / _HEAD)
        self.head = Head(tensors["weight"], tensors["bias"])
        names = [*COLUMNS, *self.manifest["aux"]]
        self._arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in names}
        with (path / _SKIPPED).open(newline="") as file:
            lines = [as_written(line) for line in list(csv.reader(file))[1:]]
        self.skipped = [(int(row), image, reason) for row, image, reason in lines]

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Positions in the data set of the images that the bank holds ``(N,)``."""
        return np.flatnonzero(self._arrays["status"] == DONE)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """True classes ``(N,)``, -1 where unknown."""
        return np.asarray(self._arrays["label"][self.rows])

    @cached_property
    def pred(self) -> npt.NDArray[np.int64]:
        """Raw predictions ``(N,)``."""
        return np.asarray(self._arrays["pred"][self.rows])

    @property
    def accuracy(self) -> float:
        """Share of the labelled images whose raw prediction is right; NaN where none is labelled."""
        known = self.labels >= 0
        return float((self.pred == self.labels)[known].mean()) if known.any() else float("nan")

    def chunks(self, size: int | None = None) -> Iterator[Features]:
        """The bank in order, ``size`` rows of the data set at a time, as float32; by default about 128 MB of them."""
        widest = max(a.shape[1] for a in self._arrays.values() if a.ndim == 2)
        size = size or max(256, _CHUNK // widest)
        h, status = self._arrays["h"], self._arrays["status"]
        for start in range(0, len(status), size):
            at = slice(start, start + size)
            keep = np.asarray(status[at]) == DONE
            if keep.any():
                yield Features(
                    _floats(h[at], keep),
                    self.head,
                    torch.from_numpy(self._arrays["pred"][at][keep]),
                    torch.from_numpy(self._arrays["label"][at][keep]),
                    Columns({name: self._reader(name, at, keep) for name in self.manifest["aux"]}),
                    self.manifest["key"]["network_pass"],
                )

    def take(self, at: npt.NDArray[np.int64]) -> Features:
        """Some of the images, by position among those that the bank holds (as ``rows``), in that order; as float32."""
        rows, keep = self.rows[at], np.ones(len(at), dtype=bool)
        return Features(
            _floats(self._arrays["h"][rows], keep),
            self.head,
            torch.from_numpy(self.pred[at]),
            torch.from_numpy(self.labels[at]),
            Columns({name: self._reader(name, rows, keep) for name in self.manifest["aux"]}),
            self.manifest["key"]["network_pass"],
        )

    def _reader(
        self, name: str, at: slice | npt.NDArray[np.int64], keep: npt.NDArray[np.bool_]
    ) -> Callable[[], Tensor]:
        return lambda: _floats(self._arrays[name][at], keep)


def _floats(rows: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> Tensor:
    """The kept rows as float32, copied once."""
    return torch.from_numpy(np.array(rows if keep.all() else rows[keep], dtype=np.float32))


class DamagedBank(Exception):
    """A bank's files are not what was written."""


class BankWriter:
    """Writes a bank row by row into ``KEY.partial``, so that an interrupted run can go on, and renames it when done.

    Use it inside ``with writer.alone()``.
    """

    def __init__(self, root: Path, key: BankKey) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"banks cannot be kept in {root}: {e}; name another folder (--cache DIR)") from None
        self.key = key
        self.root = root
        self.final = root / key.digest
        self.partial = root / f"{key.digest}.partial"
        self._arrays: dict[str, Any] = {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from this bank; where one is at it already, say so and wait."""

        def waiting() -> None:
            log.info("another process is making bank %s: waiting for it", self.final.name)

        with ExitStack() as stack:
            try:
                stack.enter_context(alone(self.root / f"{self.key.digest}.lock", waiting))
            except OSError as e:
                raise InputError(f"banks cannot be kept in {self.root}: {e}; name another (--cache DIR)") from None
            yield

    def finished(self, reaction: Tensor) -> Bank | None:
        """The bank, or one that holds more probes, if it was written before, is whole, and by this network.

        One that is damaged, or by a network that reacts to noise in another way, is removed, with a line that says so.
        """
        for path in sorted(self.root.glob(f"{self.key.family}*"), key=lambda p: p != self.final):
            if path.suffix or not self._has_probes(path):
                continue
            try:
                bank = Bank(path)
                if not _same_reaction(path, reaction):
                    raise DamagedBank("another network with the same weights wrote it")
                return bank
            except DamagedBank as e:
                log.warning("bank %s cannot be used (%s): building it again", path.name, e)
                shutil.rmtree(path)
        return None

    def _has_probes(self, path: Path) -> bool:
        try:
            return set(self.key.probes) <= set(_read_manifest(path)["key"]["probes"])
        except DamagedBank:
            return path == self.final

    def begin(
        self, n: int, head: Head, reaction: Tensor, batch_size: int, widths: Mapping[str, int]
    ) -> tuple[int, int]:
        """Open the partial bank of ``n`` rows, an earlier one where it can be continued.

        ``widths`` are those of the probes' columns.

        Returns:
            the first row to write, and the batch size to use: that of the run which is continued, since the last bits
            of a feature can depend on it.
        """
        try:
            state = json.loads((self.partial / _STATE).read_text())
            self._arrays = {name: np.load(self.partial / f"{name}.npy", mmap_mode="r+") for name in state["arrays"]}
            if any(len(a) != n for a in self._arrays.values()):
                raise ValueError("other length")
            if not _same_reaction(self.partial, reaction):
                raise ValueError("another network with the same weights wrote it")
        except (OSError, ValueError, KeyError) as e:
            if self.partial.exists():
                log.warning("partial bank %s cannot be continued (%s): starting again", self.partial.name, e)
            self._create(n, head, reaction, batch_size, widths)
            return 0, batch_size
        batch_size = int(state["batch_size"])
        pending = np.flatnonzero(self._arrays["status"] == PENDING)
        start = (int(pending[0]) if len(pending) else n) // batch_size * batch_size
        self._keep_skipped_before(start)
        log.info("continuing an interrupted pass at image %s of %s", f"{start:,}", f"{n:,}")
        return start, batch_size

    def _create(self, n: int, head: Head, reaction: Tensor, batch_size: int, widths: Mapping[str, int]) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        columns: dict[str, tuple[Any, tuple[int, ...]]] = {
            "h": (DTYPES[self.key.dtype], (n, head.weight.shape[1])),
            "pred": (np.int64, (n,)),
            "label": (np.int64, (n,)),
            "status": (np.uint8, (n,)),
        } | {name: (DTYPES[self.key.dtype], (n, width)) for name, width in widths.items()}
        size = sum(np.dtype(t).itemsize * int(np.prod(shape)) for t, shape in columns.values())
        free = shutil.disk_usage(self.partial).free
        if size > free:  # a full disk under a memory map ends the process without a word
            shutil.rmtree(self.partial)
            raise InputError(
                f"the bank needs {size / 1e9:.1f} GB below {self.partial.parent}, where {free / 1e9:.1f} GB are free; "
                "name another folder (--cache DIR), halve it with --bank-dtype float16, or drop detectors with wide "
                f"probes{f' ({some(widths)})' if widths else ''}"
            )
        for name, (dtype, shape) in columns.items():
            path = self.partial / f"{name}.npy"
            self._arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            _reserve(path)
        tensors = {"weight": head.weight, "bias": head.bias, "reaction": reaction}
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, self.partial / _HEAD)
        (self.partial / _SKIPPED).write_text("row,image,reason\n")
        state = {"batch_size": batch_size, "arrays": list(columns)}
        (self.partial / _STATE).write_text(json.dumps(state))  # last: without it there is nothing to continue

    def _keep_skipped_before(self, start: int) -> None:
        with (self.partial / _SKIPPED).open(newline="") as file:
            header, *lines = csv.reader(file)
        kept = [header, *(line for line in lines if int(line[0]) < start)]
        with whole(self.partial / _SKIPPED) as partial, partial.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(kept)

    def write(self, start: int, values: Mapping[str, npt.NDArray[Any]], skipped: list[tuple[int, str, str]]) -> None:
        """Write the rows of one batch: all columns, each of the batch's length."""
        if skipped:
            with (self.partial / _SKIPPED).open("a", newline="", errors="backslashreplace") as file:
                csv.writer(file, lineterminator="\n").writerows(map(cells, skipped))
        stop = start + len(values["status"])
        for name in sorted(self._arrays, key=lambda name: name == "status"):  # last: it says that the others are there
            self._arrays[name][start:stop] = values[name]

    @property
    def widths(self) -> dict[str, int]:
        """Widths of the columns of floats: ``h`` and the probes'."""
        return {name: a.shape[1] for name, a in self._arrays.items() if a.ndim == 2}

    def finish(self) -> Bank:
        """Close the partial bank and give it its final name."""
        for array in self._arrays.values():
            array.flush()
        aux = [name for name in self._arrays if name not in COLUMNS]
        self._arrays = {}
        (self.partial / _STATE).unlink()
        files = sorted(p for p in self.partial.iterdir() if p.name != _MANIFEST)
        hashes = dict(zip((p.name for p in files), hash_files(files), strict=True))
        manifest = {"key": asdict(self.key), "aux": aux, "files": hashes}
        (self.partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        self.partial.rename(self.final)
        return Bank(self.final)


def _same_reaction(folder: Path, reaction: Tensor) -> bool:
    """Up to rounding, which differs between machines and thread counts."""
    stored = load_file(folder / _HEAD)["reaction"]
    here = reaction.cpu()
    return stored.shape == here.shape and bool((stored - here).abs().max() <= 1e-3 * here.abs().max().clamp(min=1e-6))


def _reserve(path: Path) -> None:
    """Claim the file's blocks now where the system can, so that a disk filling up later cannot end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_text())
    except (OSError, ValueError) as e:
        raise DamagedBank(f"its manifest cannot be read: {e}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedBank("its manifest is not one")
    if manifest.get("key", {}).get("format") != FORMAT:
        raise DamagedBank("its format is another version's")
    return manifest


def _verify(path: Path, files: Mapping[str, str]) -> None:
    missing = [name for name in files if not (path / name).is_file()]
    if missing:
        raise DamagedBank(f"{missing[0]} is missing")
    for name, digest in zip(files, hash_files([path / name for name in files]), strict=True):
        if digest != files[name]:
            raise DamagedBank(f"{name} has changed")
