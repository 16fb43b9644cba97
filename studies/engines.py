"""What engines and lowered precision cost and gain: features, labels, AUROC and FPR95 of twelve detectors, images/s.

    python studies/engines.py            everything that is not stored yet, then the tables
    python studies/engines.py judge      all but the speed
    python studies/engines.py speed      the speed alone: on a machine that does nothing else
    python studies/engines.py tables     the tables, from what is stored

Three networks: the reference DenseNet, EfficientNet-Lite0 with its ImageNet weights, and that of ``nescio quickstart``,
which is trained first where it is missing. Each engine and precision makes the features that detectors are fitted on,
and those that they judge. All is compared with the engine ``plain`` in float32, which is the network as its user has
it. One JSON a network in studies/engines/; what stands there is not run again. --network takes part of its name.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nescio
from nescio.core.errors import InputError
from nescio.core.files import write_whole
from nescio.data.loader import read_batches
from nescio.data.source import open_source
from nescio.quickstart import OOD, quickstart

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import ROOT, WORK, data, densenet, in_turns, parser, stamp, store, tests

STORED, CACHE = ROOT / "studies/engines", WORK / "engines"
PLAIN = "plain float32"
RUNS = (
    PLAIN,
    "torch float32",
    "torch bf16",
    "openvino float32",
    "openvino bf16",
    "compile float32",
    "compile bf16",
    "torch fp16",
    "openvino fp16",
)
"""Engine and precision."""
DETECTORS = (
    "msp",
    "maxlogit",
    "energy",
    "{react}+energy",
    "{fm}+energy",
    "{fm}+{react}+energy",
    "ls+energy",
    "{react}+ls+energy",
    "{fm}+ls+energy",
    "{fm}+{react}+ls+energy",
    "{fm}+{react}+ls+msp",
    "cosine",
)
"""Those of the reference table."""
ALLOWED = 0.05
"""Points of AUROC that bf16 may lose on average."""
BATCH, ROUNDS = 32, 15


@dataclass(frozen=True)
class Case:
    """A network and what it is judged on."""

    name: str
    classifier: Callable[[], nescio.Classifier]
    train: str
    id: str
    ood: Mapping[str, str]
    react: str = "react:q=0.98"
    fm: str = "fm:p=0.6"

    @property
    def detectors(self) -> list[str]:
        """The twelve, with the settings of this network."""
        return [d.format(react=self.react, fm=self.fm) for d in DETECTORS]

    @property
    def stored(self) -> Path:
        """Its numbers."""
        return STORED / f"{self.name}.json"


def small() -> nescio.Classifier:
    """The network of the quickstart; trained first, where it is missing."""
    if not list(WORK.glob("quickstart/model-*/model.safetensors")):
        quickstart(WORK / "quickstart")
    return nescio.load_classifier(str(next(WORK.glob("quickstart/model-*"))), device="cpu")


def made(name: str) -> str:
    """A set that the quickstart makes."""
    return str(WORK / f"quickstart/data/{name}.parquet")


def cut(sets: Mapping[str, str]) -> dict[str, str]:
    """At most 1,000 images of each."""
    return {name: f"{spec}[:1000]" for name, spec in sets.items()}


CASES = (
    Case(
        "densenet-cifar10",
        densenet,
        data("cifar10/train") + "[:2000]",
        data("cifar10/test") + "[:2000]",
        cut(tests("textures", "mnist", "scenes")),
        react="react:clip=1.6",
    ),
    Case(
        "lite0-imagenet",
        lambda: nescio.load_classifier("efficientnet-lite0", device="cpu"),
        data("imagenet-sample/train"),
        data("imagenet-sample/test"),
        cut(tests("textures", "scenes")),
        fm="fm:p=0.3",
    ),
    Case("quickstart", small, made("train") + "[:5000]", made("id"), {name: made(name) for name in (*OOD, "glyphs")}),
)


def session(classifier: nescio.Classifier, run: str) -> nescio.Session:
    """The network as an engine runs it in a precision."""
    engine, precision = run.split()
    return nescio.Session(classifier, engine=engine, precision=precision, cache=CACHE, batch_size=BATCH)


def load(case: Case) -> dict[str, Any]:
    """What is stored of a case."""
    return json.loads(case.stored.read_text()) if case.stored.exists() else {}


def keep(case: Case, known: dict[str, Any]) -> None:
    """Store it."""
    STORED.mkdir(exist_ok=True)
    write_whole(case.stored, json.dumps(known, indent=1))


def judge(case: Case, some: str = "") -> None:
    """Features, labels and detectors by each run that is not stored yet."""
    known = load(case)
    if not (todo := [run for run in RUNS if run not in known and some in run]):
        return
    classifier = case.classifier()
    sets = {"id": case.id, **case.ood}
    for run in todo:
        running = session(classifier, run)
        try:
            results = nescio.bench(running, train=case.train, id=case.id, ood=case.ood, detectors=case.detectors)
            if running.bank(case.id).manifest["key"]["engine"] != run.split()[0]:
                raise InputError("it cannot run this network, and PyTorch did")
        except InputError as e:
            known[run] = {"why": str(e).partition(";")[0]}
        else:
            known[run] = {
                "detectors": {
                    d: {name: [results.row(d, name).auroc, results.row(d, name).fpr95] for name in case.ood}
                    for d in case.detectors
                },
                **apart(running, session(classifier, PLAIN), sets),
            }
        print(case.name, run, {k: v for k, v in known[run].items() if k != "detectors"}, flush=True)
        keep(case, known)


def apart(running: nescio.Session, plain: nescio.Session, sets: Mapping[str, str]) -> dict[str, Any]:
    """How far features are from the plain ones, relative to the length of these, and how many labels change."""
    far, changed = [], []
    for spec in sets.values():
        ours, theirs = (s.features(spec) for s in (running, plain))
        h, exact = ours.record().h, theirs.record().h
        far.append((h - exact).norm(dim=1) / exact.norm(dim=1))
        changed.append(torch.from_numpy(ours.pred != theirs.pred))
    distance, labels = torch.cat(far), torch.cat(changed)
    return {
        "mean": distance.mean().item(),
        "largest": distance.max().item(),
        "labels": labels.double().mean().item(),
        "images": len(labels),
    }


@torch.no_grad()
def speed(case: Case) -> None:
    """Images per second of the network alone on a batch of real images, in turns; of the runs that work."""
    known = load(case)
    todo = [run for run in RUNS if "detectors" in known.get(run, {})]
    if not todo or all("speed" in known[run] for run in todo):
        return
    classifier = case.classifier()
    transform = classifier.transform
    images = next(iter(read_batches(open_source(case.id), transform, 0, BATCH, 0))).images
    x = transform.normalise(images).contiguous(memory_format=torch.channels_last)
    sessions = {run: session(classifier, run) for run in todo}
    calls = {run: functools.partial(one, x) for run, one in sessions.items()}
    times = in_turns(calls, ROUNDS, warm=3)
    for run in todo:
        ratios = [b / a for a, b in zip(times[run], times[PLAIN], strict=True)]
        known[run]["speed"] = {
            "images/s": round(BATCH / statistics.median(times[run]), 1),
            "gain": round(statistics.median(ratios), 3),
            "spread": [round(v, 3) for v in (min(ratios), max(ratios))],
        }
        print(case.name, run, known[run]["speed"], flush=True)
    keep(case, known)


def lost(known: Mapping[str, Any], run: str, which: int) -> dict[str, dict[str, float]]:
    """Points that a run loses, by detector and OOD set: of AUROC (0), or FPR95 (1), where more is worse."""
    sign = (1, -1)[which]
    plain, own = known[PLAIN]["detectors"], known[run]["detectors"]
    return {d: {ood: 100 * sign * (plain[d][ood][which] - own[d][ood][which]) for ood in plain[d]} for d in plain}


def number(value: float, digits: int = 2) -> str:
    """Without a negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def average(points: Mapping[str, Mapping[str, float]]) -> float:
    """Over detectors and OOD sets."""
    return statistics.mean(v for row in points.values() for v in row.values())


def mean_on(points: Mapping[str, Mapping[str, float]], ood: str) -> float:
    """Over detectors, on one OOD set."""
    return statistics.mean(row[ood] for row in points.values())


def summary(case: Case, known: Mapping[str, Any]) -> list[str]:
    """A row for each run."""
    lines = []
    for run in RUNS:
        found = known.get(run, {})
        if "detectors" not in found:
            continue
        fast = " | "
        if rate := found.get("speed"):
            low, high = rate["spread"]
            fast = f"{rate['images/s']:,.0f} | {rate['gain']:.2f} × ({low:.2f} to {high:.2f})"
        area, fpr = lost(known, run, 0), lost(known, run, 1)
        worst = max((v, d, ood) for d, row in area.items() for ood, v in row.items())
        where = "" if worst[0] < 0.005 else f" (`{worst[1]}`, {worst[2]})"
        lines.append(
            f"| {case.name} | {run} | {fast} | {found['mean']:.1e} | {found['largest']:.1e} "
            f"| {found['labels']:.2%} | {number(average(area))} | {number(worst[0])}{where} | {number(average(fpr))} |"
        )
    return lines


def by_set(case: Case, known: Mapping[str, Any]) -> list[str]:
    """AUROC and FPR95 that are lost, averaged over detectors, on each OOD set."""
    lines = []
    for run in RUNS[1:]:
        if "detectors" in known.get(run, {}):
            area, fpr = lost(known, run, 0), lost(known, run, 1)
            of = {ood: [number(mean_on(points, ood)) for points in (fpr, area)] for ood in case.ood}
            cells = ", ".join(f"{ood} {' / '.join(pair)}" for ood, pair in of.items())
            lines.append(f"| {case.name} | {run} | {cells} |")
    return lines


def by_detector(case: Case, known: Mapping[str, Any], runs: list[str]) -> list[str]:
    """AUROC lost, averaged over OOD sets, of each detector."""
    areas = [lost(known, run, 0) if "detectors" in known.get(run, {}) else None for run in runs]
    return [
        f"| {case.name} | `{d}` | "
        + " | ".join("" if area is None else number(statistics.mean(area[d].values())) for area in areas)
        + " |"
        for d in case.detectors
    ]


def where(case: Case, known: Mapping[str, Any], run: str) -> str:
    """What bf16 loses on average, and the detectors and OOD sets on which it loses more than is allowed."""
    points = lost(known, run, 0)
    mean = average(points)
    cells = [(v, f"`{d}` on {ood} {number(v)}") for d, row in points.items() for ood, v in row.items() if v > ALLOWED]
    more = "; ".join(text for _, text in sorted(cells, reverse=True)) or "nowhere"
    judged = "within" if mean <= ALLOWED else "**beyond**"
    return f"- {case.name}, {run}: {number(mean)} points on average, {judged} the {ALLOWED:g}. More than that: {more}."


def tables() -> None:
    """Write studies/engines/tables.md."""
    stored = [(case, known) for case in CASES if (known := load(case))]
    done = {run for _, known in stored for run in known if "detectors" in known[run]}
    low = [run for run in RUNS if run in done and not run.endswith("float32")]
    why = [f"{case.name}, {run}: {known[run]['why']}" for case, known in stored for run in known if "why" in known[run]]
    head = "network | engine | images/s | gain | mean distance | largest | new labels | AUROC lost | most | FPR95 lost"
    lines = [
        "# Engines and precision at extraction",
        "",
        f"Against plain PyTorch in float32. Images/s: the network alone, batches of {BATCH}, {ROUNDS} rounds in turns.",
        "Gain: the median of the ratios of times, and their range. Distance: of an image's features, relative to their",
        "length. Points lost: of AUROC and FPR95 in percent, averaged over twelve detectors and all OOD sets; negative",
        "points are won.",
        stamp("studies/engines.py"),
        "",
        "## Summary",
        "",
        f"| {head} |",
        f"| --- | --- |{' ---: |' * 8}",
        *(row for case, known in stored for row in summary(case, known)),
        "",
        *(f"- Not run: {reason}" for reason in why),
        "",
        "## Where bf16 loses more",
        "",
        f"Points of AUROC; {ALLOWED:g} are allowed on average over detectors and OOD sets.",
        "",
        *(where(case, known, run) for case, known in stored for run in low if run in known and run.endswith("bf16")),
        "",
        "## By OOD set",
        "",
        "Points of FPR95 / AUROC lost, averaged over the twelve detectors.",
        "",
        "| network | engine | FPR95 / AUROC |",
        "| --- | --- | --- |",
        *(row for case, known in stored for row in by_set(case, known)),
        "",
        "## By detector",
        "",
        "Points of AUROC lost, averaged over the OOD sets.",
        "",
        f"| network | detector | {' | '.join(low)} |",
        f"| --- | --- |{' ---: |' * len(low)}",
        *(row for case, known in stored for row in by_detector(case, known, low)),
    ]
    store("engines/tables.md", lines)


def main() -> None:
    """Run what is missing."""
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("what", nargs="?", choices=("all", "judge", "speed", "tables"), default="all")
    options.add_argument("--network", default="")
    options.add_argument("--run", default="", help="part of an engine and precision to judge: 'torch bf16'")
    chosen = options.parse_args()
    for case in (c for c in CASES if chosen.network in c.name):
        if chosen.what in ("all", "judge"):
            judge(case, chosen.run)
        if chosen.what in ("all", "speed"):
            speed(case)
    if chosen.what in ("all", "tables"):
        tables()


if __name__ == "__main__":
    main()
