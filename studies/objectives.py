"""Ways to train × ways to score, on one network and one data set.

    python studies/objectives.py cifar10 [SEED]   a small network on 20,000 images of CIFAR-10, two seeds; two cores
    python studies/objectives.py resnet18 [SEED]  the CIFAR ResNet-18 on 45,000 of them, three seeds; needs a GPU
    python studies/objectives.py steps            what a step costs against cross entropy's, side by side
    python studies/objectives.py tables           all tables, from what is stored, into studies/objectives/tables.md

Each network is judged by its own score and by Energy, KNN and FM + LS on its features. Every run leaves one JSON in
studies/objectives/ and is not run again while that is there; an interrupted one goes on at its last epoch. Outliers,
for the objectives that are given some, are Tiny ImageNet's scene classes: the set 'scenes' is of the same kind, though
of other photographs. Images: $NESCIO_SHARED, or ../shared next to the checkout.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nescio
from nescio.core.files import write_whole
from nescio.methods.objective import parse_objective
from nescio.training import Hardware, Recipe, Sets, Start, train

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import ROOT, WORK, data, machine, parser, spread, tests

STORED = ROOT / "studies/objectives"
STEPS = STORED / "steps.json"
POST_HOC = ("energy", "knn", "fmls")


@dataclass(frozen=True, eq=False)
class Way:
    """A way to train.

    Attributes:
        objective: its spec.
        own: the scores that its paper uses; where empty, the objective's.
        options: what ``train`` is told beside the setup's.
        recipe: changes of the setup's recipe.
    """

    objective: str
    own: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For files."""
        return self.objective.replace(":", "-").replace(",", "-")

    @property
    def detectors(self) -> tuple[str, ...]:
        """Its own, and those that every network is judged by."""
        own = self.own or (parse_objective(self.objective).detector,)
        return tuple(dict.fromkeys(own + POST_HOC))


OUTLIERS = {"outliers": data("tiny-imagenet-scenes/test")}
WAYS = (
    Way("ce", ("msp",)),
    Way("ssod"),
    Way("ssod:start=3"),
    Way("logitnorm"),
    Way("godin", ("godin", "godin:read=g")),
    Way("godin:similarity=inner", ("godin", "godin:read=g")),
    Way("mos:groups=random"),
    Way("vos:start=3,queue=500"),
    Way("conf:width=16", recipe={"optimizer": "adamw:lr=1e-3"}),  # a GAN wants a small step, and is slow at full width
    Way("supcon", ("knn",)),
    Way("cider", ("knn",)),
    Way("oe", (), OUTLIERS),
    Way("ssod:start=3,outliers=1", (), OUTLIERS),
    Way("bal"),
    # each image passes eight times: as many steps as the others, of half the images
    Way("csi", recipe={"epochs": 4, "batch_size": 64, "optimizer": "sgd:lr=0.05,weight_decay=5e-4,nesterov=true"}),
)
OOD = tests("textures", "scenes", "mnist", "cifar100")


@dataclass(frozen=True)
class Setup:
    """A network and what it is trained on."""

    train: str
    val: str
    recipe: Recipe
    seeds: tuple[int, ...]
    options: dict[str, Any]
    device: str = "cpu"


PIXELS = "mean=0.4914/0.4822/0.4465,std=0.2023/0.1994/0.2010"
SETUPS = {
    "cifar10": Setup(
        data("cifar10/train") + "[:20000]",
        data("cifar10/train") + "[45000:]",
        Recipe.named("cosine", epochs=8, schedule="cosine:warmup=1"),
        (0, 1),
        {"model": "studies.networks:small_resnet", "size": 32, "transform": PIXELS},
    ),
    "resnet18": Setup(
        data("cifar10/train") + "[:45000]",
        data("cifar10/train") + "[45000:]",
        Recipe.named("cifar", epochs=100, precision="bf16"),
        (0, 1, 2),
        {"model": "resnet18-cifar", "size": 32},
        device="cuda",
    ),
}


def file_of(study: str, way: Way, seed: int) -> Path:
    """Where a run's results are."""
    return STORED / f"{study}-{way.name}-{seed}.json"


def run(study: str, way: Way, seed: int) -> None:
    """Train, judge, and store one JSON."""
    setup, stored = SETUPS[study], file_of(study, way, seed)
    if stored.exists():
        return
    print(stored.stem, flush=True)
    out = WORK / f"objectives-{stored.stem}"
    recipe = dataclasses.replace(setup.recipe, **way.recipe, seed=seed)
    trained = train(
        out, model=Start(**setup.options), sets=Sets(setup.train, setup.val, **way.options), objective=way.objective,
        recipe=recipe, hardware=Hardware(device=setup.device), resume=out.exists(),
    )  # fmt: skip
    results = nescio.bench(
        nescio.Session(nescio.load_classifier(str(out), device=setup.device), cache=WORK / "banks", progress=False),
        id=data("cifar10/test"),
        ood=OOD,
        detectors=way.detectors,
        train=setup.train,
    )
    record = {
        "command": f"python studies/objectives.py {study}",
        "seed": seed,
        "seconds": round(trained.made_with["seconds"]),
        "machine": machine(),
        "settings": trained.settings,
        "own": list(way.detectors[: len(way.own) or 1]),
        "id_accuracy": results.rows[0].id_accuracy,
        "results": {
            d: {r.ood: {"fpr95": r.fpr95, "auroc": r.auroc} for r in results.rows if r.detector == d}
            for d in results.detectors
        },
    }
    STORED.mkdir(exist_ok=True)
    write_whole(stored, json.dumps(record, indent=1) + "\n")


def steps() -> None:
    """Measure what a step of each way costs, on the small network."""
    others = [way.objective for way in WAYS if way.objective != "ce"]
    long = ["--rounds", "15", "--steps", "8"]  # enough for VOS's queues to be full in most of them
    command = [str(ROOT / "benchmarks/training.py"), "--case", "small", "--batch", "128", *long]
    options = ["--out", str(STEPS), "--objectives", *others]
    subprocess.run([sys.executable, *command, *options], check=True)


def stored(study: str) -> dict[Way, list[dict[str, Any]]]:
    """The records of each way that has some."""
    files = {way: [file_of(study, way, seed) for seed in SETUPS[study].seeds] for way in WAYS}
    found = {way: [json.loads(f.read_text()) for f in each if f.exists()] for way, each in files.items()}
    return {way: records for way, records in found.items() if records}


def averages(records: list[dict[str, Any]], detector: str) -> str:
    """FPR95 / AUROC of a score, averaged over the sets."""
    tables = [r["results"][detector] for r in records]
    means = [[statistics.mean(t[o][m] for o in OOD) for t in tables] for m in ("fpr95", "auroc")]
    return " / ".join(map(spread, means))


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows))


def short_table(study: str) -> str:
    """A row for each way: what it costs, and its scores, averaged over the sets."""
    costs = next(iter(json.loads(STEPS.read_text()).values())) if study == "cifar10" and STEPS.exists() else {}
    times = {objective: f"{cost['time']:.2f} ×" for objective, cost in costs.items()} | {"ce": "1"}
    rows = []
    for way, records in stored(study).items():
        own = records[0]["own"][0]
        said = [f"`{way.objective}`", times.get(way.objective, ""), str(len(records))]
        scores = [f"`{own}` {averages(records, own)}", *(averages(records, detector) for detector in POST_HOC)]
        rows.append([*said, spread([r["id_accuracy"] for r in records]), *scores])
    return markdown(["training", "step", "seeds", "ID accuracy", "its own score", *(f"`{d}`" for d in POST_HOC)], rows)


def table(study: str) -> str:
    """A row for each way and score: FPR95 / AUROC by set and on average."""
    rows = []
    for way, records in stored(study).items():
        for detector in records[0]["results"]:
            each = [r["results"][detector] for r in records]
            cells = [" / ".join(spread([t[o][m] for t in each]) for m in ("fpr95", "auroc")) for o in OOD]
            own = f"**`{detector}`**" if detector in records[0]["own"] else f"`{detector}`"
            rows.append([f"`{way.objective}`", own, *cells, averages(records, detector)])
    return markdown(["training", "score", *OOD, "average"], rows)


def main() -> None:
    """Run what is missing of a study, or of some of its seeds, then write and print every table."""
    arguments = parser(__doc__)
    arguments.add_argument("study", nargs="?", default="tables", choices=(*SETUPS, "steps", "tables"))
    arguments.add_argument("seeds", nargs="*", type=int)
    given = arguments.parse_args()
    study, seeds = given.study, given.seeds
    os.chdir(ROOT)  # where studies.networks is found
    if study == "steps":
        steps()
    for seed in (seeds or SETUPS[study].seeds) if study in SETUPS else ():
        for way in WAYS:
            run(study, way, seed)
    done = [s for s in SETUPS if any(file_of(s, w, seed).exists() for w in WAYS for seed in SETUPS[s].seeds)]
    tables = "\n\n".join(
        f"## {name}\n\nFPR95 / AUROC, percent, averaged over the sets; a step's time is against cross entropy's.\n\n"
        f"{short_table(name)}\n\nBy set; bold: the training's own score.\n\n{table(name)}"
        for name in done
    )
    write_whole(STORED / "tables.md", f"# Ways to train × ways to score\n\n{tables}\n")
    print(tables)


if __name__ == "__main__":
    main()
