"""The published benchmarks, run here, with what the papers print beside it."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nescio.core.detector import AnyDetector, Detector
from nescio.core.errors import InputError, some
from nescio.evaluation.bench import bench
from nescio.evaluation.results import Results
from nescio.evaluation.rows import Published
from nescio.evaluation.suites.suite import AVERAGE, Model, Need, PublishedRow, Suite
from nescio.methods.objective import parse_objective
from nescio.models import Classifier
from nescio.models.heads import known_heads
from nescio.run.passes import servable
from nescio.run.session import Images, Session, as_session

log = logging.getLogger(__name__)

PAPERS = {"fmls": "FM + LS", "ssod": "SSOD", "reference": "reference"}


def bench_suite(
    suite: Suite,
    session: Session | Any,
    *,
    data_root: str | Path = ".",
    sets: Mapping[str, Images] | None = None,
    detectors: AnyDetector | Sequence[AnyDetector] = (),
    strict: bool = False,
    equal: bool = False,
    resamples: int = 0,
) -> Results:
    """Run a suite with the sets that are there.

    Args:
        suite: the benchmark.
        session: the network, whose transform should be the suite's, and how it is run; or a classifier or a name.
        data_root: folder with the data sets.
        sets: images that lie elsewhere, by role (``id``, ``train``, ``calibrate`` or an OOD set's name); any other name
            is that of a further OOD set.
        detectors: the suite's own where none is given.
        strict: refuse to run where a set is missing.
        equal: judge against equal numbers of ID images, also where the suite does not.
        resamples: as for ``bench``.

    Raises:
        InputError: the ID images or all OOD sets are missing, or with ``strict`` any set; or as ``bench``.
    """
    session, sets = as_session(session), dict(sets or {})
    held_out, transform = sets.pop("calibrate", None), session.classifier.transform
    further = {name: images for name, images in sets.items() if name not in ("id", "train", *suite.ood)}
    lying = {name: images for name, images in sets.items() if name not in further}
    needs = suite.needs(Path(data_root).expanduser(), lying, size=transform.resize or transform.crop)
    missing = [need for need in needs if need.found is None]
    located = {need.role: need.found for need in needs if need.found is not None}
    hint = f"nescio data list {suite.name} --data-root {data_root} shows what is missing and how to get it"
    if "id" not in located or not set(suite.ood) & set(located) or (strict and missing):
        raise InputError(f"suite '{suite.name}' lacks {some([need.role for need in missing])}; {hint}")
    for need in missing:
        log.warning("suite '%s': %s is left out, not found in %s", suite.name, need.role, data_root)
    for row in suite.published:  # a mistake in them must not show after hours
        if row.detector:
            Detector(row.detector, row.model, suite.classes)
    oods = {name: _drawn(located[name], suite.equal) for name in suite.ood if name in located}
    groups = {
        "near average": [o for o in oods if o in suite.near],
        "far average": [o for o in oods if o not in suite.near],
    }
    results = bench(
        session,
        id=located["id"],
        train=located.get("train"),
        held_out=held_out,
        ood=oods | further,
        detectors=detectors or _served(suite, session.classifier, trained="train" in located),
        equal=equal or suite.equal is not None,
        resamples=resamples,
    )
    about: dict[str, Any] = {"suite": suite.name, "suite_file": suite.file}
    about |= {"groups": groups} if all(groups.values()) else {}
    results = dataclasses.replace(results, manifest=results.manifest | about)
    _check_counts(needs, results)
    name, objective = session.classifier.name, session.classifier.objective
    return dataclasses.replace(results, published=beside(suite, name, results, objective))


def _drawn(spec: str, count: int | None) -> str:
    drawn = f"[~{count}]"
    return spec if count is None or spec.endswith(drawn) else spec + drawn  # a report's command gives what was drawn


def _served(suite: Suite, classifier: Classifier, *, trained: bool) -> list[str]:
    """The detectors published for this network, else the suite's own, as far as it and the data can serve them."""
    published = dict.fromkeys(r.detector for r in suite.published if r.model == classifier.name and r.detector)
    return list(servable(published or suite.detectors, classifier, trained=trained))


def _check_counts(needs: Sequence[Need], results: Results) -> None:
    found = results.manifest["data"]
    for need in needs:
        if need.role in found and need.images and "[" not in str(found[need.role]["opened"]):
            there = found[need.role]["images"]
            if there != need.images:
                log.warning("%s has %s images; the suite expects %s", need.role, f"{there:,}", f"{need.images:,}")


def beside(suite: Suite, model: str, results: Results, objective: str = "") -> dict[tuple[str, str], Published]:
    """What is published for this network's detectors on these sets; of several tables the first that prints it.

    ``objective`` is what the network was trained with, where that is known. A published average stands beside ours only
    where ours is over the same sets.
    """
    specs = {d: results.manifest["detectors"][d]["spec"] for d in results.detectors}
    sets = {s.name for s in results.ood_sets}
    found: dict[tuple[str, str], Published] = {}
    for row in (r for r in suite.published if r.model == model and r.detector and _is_of(r, objective)):
        spec = repr(Detector(row.detector, model, suite.classes))
        over = _averaged(suite, row)
        for detector in (d for d, own in specs.items() if own == spec):
            where = f"{PAPERS.get(row.paper, row.paper)}, Table {row.table}: {row.method}"
            for name, (fpr95, auroc) in row.values.items():
                if name in sets or (name == AVERAGE and over == sets):
                    found.setdefault((detector, name), Published(fpr95, auroc, where, row.id_accuracy))
    return found


def _is_of(row: PublishedRow, objective: str) -> bool:
    """Whether a row is about networks trained with this objective; one that is not known can be that of a head."""
    if row.training:
        return bool(objective) and repr(parse_objective(objective)) == repr(parse_objective(row.training))
    return objective.partition(":")[0] in {"", _trained(row) or "ce"}


def _trained(row: PublishedRow) -> str:
    """What a network must be trained with for a row; nothing where any will do."""
    heads = Detector(row.detector, row.model).needs.heads
    return row.training or next((o for h in heads if (o := known_heads()[h].objective)), "")


def commands(suite: Suite, row: PublishedRow, root: str | Path) -> list[str]:
    """What to type for a published row: where its detector needs a network trained for it, first how to train that.

    Args:
        suite: the benchmark.
        row: one of its rows, with a detector.
        root: folder with the data sets. ``HELD_OUT`` and ``FILE`` stand for images and weights of the user's.

    Raises:
        InputError: its objective is not known.
    """
    own = next((m for m in suite.models if m.name == row.model), Model(row.model))
    objective = _trained(row)
    bench = ["nescio", "bench", "--suite", suite.name, "--data-root", str(root), "--detector", row.detector, "--model"]
    if not objective:
        return [shlex.join([*bench, row.model, *(("--weights", "FILE") if own.weights == "user" else ())])]
    parse_objective(objective)  # a mistake in it must not show after hours
    out = f"runs/{suite.name}-{re.sub('[:,]', '-', objective)}-{row.model.rpartition(':')[2]}"
    found = next((need.found for need in suite.needs(Path(root)) if need.role == "train"), None)
    train = ["nescio", "train", "--arch", row.model, "--objective", objective, "--recipe", own.recipe or "ssod"]
    train += ["--init", init] if (init := row.init or own.init) else []
    train += ["--train", found or str(Path(root) / (suite.train or suite.id) / "train"), "--val", "HELD_OUT"]
    train += ["--out", out]
    return [shlex.join(train), shlex.join([*bench, out])]


def _averaged(suite: Suite, row: PublishedRow) -> set[str]:
    """The sets that a row's average is over: its own, or where it prints nothing else, all of the suite."""
    return (set(row.values) - {AVERAGE}) or set(suite.ood)
