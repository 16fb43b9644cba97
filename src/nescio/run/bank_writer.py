"""Writing a bank row by row: an interrupted pass goes on to the same bytes, and no other process disturbs it."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.torch import load, save_file
from torch import Tensor

from nescio.core.errors import InputError, some
from nescio.core.features import Head, NoHead
from nescio.core.files import alone, whole, write_whole, writing
from nescio.core.reading import parse_json
from nescio.core.text import cells
from nescio.run.bank import (
    CHECKS,
    COLUMNS,
    DTYPES,
    HEAD,
    MANIFEST,
    SKIPPED,
    Bank,
    BankKey,
    DamagedBank,
    checksum,
    head_checksum,
    read_manifest,
    same_reaction,
    sound,
)

log = logging.getLogger(__name__)

_NEW_LIST = b"row,image,reason\n"
_ELSEWHERE = "give another folder: cache= (--cache DIR)"
_GOES_ON = "free some space there and run the same command again: it continues where it stopped"
_Kind = tuple[np.dtype[Any], tuple[int, ...]]


class BankWriter:
    """Writes a bank row by row into ``KEY.partial``, so that an interrupted run can go on, and renames it when done.

    Use it inside ``with writer.alone()``.
    """

    def __init__(self, root: Path, key: BankKey) -> None:
        with writing(root, _ELSEWHERE):
            root.mkdir(parents=True, exist_ok=True)
        self.key = key
        self.root = root
        self.final = root / key.digest
        self.partial = root / f"{key.digest}.partial"
        self._arrays: dict[str, np.memmap[Any, Any]] = {}
        self._heads: dict[str, int] = {}
        self._denied: OSError | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from this bank; where one is at it already, say so and wait.

        Where banks can be read but not written, nobody is kept out, and none can be begun.
        """

        def waiting() -> None:
            log.info("another process is writing bank %s: waiting for it", self.final.name)

        with ExitStack() as stack:
            try:
                stack.enter_context(alone(self.root / f"{self.key.digest}.lock", waiting))
            except OSError as e:
                self._denied = e
            yield

    def finished(self, reaction: Tensor) -> Bank | None:
        """The bank, or one that holds more probes, if it was written before, is whole, and by this network.

        One that is damaged, or by a network that reacts to noise in another way, is removed, with a line that says so.
        """
        for path in sorted(self.root.glob(f"{self.key.family}*"), key=lambda p: p != self.final):
            if path.suffix or not self._has_probes(path):
                continue
            try:
                bank = Bank(path, self.key.probes)
                if BankKey(**bank.manifest["key"]).family != self.key.family:
                    raise DamagedBank("its features are not those that its name stands for")
                if not same_reaction(bank.reaction, reaction):
                    raise DamagedBank("another network with the same weights wrote it")
                return bank
            except DamagedBank as e:
                log.warning("bank %s cannot be used (%s): computing it again", path.name, e)
                if self._denied is None:
                    with writing(path, "remove it, or give another folder: cache= (--cache DIR)"):
                        shutil.rmtree(path)
        return None

    def _has_probes(self, path: Path) -> bool:
        try:
            return set(self.key.probes) <= set(read_manifest(path)["key"]["probes"])
        except DamagedBank:
            return path == self.final

    def begin(
        self, n: int, head: Head, reaction: Tensor, batch_size: int, widths: Mapping[str, int]
    ) -> tuple[int, int]:
        """Open the partial bank of ``n`` rows, an earlier one where it can be continued.

        ``widths`` are those of ``h`` and the probes' columns.

        Returns:
            the first row to write, and the batch size to use: that of the run which is continued, since the last bits
            of a feature can depend on it.

        Raises:
            InputError: there is no room, or the folder cannot be written to.
        """
        columns = self._columns(n, widths)
        with writing(self.root, _ELSEWHERE):
            if self._denied is not None:
                raise self._denied
            try:
                self._go_on(columns, reaction)
                return self._first_to_write(n), self._size
            except Exception as e:  # noqa: BLE001 - what a damaged file raises no library says
                if self.partial.exists():
                    log.warning(
                        "partial bank %s cannot be continued (%s): starting from the beginning",
                        self.partial.name,
                        e,
                    )
            self._create(columns, head, reaction, batch_size)
        return 0, batch_size

    def _columns(self, n: int, widths: Mapping[str, int]) -> dict[str, _Kind]:
        """Type and shape of each column, in the order of ``COLUMNS``."""
        floats = np.dtype(DTYPES[self.key.dtype])
        return {
            "h": (floats, (n, widths["h"])),
            "pred": (np.dtype(np.int64), (n,)),
            "label": (np.dtype(np.int64), (n,)),
            "status": (np.dtype(np.uint8), (n,)),
        } | {name: (floats, (n, width)) for name, width in widths.items() if name != "h"}

    def _go_on(self, columns: Mapping[str, _Kind], reaction: Tensor) -> None:
        """Open the partial bank. Raises where it is not one that this pass began."""
        manifest, head = read_manifest(self.partial), (self.partial / HEAD).read_bytes()
        self._manifest = self._describe(columns, manifest["batch_size"], head)
        if manifest != parse_json(json.dumps(self._manifest)):
            raise DamagedBank("its manifest or its head has changed")
        if not same_reaction(load(head)["reaction"], reaction):
            raise DamagedBank("another network with the same weights wrote it")
        self._map(columns, manifest["batch_size"], "r+")

    def _describe(self, columns: Mapping[str, _Kind], batch_size: int, head: bytes) -> dict[str, Any]:
        """The manifest, as far as it is known from the beginning."""
        return {
            "key": asdict(self.key),
            "aux": [name for name in columns if name not in COLUMNS],
            "batch_size": batch_size,
            "files": {HEAD: zlib.crc32(head)},
        }

    def _map(self, columns: Mapping[str, _Kind], batch_size: int, mode: Literal["r+", "w+"]) -> None:
        """Map the columns and their checksums into memory; with ``w+``, make their files first."""
        n = columns["h"][1][0]
        checks = np.dtype(np.uint64), (-(-n // batch_size), len(columns) + 2)
        for name, (dtype, shape) in {**columns, CHECKS.removesuffix(".npy"): checks}.items():
            path = self.partial / f"{name}.npy"
            if mode == "w+":
                array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
                _reserve(path)
            else:
                array = np.load(path, mmap_mode="r+")
            if (array.dtype, array.shape) != (dtype, shape):
                raise DamagedBank(f"{path.name} has the wrong shape")
            self._arrays[name], self._heads[name] = array, head_checksum(path, array)
        self._checks, self._size = self._arrays.pop("checks"), batch_size

    def _first_to_write(self, n: int) -> int:
        """The first row that is not there, or is not what was written. The list of skipped images is cut to go with it.

        What follows is written again: it may be of a batch that the process died over, or have changed since.
        """
        listed, ends = (self.partial / SKIPPED).read_bytes(), self._checks[:, -2:].tolist()
        intact = np.array(
            [0 < end <= len(listed) and zlib.crc32(listed[:end]) == check for check, end in ends], dtype=bool
        )
        for i, (name, array) in enumerate(self._arrays.items()):
            intact &= sound(self.partial / f"{name}.npy", array, self._size, self._checks[:, i])
        kept = len(intact) if intact.all() else int(intact.argmin())
        if not kept and self._checks.any():
            raise DamagedBank("all of its images have changed")
        start = min(kept * self._size, n)
        if self._checks[kept:].any():
            log.warning(
                "partial bank %s was changed: computing again from image %s on",
                self.partial.name,
                f"{start:,}",
            )
        self._checks[kept:] = 0
        listed = listed[: ends[kept - 1][1]] if kept else _NEW_LIST
        with (self.partial / SKIPPED).open("r+b") as file:
            file.write(listed)
            file.truncate()
        self._listed = zlib.crc32(listed), len(listed)
        log.info("continuing an interrupted pass at image %s of %s", f"{start:,}", f"{n:,}")
        return start

    def _create(self, columns: Mapping[str, _Kind], head: Head, reaction: Tensor, batch_size: int) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        try:
            self._check_room(columns)
            self._map(columns, batch_size, "w+")
            own = {} if isinstance(head, NoHead) else {"weight": head.weight, "bias": head.bias}
            tensors = {**own, "reaction": reaction}
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, self.partial / HEAD)
            (self.partial / SKIPPED).write_bytes(_NEW_LIST)
            self._listed = zlib.crc32(_NEW_LIST), len(_NEW_LIST)
            self._manifest = self._describe(columns, batch_size, (self.partial / HEAD).read_bytes())
            self._write_manifest()  # last: without it there is nothing to continue
        except BaseException:
            self._arrays = {}
            shutil.rmtree(self.partial, ignore_errors=True)
            raise

    def _check_room(self, columns: Mapping[str, _Kind]) -> None:
        """A full disk under a memory map ends the process without a word."""
        size = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in columns.values())
        free = shutil.disk_usage(self.partial).free
        if size > free:
            probes = [name for name in columns if name not in COLUMNS]
            raise InputError(
                f"the bank needs {size / 1e9:.1f} GB in {self.root}, but only {free / 1e9:.1f} GB are free; "
                "give another folder, cache= (--cache DIR), halve it with dtype='float16' (--bank-dtype float16), or "
                f"drop detectors with wide probes{f' ({some(probes)})' if probes else ''}"
            )

    def _write_manifest(self) -> None:
        write_whole(self.partial / MANIFEST, json.dumps(self._manifest, indent=1))

    def write(self, start: int, values: Mapping[str, npt.NDArray[Any]], skipped: list[tuple[int, str, str]]) -> None:
        """Write the rows of one batch, all columns, and last their checksums: without these they are not there."""
        if skipped:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(map(cells, skipped))
            data = text.getvalue().encode(errors="backslashreplace")
            with writing(self.root, _GOES_ON), (self.partial / SKIPPED).open("ab") as file:
                file.write(data)
            self._listed = zlib.crc32(data, self._listed[0]), self._listed[1] + len(data)
        rows = slice(start, start + len(values["status"]))
        for name, array in self._arrays.items():
            array[rows] = values[name]
        checks = [checksum(array, rows, self._heads[name]) for name, array in self._arrays.items()]
        self._checks[start // self._size] = [*checks, *self._listed]

    @property
    def widths(self) -> dict[str, int]:
        """Widths of the columns of floats: ``h`` and the probes'."""
        return {name: a.shape[1] for name, a in self._arrays.items() if a.ndim == 2}

    def finish(self) -> Bank:
        """Close the partial bank and give it its final name."""
        with writing(self.root, _GOES_ON):
            for array in self._arrays.values():
                array.flush()
            with whole(self.partial / CHECKS) as partial, partial.open("wb") as file:
                np.save(file, self._checks)
            self._arrays = {}
            checks = zlib.crc32((self.partial / CHECKS).read_bytes())
            self._manifest["files"] |= {SKIPPED: self._listed[0], CHECKS: checks}
            self._write_manifest()
            self.partial.rename(self.final)
        return Bank(self.final, self.key.probes, check=False)


def _reserve(path: Path) -> None:
    """Claim the file's blocks now where the system can, so that a disk filling up later cannot end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
