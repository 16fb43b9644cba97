"""What choosing a detector without OOD images costs, against the best choice in hindsight.

    python studies/recommend.py            every model below, then the tables
    python studies/recommend.py tables     the tables, from what is stored

For each model every detector (and, apart, a grid of FM + LS settings) is judged on the proxies, from ID validation
images alone, and on real OOD sets with other ID images. The regret of a rule is what its choice loses, averaged over
the OOD sets, against the best detector on them. One JSON a model in studies/recommend/; none is run again while that
is there. Images and weights: $NESCIO_SHARED, or ../shared next to the checkout; the networks but the first are trained
where their folder ($NESCIO_STUDY_WORK, as in studies/ssod.py) is not there yet.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nescio
from nescio.core.files import write_whole
from nescio.evaluation.proxies import PROXIES
from nescio.evaluation.select import Choice, recommend, tune
from nescio.run.session import Session

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from studies.ssod import CIFAR10, TINY, load, run

from _common import ROOT, WORK, data, densenet, parser, tests

STORED = ROOT / "studies/recommend"
GRID = "fm:p=0.1..0.9+react:q=0.8|0.9|0.95|0.98|0.99|0.995+ls+energy"
FIXED = {"fmls": "fmls", "energy": "energy", "msp": "msp", "knn": "knn"}
PAPERS_P = "fm:p=0.6+react:q=0.98+ls+energy"
"""The preset's own setting, as a point of the grid."""
SHUFFLES = ("pixels", "tiles")


@dataclass(frozen=True)
class Case:
    """A network, its data, and what it is judged on."""

    name: str
    classifier: Callable[[], nescio.Classifier]
    train: str
    val: str
    test: str
    ood: dict[str, str]


def trained(setup: Any) -> nescio.Classifier:
    """The network of studies/ssod.py that was trained with cross entropy, seed 0."""
    folder = WORK / f"{setup.name}-ce-0"
    if not (folder / "model.safetensors").exists():
        run(setup, "ce", 0)
    return load(folder / "model.safetensors")


CIFAR_OOD = tests("textures", "scenes", "mnist", "cifar100", "tiny-imagenet-scenes")
TEST = data("cifar10/test")
CASES = (
    Case("densenet-cifar10", densenet, data("cifar10/train"), f"{TEST}[:2500]", f"{TEST}[2500:]", CIFAR_OOD),
    Case("small-resnet-cifar10", lambda: trained(CIFAR10), CIFAR10.train, f"{CIFAR10.val}", TEST, CIFAR_OOD),
    Case("lite0-tiny-imagenet-20", lambda: trained(TINY), TINY.train, TINY.val, TINY.test, TINY.ood),
)


def judge(case: Case) -> None:
    """Proxies and truth of every candidate, as one JSON."""
    stored = STORED / f"{case.name}.json"
    if stored.exists():
        return
    print(case.name, flush=True)
    begin, classifier = time.time(), case.classifier()
    sources = {"val": nescio.open_source(case.val), "train": nescio.open_source(case.train)}
    choices = {
        "methods": recommend(Session(classifier, cache=WORK / "banks"), **sources),
        "grid": tune(Session(classifier, cache=WORK / "banks"), GRID, **sources),
    }
    specs = list(dict.fromkeys(c.detector for choice in choices.values() for c in choice.candidates))
    results = nescio.bench(
        nescio.Session(classifier, cache=WORK / "banks"), id=case.test, ood=case.ood, train=case.train, detectors=specs
    )
    truth = {s: {r.ood: [r.fpr95, r.auroc] for r in results.rows if r.detector == s} for s in specs}
    record = {
        "command": "python studies/recommend.py",
        "seconds": round(time.time() - begin),
        "id_accuracy": results.rows[0].id_accuracy,
        "validation_images": len(sources["val"]),
        "proxies": choices["methods"].proxies,
        **{name: {c.detector: judged(c, choice) for c in choice.candidates} for name, choice in choices.items()},
        "truth": truth,
    }
    STORED.mkdir(exist_ok=True)
    write_whole(stored, json.dumps(record, indent=1) + "\n")


def judged(candidate: Any, choice: Choice) -> dict[str, list[float]]:
    """AUROC and gap by proxy."""
    return {p: [round(candidate.auroc[p], 6), round(candidate.gap[p], 4)] for p in choice.proxies}


def chosen(record: dict[str, Any], among: str, proxies: tuple[str, ...]) -> str | None:
    """What ``tune`` and ``recommend`` take by these proxies; None where the network does not have them."""
    proxies = tuple(p for p in proxies if p in record["proxies"])
    if not proxies:
        return None
    mean = {s: [statistics.mean(v[p][i] for p in proxies) for i in (0, 1)] for s, v in record[among].items()}
    return max(mean, key=lambda s: (round(mean[s][0], 4), mean[s][1]))


def average(record: dict[str, Any], spec: str, metric: int) -> float:
    """Over the OOD sets: FPR95 (0) or AUROC (1)."""
    return statistics.mean(pair[metric] for pair in record["truth"][spec].values())


def regret(record: dict[str, Any], among: str, spec: str) -> tuple[float, float]:
    """Points of FPR95 and of AUROC that a choice loses against the best for each."""
    fpr95 = average(record, spec, 0) - min(average(record, s, 0) for s in record[among])
    auroc = max(average(record, s, 1) for s in record[among]) - average(record, spec, 1)
    return 100 * fpr95, 100 * auroc


def table(records: dict[str, dict[str, Any]], among: str, fixed: dict[str, str]) -> str:
    """Regret of each rule on each model, and on average."""
    rules: dict[str, Callable[[dict[str, Any]], str | None]] = {
        **{p: lambda r, p=p: chosen(r, among, (p,)) for p in PROXIES},
        "shuffles (pixels, tiles)": lambda r: chosen(r, among, SHUFFLES),
        "mixed (all)": lambda r: chosen(r, among, PROXIES),
        **{f"always `{name}`": lambda _, s=s: s for name, s in fixed.items()},
    }
    lines = ["| rule | " + " | ".join(records) + " | mean regret |", "|---" * (len(records) + 2) + "|"]
    for name, rule in rules.items():
        cells, losses = [], []
        for record in records.values():
            spec = rule(record)
            if spec is None or spec not in record[among]:
                cells.append("not to be had")
                continue
            losses.append(regret(record, among, spec))
            cells.append(f"{losses[-1][0]:.1f} / {losses[-1][1]:.1f} (`{spec}`)")
        mean = " / ".join(f"{statistics.mean(loss[i] for loss in losses):.1f}" for i in (0, 1)) if losses else ""
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {mean} |")
    at_random = [
        [statistics.mean(regret(r, among, s)[i] for s in r[among]) for i in (0, 1)] for r in records.values()
    ]  # fmt: skip
    cells = [f"{f:.1f} / {a:.1f}" for f, a in at_random]
    mean = " / ".join(f"{statistics.mean(pair[i] for pair in at_random):.1f}" for i in (0, 1))
    lines.append("| any, at random | " + " | ".join(cells) + f" | {mean} |")
    best = [max(r[among], key=lambda s, r=r: average(r, s, 1)) for r in records.values()]
    lines.append("| (best AUROC in hindsight) | " + " | ".join(f"`{s}`" for s in best) + " | |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("what", nargs="?", default="all", choices=("all", "tables"))
    what = arguments.parse_args().what
    os.chdir(ROOT)  # where studies.networks is found
    if what != "tables":
        for case in CASES:
            judge(case)
    records = {
        c.name: json.loads((STORED / f"{c.name}.json").read_text())
        for c in CASES
        if (STORED / f"{c.name}.json").exists()
    }
    print("Regret in percentage points, FPR95 / AUROC, averaged over the OOD sets (and the choice).\n")
    print("Among all methods and presets:\n\n" + table(records, "methods", FIXED))
    print("\nAmong 54 settings of FM + LS:\n\n" + table(records, "grid", {"p=0.6, q=0.98": PAPERS_P}))


if __name__ == "__main__":
    main()
