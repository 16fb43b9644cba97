"""What a bench run found: rows, scores, and the forms that they are shown and kept in."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.core.artifact import as_text
from nescio.core.errors import InputError
from nescio.core.files import make_folder, write_whole
from nescio.core.outputs import write_table
from nescio.core.reading import parse_json, plain
from nescio.evaluation import tables
from nescio.evaluation.results_files import KIND, as_csv, check_results, read_files, reopened, save_files
from nescio.evaluation.rows import Measured, Published, Row, Scored, judged
from nescio.evaluation.sample import FeatureSample


@dataclass(frozen=True, repr=False)
class Results(Measured):
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
            rows=[Row.read(r.printable()) for r in self.rows],
            manifest=parse_json(json.dumps(plain(self.manifest))),
            published={key: Published.read(p.printable(), p.where) for key, p in self.published.items()},
        )

    def __repr__(self) -> str:
        best = max(self.detectors, key=lambda d: self.average(d, "auroc"), default=None)
        found = "" if best is None else f"; best AUROC {self.average(best, 'auroc'):.2%}, of {best}"
        return f"Results({len(self.detectors)} detectors on {len(self.ood_sets)} OOD sets{found})"

    def __str__(self) -> str:
        return tables.text(self)

    def _repr_html_(self) -> str:
        return tables.html(self)

    def frame(self) -> Any:
        """The rows as a pandas ``DataFrame``: one for each detector and OOD set, shares in percent.

        It writes what pandas writes, CSV, Markdown and LaTeX among it; the files of a run need no pandas.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise InputError(
                "a DataFrame needs pandas: pip install 'nescio[pandas]'; results.lines() gives the same rows as dicts"
            ) from None
        return pd.DataFrame(self.lines())

    def lines(self) -> list[dict[str, Any]]:
        """The rows as files show them, all with the same names: shares in percent, published values beside them."""
        lines = [r.printable() | self._beside(r) for r in self.rows]
        names = dict.fromkeys([f.name for f in fields(Row) if f.name != "intervals"] + [k for r in lines for k in r])
        return [{name: line.get(name) for name in names} for line in lines]

    def _beside(self, row: Row) -> dict[str, Any]:
        published = self.published.get((row.detector, row.ood))
        return {} if published is None else {f"published_{m}": v for m, v in published.printable().items()}

    def to_csv(self) -> str:
        """One line per row; metrics in percent."""
        lines = self.lines()
        return as_csv([list(lines[0]), *(line.values() for line in lines)])

    def to_json(self) -> str:
        """Manifest, rows, averages and published values, in percent, and a hash of all this."""
        return as_text(KIND, self._content() | {"files": {}})

    def to_markdown(self) -> str:
        """FPR95 / AUROC by detector and OOD set, for a README or an issue."""
        return tables.markdown(self)

    def to_latex(self) -> str:
        """The same for a paper: a ``tabular`` that needs the package booktabs."""
        return tables.latex(self)

    def save_table(self, file: str | Path) -> None:
        """Write the rows to one file, whole: ``.csv``, ``.parquet``, or ``.json`` with the manifest and averages."""
        file = Path(file)
        make_folder(file.parent)
        if file.suffix.lower() == ".parquet":
            write_table(file, self.lines())
        else:
            write_whole(file, self.to_csv() if file.suffix.lower() == ".csv" else self.to_json())

    def _content(self) -> dict[str, Any]:
        averages = [
            {"detector": d} | {m: round(self.average(d, m) * 100, 4) for m in ("fpr95", "auroc", "aupr_in", "aupr_out")}
            for d in self.detectors
        ]
        published = [
            {"detector": d, "ood": o, **p.printable(), "where": p.where} for (d, o), p in self.published.items()
        ]
        rows = [r.printable() for r in self.rows]
        return {"manifest": self.manifest, "rows": rows, "average": averages, "published": published}

    def save(self, folder: str | Path) -> None:
        """Write ``results.csv``, ``results.json``, all scores, the sample of features and ``skipped.csv``.

        All of them take their places together, or none where one cannot be written; and ``results.json`` knows the
        scores' and the sample's contents, so that no mixture with an earlier run's is ever read. A report and tables
        that are there are removed: they would show other results.

        Raises:
            InputError: a file cannot be written. What was there stays.
        """
        save_files(Path(folder), self._content(), self.to_csv(), self._scores(), self.sample, self.skipped)

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
        file, tensors, sample = read_files(Path(folder))
        content = file.meta
        with file.taken_apart():
            rows = [Row.read(r) for r in content["rows"]]
            detectors = list(dict.fromkeys(r.detector for r in rows))
            sets = [
                Scored(
                    name,
                    reopened(name, content["manifest"]["data"][name]) if images else None,
                    {d: tensors[f"{s}/{i}/rows"].astype(np.int64) for i, d in enumerate(detectors)},
                    {d: tensors[f"{s}/{i}/scores"] for i, d in enumerate(detectors)},
                    tensors[f"{s}/pred"].astype(np.int64) if f"{s}/pred" in tensors else None,
                )
                for s, name in enumerate(["id", *dict.fromkeys(r.ood for r in rows)])
            ]
            correct = tensors["correct"].astype(np.int8) if "correct" in tensors else None
            check_results(content["manifest"], rows, sets, correct)
            published = {(p["detector"], p["ood"]): Published.read(p, p["where"]) for p in content["published"]}
        return cls(rows, content["manifest"], sets[0], sets[1:], [], correct, published, sample)
