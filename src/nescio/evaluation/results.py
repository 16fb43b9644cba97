"""What a bench run found: rows, scores, and the files that keep them."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from nescio.core import numerics
from nescio.core.errors import InputError, nearest
from nescio.core.files import make_folder, whole, write_whole
from nescio.core.outputs import write_table
from nescio.core.reading import parse_json, plain, read_json
from nescio.core.tensors import read_tensors, seal
from nescio.core.text import cells
from nescio.data.formats.files import open_here
from nescio.data.source import Source
from nescio.evaluation.sample import FeatureSample
from nescio.evaluation.suites.suite import AVERAGE

SHARES = ("fpr95", "auroc", "aupr_in", "aupr_out", "aurc", "id_accuracy")
"""The columns that are shares in [0, 1] here and percent in every file and table."""
FORMAT = "nescio-results/1"
SCORES, FEATURES = "scores.safetensors", "features.safetensors"
_HASH = "hash"
_FOLLOWING = ("report.html", "results.md", "results.tex")
"""What is made of the results."""
DRAWN = tuple(
    f"figures/{name}.{kind}"
    for name in ("scores", "roc", "risk-coverage", "features", "activation", "cosine", "patches")
    for kind in ("png", "svg", "pdf")
)
"""The figures that a report leaves beside itself, as far as the results have what they show."""
CURVES = "figures/curve-*"
"""And those of ranges, one for each option that is varied."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One detector on one OOD set. Shares in [0, 1].

    ``seconds``: fitting the detector plus scoring the ID and the OOD set from the bank, without the network.
    ``own_pass``: the stage for which the network ran over every image once more; empty where the plain pass served.
    ``intervals``: bootstrap 95 % intervals of the metrics, where they were asked for.
    """

    detector: str
    ood: str
    fpr95: float
    auroc: float
    aupr_in: float
    aupr_out: float
    aurc: float
    id_accuracy: float
    n_id: int
    n_ood: int
    seconds: float
    own_pass: str = ""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def printable(self) -> dict[str, Any]:
        """The row as files show it: shares in percent, an interval as two columns."""
        values = asdict(self)
        intervals = values.pop("intervals")
        for name in SHARES:
            values[name] = None if math.isnan(values[name]) else round(values[name] * 100, 4)
        values["seconds"] = round(values["seconds"], 4)
        for name, (low, high) in intervals.items():
            values[f"{name}_low"], values[f"{name}_high"] = round(low * 100, 4), round(high * 100, 4)
        return values


@dataclass(frozen=True)
class Published:
    """What a paper prints for a detector on an OOD set (or on average), and where: shares in [0, 1].

    ``id_accuracy``: of the network that the row is about, where that is printed.
    """

    fpr95: float
    auroc: float
    where: str
    id_accuracy: float | None = None

    def printable(self) -> dict[str, float]:
        """The numbers as files show them, in percent."""
        found = {m: getattr(self, m) for m in ("fpr95", "auroc", "id_accuracy")}
        return {m: round(share * 100, 4) for m, share in found.items() if share is not None}

    @classmethod
    def read(cls, printed: Mapping[str, float], where: str) -> Published:
        """What ``printable`` made these entries of."""
        return cls(where=where, **{m: printed[m] / 100 for m in ("fpr95", "auroc", "id_accuracy") if m in printed})


@dataclass(frozen=True)
class Scored:
    """A data set with every detector's ``scores``, and the ``rows`` of its ``source`` that they belong to.

    ``source`` is None where results were read from their files without the images. ``pred`` is the
    network's own prediction by row of the source, -1 where there is none; None where no plain pass was made.
    """

    name: str
    source: Source | None
    rows: dict[str, npt.NDArray[np.int64]]
    scores: dict[str, npt.NDArray[np.float64]]
    pred: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Results:
    """Rows in the order of detectors, then OOD sets; the manifest that lets anyone run it again; all scores."""

    rows: list[Row]
    manifest: dict[str, Any]
    id_set: Scored
    ood_sets: list[Scored]
    skipped: list[tuple[str, int, str, str]] = field(default_factory=list)
    """``(set, row, image, reason)`` of each image that could not be used."""
    correct: npt.NDArray[np.int8] | None = None
    """Whether the classifier was right (1), wrong (0), or the label unknown (-1), by row of the ID set's source; None
    where no label is known."""
    published: dict[tuple[str, str], Published] = field(default_factory=dict)
    """By detector and OOD set, or ``average``."""
    sample: FeatureSample | None = None
    """Features of some images, for pictures of them; None where no detector reads the plain pass."""

    @property
    def detectors(self) -> list[str]:
        """The detectors as given, in order."""
        return list(dict.fromkeys(r.detector for r in self.rows))

    @property
    def groups(self) -> dict[str, list[str]]:
        """OOD sets by what their mean is called: the suite's near and far ones, where it has both, and all."""
        groups: dict[str, list[str]] = self.manifest.get("groups", {})
        return groups | {AVERAGE: [s.name for s in self.ood_sets]}

    def average(self, detector: str, metric: str, group: str = AVERAGE) -> float:
        """Mean of a metric over the OOD sets of a group, each counting the same."""
        return float(np.mean([getattr(self.row(detector, ood), metric) for ood in self.groups[group]]))

    def row(self, detector: str, ood: str) -> Row:
        """The row of one detector and OOD set.

        Raises:
            InputError: there is none; the nearest name is named.
        """
        found = next((r for r in self.rows if (r.detector, r.ood) == (detector, ood)), None)
        if found is not None:
            return found
        what, name, known = "detector", detector, self.detectors
        if detector in known:
            what, name, known = "OOD set", ood, [r.ood for r in self.rows]
        raise InputError(f"no {what} '{name}' in these results{nearest(name, known)}")

    def judged(self, detector: str, ood: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Rows and scores of the ID images that a detector's row for this OOD set is made of."""
        self.row(detector, ood)  # refuses what is not there
        other = next(s for s in self.ood_sets if s.name == ood)
        return judged(self.id_set, other, detector, equal=self.manifest.get("equal", False))

    def id_scores(self, detector: str, ood: str) -> npt.NDArray[np.float64]:
        """The ID scores that a detector's row for this OOD set is made of."""
        return self.judged(detector, ood)[1]

    def as_kept(self) -> Results:
        """The same with each number as the files keep it: what is printed or drawn of either comes out the same."""
        return dataclasses.replace(
            self,
            rows=[_row(r.printable()) for r in self.rows],
            manifest=parse_json(json.dumps(plain(self.manifest))),
            published={key: Published.read(p.printable(), p.where) for key, p in self.published.items()},
        )

    def to_csv(self) -> str:
        """One line per row; metrics in percent."""
        lines = self._lines()
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([list(lines[0]), *(cells(line.values()) for line in lines)])
        return out.getvalue()

    def _lines(self) -> list[dict[str, Any]]:
        """The rows as a table, all with the same names."""
        lines = [r.printable() | self._beside(r) for r in self.rows]
        names = dict.fromkeys([f.name for f in fields(Row) if f.name != "intervals"] + [k for r in lines for k in r])
        return [{name: line.get(name) for name in names} for line in lines]

    def save_table(self, file: Path) -> None:
        """Write the rows to one file, whole: ``.csv``, ``.parquet``, or ``.json`` with the manifest and averages."""
        make_folder(file.parent)
        if file.suffix.lower() == ".parquet":
            write_table(file, self._lines())
        else:
            write_whole(file, self.to_csv() if file.suffix.lower() == ".csv" else self.to_json())

    def _beside(self, row: Row) -> dict[str, Any]:
        published = self.published.get((row.detector, row.ood))
        if published is None:
            return {}
        return {f"published_{m}": percent for m, percent in published.printable().items()}

    def to_json(self, files: Mapping[str, str] | None = None) -> str:
        """Manifest, rows, averages and published values; in percent; the hashes of ``files`` and of all this."""
        averages = [
            {"detector": d} | {m: round(self.average(d, m) * 100, 4) for m in ("fpr95", "auroc", "aupr_in", "aupr_out")}
            for d in self.detectors
        ]
        published = [
            {"detector": d, "ood": o, **p.printable(), "where": p.where} for (d, o), p in self.published.items()
        ]
        content = {"manifest": self.manifest, "rows": [r.printable() for r in self.rows], "average": averages}
        content = plain(content | {"published": published, "files": dict(files or {})})
        content[_HASH] = seal({}, content)
        return json.dumps(content, indent=1, ensure_ascii=False)

    def save(self, folder: str | Path) -> None:
        """Write ``results.csv``, ``results.json``, all scores, the sample of features and ``skipped.csv``.

        All of them take their places together, or none where one cannot be written; and ``results.json`` knows the
        scores' and the sample's contents, so that no mixture with an earlier run's is ever read. A report and tables
        that are there are removed: they would show other results.

        Raises:
            InputError: a file cannot be written. What was there stays.
        """
        folder = Path(folder)
        make_folder(folder)
        with ExitStack() as stack:
            there = {n: stack.enter_context(whole(folder / n)) for n in ("results.json", "results.csv", SCORES)}
            _write_text(there["results.csv"], self.to_csv())
            save_file(self._scores(), there[SCORES], {"format": FORMAT})
            if self.sample is not None:
                there[FEATURES] = stack.enter_context(whole(folder / FEATURES))
                self.sample.save(there[FEATURES])
            if self.skipped:
                out, lines = io.StringIO(), [("set", "row", "image", "reason"), *self.skipped]
                csv.writer(out, lineterminator="\n").writerows(map(cells, lines))
                _write_text(stack.enter_context(whole(folder / "skipped.csv")), out.getvalue())
            contents = {name: _contents(there[name]) for name in (SCORES, FEATURES) if name in there}
            _write_text(there["results.json"], self.to_json(contents))
            for name in (*_FOLLOWING, "skipped.csv", *(() if self.sample else (FEATURES,))):
                (folder / name).unlink(missing_ok=True)
            drop_figures(folder)

    def _scores(self) -> dict[str, npt.NDArray[Any]]:
        """All scores and rows as ``SET/DETECTOR``, by their numbers, and what the classifier said, right or wrong."""
        found: dict[str, npt.NDArray[Any]] = {}
        for s, scored in enumerate((self.id_set, *self.ood_sets)):
            for d, detector in enumerate(self.detectors):
                found[f"{s}/{d}/scores"] = scored.scores[detector]
                found[f"{s}/{d}/rows"] = scored.rows[detector].astype(np.int32)
            if scored.pred is not None:
                found[f"{s}/pred"] = scored.pred.astype(np.int32)
        if self.correct is not None:
            found["correct"] = self.correct
        return found

    @classmethod
    def load(cls, folder: str | Path, *, images: bool = False) -> Results:
        """Results from the files that ``save`` wrote.

        Args:
            folder: where they are.
            images: open the files and folders that they name, too, where these are on this machine and still hold the
                same images. Results of somebody else name what they like: without it nothing but the folder is read.

        Raises:
            InputError: a file is missing, or not what ``save`` writes.
        """
        folder = Path(folder)
        try:
            content, tensors = _read(folder)
            rows = [_row(r) for r in content["rows"]]
            detectors = list(dict.fromkeys(r.detector for r in rows))
            sets = [
                Scored(
                    name,
                    _reopened(name, content["manifest"]["data"][name]) if images else None,
                    {d: tensors[f"{s}/{i}/rows"].astype(np.int64) for i, d in enumerate(detectors)},
                    {d: tensors[f"{s}/{i}/scores"] for i, d in enumerate(detectors)},
                    tensors[f"{s}/pred"].astype(np.int64) if f"{s}/pred" in tensors else None,
                )
                for s, name in enumerate(["id", *dict.fromkeys(r.ood for r in rows)])
            ]
            correct = tensors["correct"].astype(np.int8) if "correct" in tensors else None
            _check(content["manifest"], rows, sets, correct)
            sample = FeatureSample.load(folder / FEATURES)
            published = {(p["detector"], p["ood"]): Published.read(p, p["where"]) for p in content["published"]}
        except FileNotFoundError as e:
            raise InputError(f"no results in {folder}: {Path(e.filename or SCORES).name} is missing") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as e:
            if isinstance(e, InputError):
                raise
            raise InputError(
                f"{folder} does not hold results, or damaged ones ({type(e).__name__}: {e}); run nescio bench --out "
                f"{folder} again"
            ) from None
        return cls(rows, content["manifest"], sets[0], sets[1:], [], correct, published, sample)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """What ``results.json`` and the scores beside it hold, once their hashes have been held against them."""
    content = read_json(folder / "results.json")
    if "rows" in content and "files" not in content:
        raise InputError(f"{folder} is of an earlier version; run nescio bench --out {folder} again")
    stored = content.pop(_HASH, None)  # the first files have none
    if stored is not None and stored != seal({}, content):
        raise ValueError("results.json has changed since it was written: it does not match its hash")
    _check_together(folder, content["files"])
    metadata, tensors = read_tensors(folder / SCORES)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{folder / SCORES} is of another version; run nescio bench --out {folder} again")
    return content, {name: t.numpy() for name, t in tensors.items()}


def _check(
    manifest: dict[str, Any], rows: Sequence[Row], sets: Sequence[Scored], correct: npt.NDArray[np.int8] | None
) -> None:
    """Refuse results that contradict themselves. Raises ValueError, KeyError, TypeError."""
    ood_sets = sets[1:]
    detectors = list(dict.fromkeys(r.detector for r in rows))
    if not rows or sorted((r.detector, r.ood) for r in rows) != sorted(
        (d, s.name) for d in detectors for s in ood_sets
    ):
        raise ValueError("its rows are not one for each detector and OOD set")
    for scored in sets:
        images = manifest["data"][scored.name]["images"]
        for d in detectors:
            scores, at = scored.scores[d], scored.rows[d]
            if not len(scores) or scores.shape != at.shape or scores.ndim != 1 or scores.dtype.kind != "f":
                raise ValueError(f"the scores of '{scored.name}' do not fit its rows")
            if np.isnan(scores).any() or at.min() < 0 or at.max() >= images:
                raise ValueError(f"'{scored.name}' has scores that are no numbers, or of images that it lacks")
        if scored.pred is not None and scored.pred.shape != (images,):
            raise ValueError(f"'{scored.name}' has {images} images, and other predictions")
    if correct is not None and correct.shape != (manifest["data"]["id"]["images"],):
        raise ValueError("what the classifier got right does not fit the ID images")
    names = manifest["model"].get("classes")
    if not (names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names))):
        raise ValueError("its class names are no list of names")
    known = {s.name for s in ood_sets}
    groups = manifest.get("groups", {})
    if not all(members and known.issuperset(members) for members in groups.values()):
        raise ValueError("its groups are not of its OOD sets")


def judged(
    ids: Scored, oods: Scored, detector: str, *, equal: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows and scores of the ID images that an OOD set is judged against: all, or as many as it has."""
    scores = ids.scores[detector]
    at = numerics.drawn(len(scores), len(oods.scores[detector]) if equal else len(scores))
    return ids.rows[detector][at], scores[at]


def _contents(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_together(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse files that are not those that ``results.json`` was written with."""
    for name in (SCORES, FEATURES):
        needed = name == SCORES or (folder / name).exists()  # without features there are fewer pictures, no wrong ones
        if needed and _contents(folder / name) != files.get(name):
            raise InputError(
                f"{folder / name} does not belong to results.json beside it: it was changed, or a run was interrupted "
                "while it wrote; run the command that made them again"
            )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n", errors="backslashreplace")


def drop_figures(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the figures of an earlier run or page, but those with a name in ``keep``."""
    for path in (*(folder / name for name in DRAWN), *folder.glob(CURVES)):
        if path.stem not in keep:
            path.unlink(missing_ok=True)


_KINDS: dict[str, type[Any]] = {"detector": str, "ood": str, "own_pass": str, "n_id": int, "n_ood": int}
"""Of a row's entries; the others are numbers."""


def _row(printed: dict[str, Any]) -> Row:
    """The row that ``printable`` made these entries of."""
    values = {f.name: printed[f.name] for f in fields(Row) if f.name in printed}
    for name, value in values.items():
        kind = _KINDS.get(name, (int, float))
        if not (isinstance(value, kind) or (value is None and name in SHARES)) or isinstance(value, bool):
            raise TypeError(f"'{name}' is {value!r:.40}")
    for name in SHARES:
        values[name] = float("nan") if values[name] is None else values[name] / 100
    bounds = [k.removesuffix("_low") for k in printed if k.endswith("_low")]
    return Row(**values, intervals={k: (printed[f"{k}_low"] / 100, printed[f"{k}_high"] / 100) for k in bounds})


def _reopened(name: str, data: dict[str, Any]) -> Source | None:
    spec = data.get("opened")
    if spec is None:
        return None
    try:
        source = open_here(spec)
        if source.identity == data["identity"]:
            return source
        reason = f"{spec} holds other images now"
    except (OSError, ValueError) as e:  # an InputError, too
        reason = str(e)
    log.warning("the images of '%s' cannot be shown: %s", name, reason)
    return None
