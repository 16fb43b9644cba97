"""What the page says in words: what the best detector does, how far published numbers are, how to run it again."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from nescio.evaluation.results import Results
from nescio.evaluation.suites.suite import AVERAGE


def ranked(results: Results) -> list[str]:
    """The detectors by average AUROC, the best first."""
    return sorted(results.detectors, key=lambda d: -results.average(d, "auroc"))


def class_names(results: Results) -> list[str]:
    """The names of the classifier's classes in the order of the labels; empty where they are not known."""
    return results.manifest["model"].get("classes") or []


def class_name(index: int, names: Sequence[str]) -> str:
    """A class's name, or its number where none is known."""
    return names[index] if index < len(names) else str(index)


def digits(values: Iterable[float]) -> int:
    """Significant digits that tell apart values a twentieth of their span away from each other: 3 to 10."""
    finite = [v for v in values if math.isfinite(v)]
    span = max(finite) - min(finite) if finite else 0.0
    if not span:
        return 3
    first, last = (math.floor(math.log10(v)) for v in (max(map(abs, finite)), span / 20))
    return min(10, max(3, first - last + 1))


def published(results: Results) -> dict[str, Any] | None:
    """How far our numbers are from published ones, over all sets that a paper prints, or averages where it has no more.

    ``where`` names the papers, ``several`` says whether there are more than one; ``count`` pairs are compared, and
    ``fpr95`` and ``auroc`` are the mean absolute differences, shares in [0, 1].
    """
    single = {key: p for key, p in results.published.items() if key[1] != AVERAGE}
    compared = single or results.published
    if not compared:
        return None
    gaps: dict[str, list[float]] = {"fpr95": [], "auroc": []}
    for (detector, ood), p in compared.items():
        for metric, found in gaps.items():
            ours = results.average(detector, metric) if ood == AVERAGE else getattr(results.row(detector, ood), metric)
            found.append(abs(ours - getattr(p, metric)))
    papers = list(dict.fromkeys(p.where.partition(", Table")[0] for p in compared.values()))
    means = {metric: float(np.mean(found)) for metric, found in gaps.items()}
    return {"where": " and ".join(papers), "several": len(papers) > 1, "count": len(compared), **means}


def percent(share: float, digits: int = 2) -> str:
    """A share in percent as the page says it: halves away from zero, as the page's script rounds them."""
    return str(Decimal(round(share * 100, 4)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def rest(share: float, digits: int = 2) -> str:
    """What is missing to 100 %, so that the two add up as they are printed."""
    return str(100 - Decimal(percent(share, digits)))


def size(n: int) -> str:
    """Bytes as a person reads them."""
    if n < 1000:
        return f"{n} bytes" if n else "nothing"
    return f"{n / 1e6:,.1f} MB" if n >= 1_000_000 else f"{n / 1e3:,.1f} kB"


def breakable(spec: str) -> Markup:
    """A detector's name for the page: where it is too long, it is broken between stages."""
    return Markup(re.sub(r"([+,(])", r"\1<wbr>", str(escape(spec))))  # noqa: S704 - escaped just before


UNKNOWN = {
    "MODEL": "the network, which was made in Python (--model also takes module:factory)",
    "WEIGHTS": "a file of its weights (its hash is below)",
    "IMAGES": "images that were given in Python",
}


SETS = {"train": "--train", "calibrate": "--held-out", "id": "--id"}
"""The options that name the sets of a manifest which are not OOD."""


def unknown(command: str) -> list[str]:
    """What stands for what in a command that cannot be run as it is."""
    words = re.split(r"[\s=]+", command)
    return [f"{word} stands for {what}" for word, what in UNKNOWN.items() if word in words]


def command(manifest: dict[str, Any]) -> str:
    """The command that gives these numbers, as far as the manifest knows it: ``UNKNOWN`` words stand for the rest."""
    data, detectors = manifest.get("data", {}), manifest.get("detectors", {})
    oods = [name for name in data if name not in SETS]
    opened = manifest["model"].get("opened") or {"model": "MODEL", "weights": "WEIGHTS"}
    ranges = {spec: written for written, specs in manifest.get("ranges", {}).items() for spec in specs}
    options = manifest.get("options", {})
    lines = [
        ["nescio", "bench"],
        *([["--suite", manifest.get("suite_file") or manifest["suite"]]] if "suite" in manifest else []),
        [word for option, value in opened.items() for word in (f"--{option}", value)],
        *([["--untrained"]] if manifest["model"].get("untrained") else []),
        *([["--transform", manifest["transform"]]] if manifest["transform"] else []),
        *([option, data[r].get("opened") or "IMAGES"] for r, option in SETS.items() if r in data),
        *(["--ood", f"{name}={data[name].get('opened') or 'IMAGES'}"] for name in oods),
        *(["--detector", written] for written in dict.fromkeys(ranges.get(d, d) for d in detectors)),
    ]
    if manifest.get("equal"):
        lines.append(["--equal"])
    if manifest.get("resamples"):
        lines.append(["--intervals", str(manifest["resamples"])])
    if manifest.get("precision", "float32") != "float32":
        lines.append(["--engine", manifest["engine"], "--precision", manifest["precision"]])
    for option, name, usual in (("--bank-dtype", "dtype", "float32"), ("--max-bad", "max_bad", 0.01)):
        if options.get(name, usual) != usual:
            lines.append([option, str(options[name])])
    lines.append(["--out", "RESULTS", "--report"])
    return " \\\n    ".join(shlex.join(line) for line in lines)
