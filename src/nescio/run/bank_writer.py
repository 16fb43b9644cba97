"""Writing a bank batch by batch: an interrupted pass goes on to the same bytes, and no other process disturbs it."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load, save_file
from torch import Tensor

from nescio.core.errors import InputError, some
from nescio.core.features import Head, NoHead
from nescio.core.files import alone, write_whole, writing
from nescio.core.reading import parse_json
from nescio.core.text import cells
from nescio.data.loader import spans
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
    read_manifest,
    same_reaction,
    sound,
)
from nescio.run.column_file import ColumnFile

log = logging.getLogger(__name__)

_NEW_LIST = b"row,image,reason\n"
_LIST = "skipped-{}.csv"
"""A batch's skipped images, by its number, while the bank is written."""
_ELSEWHERE = "give another folder: cache= (--cache DIR)"
_GOES_ON = "free some space there and run the same command again: it continues where it stopped"
_Kind = tuple[np.dtype[Any], tuple[int, ...]]


class BankWriter:
    """Writes a bank by batches into ``KEY.partial``, so that an interrupted run can go on, and renames it when done.

    Use it inside ``with writer.alone()``.
    """

    def __init__(self, root: Path, key: BankKey) -> None:
        with writing(root, _ELSEWHERE):
            root.mkdir(parents=True, exist_ok=True)
        self.key = key
        root = root.absolute()  # other processes may be in other folders
        self.root = root
        self.final = root / key.digest
        self.partial = root / f"{key.digest}.partial"
        self._columns: dict[str, ColumnFile] = {}
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

    def begin(self, n: int, head: Head, reaction: Tensor, batch_size: int, widths: Mapping[str, int]) -> list[range]:
        """Open the partial bank of ``n`` rows, an earlier one where it can be continued.

        ``widths`` are those of ``h`` and the probes' columns.

        Returns:
            the rows that are still to be written, batch by batch. The batches are those of the run which is continued,
            since the last bits of a feature can depend on them.

        Raises:
            InputError: there is no room, or the folder cannot be written to.
        """
        columns = self._kinds(n, widths)
        with writing(self.root, _ELSEWHERE):
            if self._denied is not None:
                raise self._denied
            try:
                self._go_on(columns, reaction)
                missing = self.missing()
            except Exception as e:  # noqa: BLE001 - what a damaged file raises no library says
                if self.partial.exists():
                    log.warning(
                        "partial bank %s cannot be continued (%s): starting from the beginning",
                        self.partial.name,
                        e,
                    )
            else:
                first = f"{missing[0].start if missing else n:,}"
                log.info("continuing an interrupted pass at image %s of %s", first, f"{n:,}")
                return missing
            self._create(columns, head, reaction, batch_size)
        return self._batches()

    def _kinds(self, n: int, widths: Mapping[str, int]) -> dict[str, _Kind]:
        """Type and shape of each column, in the order of ``COLUMNS``."""
        floats = np.dtype(DTYPES[self.key.dtype])
        return {
            "h": (floats, (n, widths["h"])),
            "pred": (np.dtype(np.int64), (n,)),
            "label": (np.dtype(np.int64), (n,)),
            "status": (np.dtype(np.uint8), (n,)),
        } | {name: (floats, (n, width)) for name, width in widths.items() if name != "h"}

    def _batches(self) -> list[range]:
        return spans(0, len(self._columns["h"]), self._size)

    def _go_on(self, columns: Mapping[str, _Kind], reaction: Tensor) -> None:
        """Open the partial bank. Raises where it is not one that this pass began."""
        manifest, head = read_manifest(self.partial), (self.partial / HEAD).read_bytes()
        self._manifest = self._describe(columns, manifest["batch_size"], head)
        if manifest != parse_json(json.dumps(self._manifest)):
            raise DamagedBank("its manifest or its head has changed")
        if not same_reaction(load(head)["reaction"], reaction):
            raise DamagedBank("another network with the same weights wrote it")
        self._open(columns, manifest["batch_size"], ColumnFile)

    def _describe(self, columns: Mapping[str, _Kind], batch_size: int, head: bytes) -> dict[str, Any]:
        """The manifest, as far as it is known from the beginning."""
        return {
            "key": asdict(self.key),
            "aux": [name for name in columns if name not in COLUMNS],
            "batch_size": batch_size,
            "files": {HEAD: zlib.crc32(head)},
        }

    def _open(self, columns: Mapping[str, _Kind], batch_size: int, opened: Callable[..., ColumnFile]) -> None:
        """Open the columns and their checksums, or make them (``ColumnFile.made``)."""
        n = columns["h"][1][0]
        checks = np.dtype(np.uint64), (-(-n // batch_size), len(columns) + 2)
        self._columns = {name: opened(self.partial / f"{name}.npy", *kind) for name, kind in columns.items()}
        self._checks, self._size = opened(self.partial / CHECKS, *checks), batch_size

    def missing(self) -> list[range]:
        """The batches of rows that are not there, or are not what was written.

        The latter may be of a batch that a process died over, or have changed since: they are forgotten.
        """
        checks = np.array(self._checks.read())
        written = checks.any(axis=1)
        lists = self._lists()
        texts = (lists.get(number, _NEW_LIST) for number in range(len(checks)))
        listed = [(zlib.crc32(text), len(text)) for text in texts]
        intact = written & (checks[:, -2:] == np.array(listed, dtype=np.uint64)).all(axis=1)
        for i, column in enumerate(self._columns.values()):
            intact &= sound(column.path, column.read(), self._size, checks[:, i])
        if written.any() and not intact.any():
            raise DamagedBank("all of its images have changed")
        batches = self._batches()
        if changed := np.flatnonzero(written & ~intact).tolist():
            images = sum(len(batches[number]) for number in changed)
            log.warning("partial bank %s was changed: computing %s images again", self.partial.name, f"{images:,}")
            for number in changed:
                self._checks.write(number, np.zeros_like(checks[:1]))
        return [batches[number] for number in np.flatnonzero(~intact).tolist()]

    def check_all_there(self) -> None:
        """Check what other hosts wrote.

        Raises:
            InputError: something is missing.
        """
        if left := sum(map(len, self.missing())):
            raise InputError(
                f"{left:,} images that other processes computed are not in {self.partial}: give a folder that all "
                "hosts share: cache= (--cache DIR)"
            )

    def _lists(self) -> dict[int, bytes]:
        """The lists of skipped images, by the number of their batch. Most batches have none."""
        paths = self.partial.glob(_LIST.format("*"))
        return {int(path.stem.rpartition("-")[2]): path.read_bytes() for path in paths}

    def _create(self, columns: Mapping[str, _Kind], head: Head, reaction: Tensor, batch_size: int) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        try:
            self._check_room(columns)
            self._open(columns, batch_size, ColumnFile.made)
            own = {} if isinstance(head, NoHead) else {"weight": head.weight, "bias": head.bias}
            tensors = {**own, "reaction": reaction}
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, self.partial / HEAD)
            self._manifest = self._describe(columns, batch_size, (self.partial / HEAD).read_bytes())
            self._write_manifest()  # last: without it there is nothing to continue
        except BaseException:
            self._columns = {}
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
        """Write the rows of one batch, all columns, and last their checksums: without these they are not there.

        Any process may write any batch, in any order.
        """
        number, listed = start // self._size, _NEW_LIST
        with writing(self.root, _GOES_ON):
            if skipped:
                text = io.StringIO()
                csv.writer(text, lineterminator="\n").writerows(map(cells, skipped))
                listed += text.getvalue().encode(errors="backslashreplace")
                (self.partial / _LIST.format(number)).write_bytes(listed)
            checks = [column.write(start, values[name]) for name, column in self._columns.items()]
            row = np.array([[*checks, zlib.crc32(listed), len(listed)]], dtype=np.uint64)
            self._checks.write(number, row)

    @property
    def widths(self) -> dict[str, int]:
        """Widths of the columns of floats: ``h`` and the probes'."""
        return {name: column.shape[1] for name, column in self._columns.items() if len(column.shape) > 1}

    def close(self) -> None:
        """Bring the rows that this process wrote to the disk."""
        with writing(self.root, _GOES_ON):
            for column in (*self._columns.values(), self._checks):
                column.close()

    def finish(self) -> Bank:
        """Close the partial bank, all of whose rows are there, and give it its final name."""
        self.close()
        with writing(self.root, _GOES_ON):
            lists = self._lists()
            rows = b"".join(lists[number].removeprefix(_NEW_LIST) for number in sorted(lists))
            (self.partial / SKIPPED).write_bytes(_NEW_LIST + rows)
            for name in (SKIPPED, CHECKS):
                self._manifest["files"][name] = zlib.crc32((self.partial / name).read_bytes())
            self._write_manifest()
            for number in lists:
                (self.partial / _LIST.format(number)).unlink()
            self.partial.rename(self.final)
        return Bank(self.final, self.key.probes, check=False)
