"""The report page: one HTML file that needs nothing else, and its figures as files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from nescio.core.files import whole
from nescio.core.spec import names_preset
from nescio.evaluation import tables
from nescio.evaluation.results import Results
from nescio.evaluation.results_files import drop_figures
from nescio.evaluation.sample import PER_SET
from nescio.evaluation.suites.suite import AVERAGE
from nescio.report import curves, data, patches, pictures, ranges, space, words
from nescio.report.figures import LINES, Plate, page_colour

LIMIT = 4_800_000
"""Bytes that the page may have; the pictures take what the rest leaves."""
FOLDER = "figures"
_BESIDE = {tables.INTERVAL: "interval", tables.DIFFERENCE: "difference"}


def write_report(results: Results, path: Path) -> None:
    """Write the page to ``path``, and each of its figures as PNG, SVG and PDF to the folder ``figures`` beside it.

    Written from the files of the same results, both come out the same byte for byte.
    """
    results = results.as_kept()
    ranked, columns = words.ranked(results), _columns(results)
    plates, how_mapped = _plates(results, ranked)
    along = {plate.name: plate for plate in ranges.range_plates(results)}
    plates |= along
    maps = patches.patch_maps(results)
    wrong = {d: pictures.mistakes(results, d) for d in ranked}
    views = _views(results, columns)
    numbers = data.embedded(results) | {"columns": columns, "views": list(views.values())}
    context = {
        "results": results,
        "manifest": results.manifest,
        "best": ranked[0],
        "row0": results.rows[0],
        "published": words.published(results),
        "accuracies": tables.published_accuracies(results),
        "columns": columns,
        "views": list(views),
        "lines": LINES,
        "rows": sorted(_rows(results), key=lambda row: ranked.index(row["detector"])),
        "plates": {name: (plate, plate.inline()) for name, plate in plates.items()},
        "curves": ranked[: curves.MOST_CURVES],
        "along": list(along),
        "how_mapped": how_mapped,
        "command": words.command(results.manifest),
        "unknown": words.unknown(words.command(results.manifest)),
        "maps": maps,
        "shown": pictures.SHOWN,
        "pictured": [s.name for s in (*results.ood_sets, results.id_set) if s.source is not None],
        "sample": results.sample,
        "per_set": PER_SET,
        "class_name": _class(results),
        "with_scores": pictures.with_scores,
        "folder": FOLDER,
    }
    room = LIMIT - len(_rendered(context | {"album": pictures.Album(0), "wrong": {}, "data": numbers}))
    album = pictures.gather(results, wrong, room)
    shown = {d: found for d, found in wrong.items() if d not in album.left_out}
    page = _rendered(context | {"album": album, "wrong": shown, "data": numbers | _numbered(album, shown, ranked[0])})
    if maps:
        plates["patches"] = patches.plate(maps)
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n", errors="backslashreplace")
        path.unlink(missing_ok=True)  # an earlier page must not stand beside other figures than its own
        for plate in plates.values():
            plate.save(path.parent / FOLDER)
        drop_figures(path.parent, keep=plates)  # those of an earlier page that this one does not have


def _plates(results: Results, ranked: Sequence[str]) -> tuple[dict[str, Plate], str]:
    """The figures that these results have something for, by name; and how the map of features was made."""
    best = ranked[: curves.MOST_CURVES]
    found: list[Plate | None] = [
        curves.score_histograms(results, ranked[0]),
        curves.roc_curves(results, best),
        curves.risk_coverage(results, best),
    ]
    how, sample = "", results.sample
    if sample is not None:
        mapped, how = space.feature_map(sample)
        found += [mapped, space.cosines(sample)]
        if sample.activation is not None:
            found.append(space.activation(sample.activation, _class(results)))
    return {plate.name: plate for plate in found if plate is not None}, how


def _class(results: Results) -> str:
    """The class whose activation is shown."""
    if results.sample is None or results.sample.activation is None:
        return ""
    return words.class_name(results.sample.activation.label, words.class_names(results))


def _rendered(context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nescio", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # a script element ends at the first "</", whatever stands around it
    environment.filters["embedded"] = lambda value: json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    environment.filters |= {
        "percent": words.percent,
        "rest": words.rest,
        "size": words.size,
        "breakable": words.breakable,
    }
    environment.filters["ink"] = page_colour
    return environment.get_template("page.html.j2").render(context)


def _numbered(album: pictures.Album, wrong: Mapping[str, Any], best: str) -> dict[str, Any]:
    """Which pictures each detector's mistakes are; the best detector's pictures stand in the page itself."""
    number = album.numbers()
    there = {m.place for found in wrong.get(best, {}).values() for m in found}
    return {
        "pictures": [
            {"name": p.name, "label": p.label, "taken": p.taken, "tiny": p.tiny}
            | ({} if place in there else {"source": p.source})
            for place, p in album.pictures.items()
        ],
        "wrong": {
            d: {
                name: [[number[m.place], score] for m, score in pictures.with_scores(found) if m.place in number]
                for name, found in by_set.items()
            }
            for d, by_set in wrong.items()
        },
    }


def _columns(results: Results) -> list[str]:
    """The average, those of groups where there are any, then the OOD sets."""
    return [AVERAGE, *(g for g in results.groups if g != AVERAGE), *(s.name for s in results.ood_sets)]


def _views(results: Results, columns: Sequence[str]) -> dict[str, list[int]]:
    """What the table may be reduced to, by name: numbers of its columns."""
    groups = {name: members for name, members in results.groups.items() if name != AVERAGE}
    shown = {"all": list(columns)}
    if len(results.ood_sets) > 1:
        shown |= {"averages": [AVERAGE, *groups]}
    shown |= {name.removesuffix(f" {AVERAGE}"): [AVERAGE, name, *members] for name, members in groups.items()}
    return {name: [i for i, c in enumerate(columns) if c in wanted] for name, wanted in shown.items()}


def _rows(results: Results) -> list[dict[str, Any]]:
    """The rows in the order of the detectors.

    ``numbers`` are FPR95 and AUROC by column: ``text`` in percent, whether it is the ``best``, and what stands below
    it: ``interval``, ``published``, ``difference``. ``spec`` is what the name of a preset stands for, ``size`` the
    bytes of what was learned, ``seconds`` those of fitting and scoring without ``own_pass``, the stage that makes a
    pass of its own; ``beside`` says where the published values come from.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in tables.lines(results):
        if line.kind == tables.OURS:
            found[line.detector] = _row(results, line)
            continue
        row, what = found[line.detector], _BESIDE.get(line.kind, "published")
        if what == "published":
            row["beside"] = line.kind
        for ood, cell in line.cells.items():
            for number, text in zip(row["numbers"][ood], (cell.fpr95, cell.auroc), strict=True):
                number[what] = text
    return list(found.values())


def _row(results: Results, line: tables.Line) -> dict[str, Any]:
    about = results.manifest.get("detectors", {}).get(line.detector, {})
    numbers = {
        ood: [{"text": t, "best": b} for t, b in zip((cell.fpr95, cell.auroc), cell.best, strict=True)]
        for ood, cell in line.cells.items()
    }
    return {
        "detector": line.detector,
        "spec": about.get("spec", "") if names_preset(line.detector) else "",
        "size": about.get("bytes"),
        "seconds": results.average(line.detector, "seconds"),
        "own_pass": results.row(line.detector, results.ood_sets[0].name).own_pass,
        "numbers": numbers,
    }
