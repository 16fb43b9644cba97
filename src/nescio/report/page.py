"""The report page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from nescio import metrics
from nescio.data.decode import decode
from nescio.data.sources import Source
from nescio.files import write_whole
from nescio.report import figures
from nescio.results import Results, Scored

_SHOWN = 12
_SIDE = 96


@dataclass(frozen=True)
class Example:
    """A picture as a data address, what it is, and its score."""

    picture: str
    name: str
    score: float


def write_report(results: Results, path: Path) -> None:
    """Write the page: a summary in words, the table, histograms, ROC curves, and the images that were got wrong."""
    best = max(results.detectors, key=lambda d: results.average(d, "auroc"))
    environment = jinja2.Environment(loader=jinja2.PackageLoader("nescio", "report"), autoescape=True)
    page = environment.get_template("page.html.j2").render(
        results=results,
        best=best,
        baseline=results.detectors[0],
        sets=[s.name for s in results.ood_sets],
        histograms={d: figures.histograms(results, d) for d in dict.fromkeys((best, results.detectors[0]))},
        roc=figures.roc_curves(results),
        accepted={s.name: _examples(s, best, highest=True, results=results) for s in results.ood_sets},
        rejected=_examples(results.id_set, best, highest=False, results=results),
    )
    write_whole(path, page)


def _examples(scored: Scored, detector: str, *, highest: bool, results: Results) -> list[Example]:
    """The images of a set on the wrong side of the 95 % threshold, the worst first; none where they are not at hand."""
    scores, rows, source = scored.scores[detector], scored.rows[detector], scored.source
    if source is None:
        return []
    threshold = metrics.threshold_at_tpr(results.id_set.scores[detector])
    order = np.argsort(-scores if highest else scores, kind="stable")[:_SHOWN]
    wrong = [i for i in order if (scores[i] >= threshold) == highest]
    return [Example(_picture(source, int(rows[i])), source.name(int(rows[i])), float(scores[i])) for i in wrong]


def _picture(source: Source, row: int) -> str:
    image = decode(source.read(row))
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
