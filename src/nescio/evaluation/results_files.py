"""The files that keep results: none is read that does not belong to the others."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.core.artifact import Artifact, Kind, put, read
from nescio.core.errors import InputError
from nescio.core.files import make_folder, whole
from nescio.core.text import cells
from nescio.data.formats.files import open_here
from nescio.data.source import Source
from nescio.evaluation.rows import Row, Scored
from nescio.evaluation.sample import FeatureSample

KIND = Kind("results", 2, "results", "run nescio bench --out again", unmarked=True)
RESULTS, SCORES, FEATURES = "results.json", "scores.safetensors", "features.safetensors"
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


def save_files(
    folder: Path,
    content: dict[str, Any],
    table: str,
    scores: Mapping[str, npt.NDArray[Any]],
    sample: FeatureSample | None,
    skipped: Sequence[Iterable[object]],
) -> None:
    """Write the files of results, as ``Results.save`` says."""
    make_folder(folder)
    with ExitStack() as stack:
        there = {n: stack.enter_context(whole(folder / n)) for n in (RESULTS, "results.csv", SCORES)}
        _write_text(there["results.csv"], table)
        put(there[SCORES], KIND, {}, scores)
        if sample is not None:
            there[FEATURES] = stack.enter_context(whole(folder / FEATURES))
            sample.save(there[FEATURES])
        if skipped:
            lines = [("set", "row", "image", "reason"), *skipped]
            _write_text(stack.enter_context(whole(folder / "skipped.csv")), as_csv(lines))
        files = {name: _contents(there[name]) for name in (SCORES, FEATURES) if name in there}
        put(there[RESULTS], KIND, content | {"files": files})
        for name in (*_FOLLOWING, "skipped.csv", *(() if sample else (FEATURES,))):
            (folder / name).unlink(missing_ok=True)
        drop_figures(folder)


def read_files(folder: Path) -> tuple[Artifact, dict[str, npt.NDArray[Any]], FeatureSample | None]:
    """What ``save_files`` wrote, once the files have been held against each other.

    Raises:
        InputError: a file is missing, damaged or of another run.
    """
    for name in (RESULTS, SCORES):
        if not (folder / name).exists():
            raise InputError(f"no results in {folder}: {name} is missing")
    content = read(folder / RESULTS, KIND)
    if "rows" in content.meta and "files" not in content.meta:
        raise InputError(f"an earlier version wrote {folder}; run nescio bench --out {folder} again")
    with content.taken_apart():
        files = dict(content.meta["files"])
    _check_together(folder, files)
    scores = read(folder / SCORES, KIND)
    return content, {name: t.numpy() for name, t in scores.tensors.items()}, FeatureSample.load(folder / FEATURES)


def check_results(
    manifest: dict[str, Any], rows: Sequence[Row], sets: Sequence[Scored], correct: npt.NDArray[np.int8] | None
) -> None:
    """Refuse results that contradict themselves. Raises ValueError, KeyError, TypeError."""
    ood_sets = sets[1:]
    detectors = list(dict.fromkeys(r.detector for r in rows))
    if not rows or sorted((r.detector, r.ood) for r in rows) != sorted(
        (d, s.name) for d in detectors for s in ood_sets
    ):
        raise ValueError("it does not have one row for each detector and OOD set")
    for scored in sets:
        images = manifest["data"][scored.name]["images"]
        for d in detectors:
            scores, at = scored.scores[d], scored.rows[d]
            if not len(scores) or scores.shape != at.shape or scores.ndim != 1 or scores.dtype.kind != "f":
                raise ValueError(f"the scores of '{scored.name}' do not match its rows")
            if np.isnan(scores).any() or at.min() < 0 or at.max() >= images:
                raise ValueError(f"'{scored.name}' has scores that are not numbers, or scores of images that it lacks")
        if scored.pred is not None and scored.pred.shape != (images,):
            raise ValueError(f"'{scored.name}' has {images} images, but a different number of predictions")
    if correct is not None and correct.shape != (manifest["data"]["id"]["images"],):
        raise ValueError("the record of correct predictions does not match the ID images")
    names = manifest["model"].get("classes")
    if not (names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names))):
        raise ValueError("its class names are not a list of names")
    known = {s.name for s in ood_sets}
    groups = manifest.get("groups", {})
    if not all(members and known.issuperset(members) for members in groups.values()):
        raise ValueError("its groups do not match its OOD sets")


def _contents(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_together(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse files that are not those that ``results.json`` was written with."""
    for name in (SCORES, FEATURES):
        needed = name == SCORES or (folder / name).exists()  # without features there are fewer pictures, no wrong ones
        if needed and _contents(folder / name) != files.get(name):
            raise InputError(
                f"{folder / name} does not match results.json beside it: it was changed, or a run was interrupted "
                "while writing; run the command that made them again"
            )


def as_csv(lines: Iterable[Iterable[object]]) -> str:
    """Lines of a CSV file; no cell starts a formula."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(map(cells, lines))
    return out.getvalue()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n", errors="backslashreplace")


def drop_figures(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove the figures of an earlier run or page, but those with a name in ``keep``."""
    for path in (*(folder / name for name in DRAWN), *folder.glob(CURVES)):
        if path.stem not in keep:
            path.unlink(missing_ok=True)


def reopened(name: str, data: Mapping[str, Any]) -> Source | None:
    """The images that a manifest names, where they are on this machine and still the same."""
    spec = data.get("opened")
    if spec is None:
        return None
    try:
        source = open_here(spec)
        if source.identity == data["identity"]:
            return source
        reason = f"{spec} has changed"
    except (OSError, ValueError) as e:  # an InputError, too
        reason = str(e)
    log.warning("the images of '%s' cannot be shown: %s", name, reason)
    return None
