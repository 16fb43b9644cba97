"""SSOD against cross entropy, its ablations, and where its sampler looks.

    python studies/ssod.py cifar10          a small network from scratch, three seeds
    python studies/ssod.py tiny-imagenet    EfficientNet-Lite0 from its ImageNet weights, 128 px, three seeds
    python studies/ssod.py ablations        α, the balance, γ and the start of the OOD head, on the small network
    python studies/ssod.py cifar10-paper    the paper's CIFAR-10 protocol: ResNet-18 at 224 px; needs a GPU
    python studies/ssod.py candidates       changes of ours (studies/candidates.py), as the ablations
    python studies/ssod.py strong           an OOD head on a DenseNet at rest that reads 94.5 % of CIFAR-10 right
    python studies/ssod.py resolution       where the sampler looks on larger maps; needs tiny-imagenet's first run
    python studies/ssod.py tables           all tables, from what is stored, into studies/ssod/tables.md

Every run leaves one JSON in studies/ssod/ (command, seed, seconds, machine, results) and is not run again while that is
there; an interrupted one goes on at its last epoch, and its seconds are those of all sittings (null in five stored
runs, here and in studies/objectives/, that were resumed while only the last sitting was counted). Images:
$NESCIO_SHARED, or ../shared next to the checkout.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import nescio
from nescio.core.files import write_whole
from nescio.data.loader import read_batches
from nescio.explanation.maps import patch_maps
from nescio.methods.background import class_confidence, sure_positions
from nescio.methods.trained.ssod import SSODHead
from nescio.models import Classifier, load_classifier
from nescio.training import Hardware, Recipe, Sets, Start, train

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import studies.candidates  # noqa: F401 - registers its objectives

from _common import ROOT, WORK, data, densenet, machine, parser, spread, store, tests

STORED = ROOT / "studies/ssod"
POST_HOC = ("msp", "energy", "fmls")
OOD_HEAD = ("ssod", "ssod:pool=mean", "ssod:pool=top", "mean(ssod,energy)")
SEEDS = (0, 1, 2)
WATCHED = 900
"""Images of each OOD set that are looked at after each epoch."""


@dataclass(frozen=True)
class Setup:
    """A data set, a network and a recipe."""

    name: str
    train: str
    val: str
    test: str
    ood: dict[str, str]
    recipe: Recipe
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


CIFAR10 = Setup(
    "cifar10",
    data("cifar10/train") + "[:45000]",
    data("cifar10/train") + "[45000:]",
    data("cifar10/test"),
    tests("textures", "scenes", "mnist", "cifar100"),
    Recipe.named("cosine", epochs=12, schedule="cosine:warmup=1"),
    {
        "model": "studies.networks:small_resnet",
        "size": 32,
        "transform": "mean=0.4914/0.4822/0.4465,std=0.2023/0.1994/0.2010",
    },
)
ABLATION = Setup(
    "ablations", data("cifar10/train") + "[:20000]", CIFAR10.val, CIFAR10.test, CIFAR10.ood,
    Recipe.named("cosine", epochs=8, schedule="cosine:warmup=1"), CIFAR10.options,
)  # fmt: skip
TINY = Setup(
    "tiny-imagenet",
    data("tiny-imagenet-20/train") + "[:7500]",
    data("tiny-imagenet-20/train") + "[7500:]",
    data("tiny-imagenet-20/test"),
    {
        "scenes": data("tiny-imagenet-scenes/test"),
        "objects": data("tiny-imagenet-objects/test"),
        "textures": data("textures/test"),
        "mnist": data("mnist/test"),
    },
    Recipe.named("ssod", epochs=3, batch_size=64),
    {"model": "efficientnet-lite0", "init": "pretrained", "size": 128},
)


def file_of(setup: Setup, objective: str, seed: int) -> Path:
    """Where a run's results are."""
    return STORED / f"{setup.name}-{objective.replace(':', '-').replace(',', '-')}-{seed}.json"


def run(setup: Setup, objective: str, seed: int, *, boxes: bool = False) -> None:
    """Train, bench, and store one JSON."""
    stored = file_of(setup, objective, seed)
    name = stored.stem
    if stored.exists():
        return
    print(name, flush=True)
    out = WORK / name
    watch = {name: f"{spec}[:{WATCHED}]" for name, spec in setup.ood.items()}
    run = train(
        out, model=Start(**setup.options), sets=Sets(setup.train, setup.val, watch=watch), objective=objective,
        recipe=dataclasses.replace(setup.recipe, seed=seed), hardware=Hardware(device=setup.device),
        resume=out.exists(), keep=boxes,
    )  # fmt: skip
    detectors = POST_HOC + (OOD_HEAD if objective != "ce" else ())
    results = {
        choice: bench(setup, out / file, detectors)
        for choice, file in (("ours", "model.safetensors"), ("papers choice", "papers-choice.safetensors"))
    }
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    record = {
        "command": f"python studies/ssod.py {setup.name}",
        "objective": objective,
        "seed": seed,
        "seconds": round(run.made_with["seconds"]),
        "machine": machine(),
        "settings": run.settings | {"model": run.model, "transform": run.transform},
        "selected": run.selected,
        "results": results,
        "epochs": epochs,
    }
    if boxes:
        record["sampler"] = [
            {"epoch": e["epoch"], **judge_sampler(load(out / f"epoch-{e['epoch']}.safetensors"), setup.test)}
            for e in epochs
        ]
    STORED.mkdir(exist_ok=True)
    write_whole(stored, json.dumps(record, indent=1) + "\n")


def load(weights: Path) -> Classifier:
    """A run's network with one of its files of weights."""
    return load_classifier(str(weights.parent), weights=weights, device="cpu")


def bench(setup: Setup, weights: Path, detectors: tuple[str, ...]) -> dict[str, Any]:
    """ID accuracy, and FPR95 and AUROC by detector and OOD set."""
    results = nescio.bench(
        nescio.Session(load(weights), cache=WORK / "banks"),
        id=setup.test,
        ood=setup.ood,
        detectors=detectors,
        train=setup.train,
    )
    table: dict[str, Any] = {"id_accuracy": results.rows[0].id_accuracy}
    for row in results.rows:
        table.setdefault(row.detector, {})[row.ood] = {"fpr95": row.fpr95, "auroc": row.auroc}
    return table


def judge_sampler(classifier: Classifier, test: str, gamma: float = 0.95) -> dict[str, float]:
    """Of the positions labelled OOD the share outside of the object's box, of those labelled ID the share inside."""
    import pyarrow.parquet as pq

    source = nescio.open_source(test)
    boxes = torch.tensor(pq.read_table(test, columns=["box"])["box"].to_pylist(), dtype=torch.float32)
    t = classifier.transform
    found = {"positions": 0, "outside": 0, "ood": 0, "ood_outside": 0, "id": 0, "id_inside": 0}
    for batch in read_batches(source, t, 0, 128, 0):
        maps = patch_maps(classifier, batch.images, torch.from_numpy(source.labels[batch.start :][: batch.size]))
        kinds = maps.sampled(gamma)
        side = kinds.shape[1]
        cell = (torch.arange(side) + 0.5) / side * t.crop
        at = (cell + ((t.resize or t.crop) - t.crop) / 2) * 64 / (t.resize or t.crop)  # pixels of the 64 × 64 original
        x0, y0, x1, y1 = boxes[batch.start : batch.start + batch.size].T[:, :, None]
        inside = ((at >= y0) & (at < y1))[:, :, None] & ((at >= x0) & (at < x1))[:, None, :]
        found["positions"] += inside.numel()
        found["outside"] += int((~inside).sum())
        found["ood"] += int((kinds == -1).sum())
        found["ood_outside"] += int(((kinds == -1) & ~inside).sum())
        found["id"] += int((kinds == 1).sum())
        found["id_inside"] += int(((kinds == 1) & inside).sum())
    return {
        "base_outside": found["outside"] / found["positions"],
        "ood_share": found["ood"] / found["positions"],
        "ood_outside": found["ood_outside"] / max(1, found["ood"]),
        "id_share": found["id"] / found["positions"],
        "id_inside": found["id_inside"] / max(1, found["id"]),
    }


STRONG = STORED / "strong.json"
PATCHES = 8
"""Positions of each kind that are drawn from an image at most."""


@torch.no_grad()
def patches(classifier: Classifier, source: nescio.Source, gamma: float = 0.95) -> tuple[Any, dict[str, float]]:
    """Features of sampled positions, ID and OOD, of a network at rest, and the shares of positions of either kind."""
    draws, found, shares = torch.Generator().manual_seed(0), ([], []), [[], []]
    for batch in read_batches(source, classifier.transform, 0, 128, 1):
        fmap = classifier.split.backbone(classifier.transform.normalise(batch.images))
        labels = torch.from_numpy(source.labels[batch.start :][: batch.size])
        confidence = class_confidence(classifier.logits_at_positions(fmap), labels)
        for kind, (at, into) in enumerate(zip(sure_positions(confidence, gamma), found, strict=True)):
            shares[kind].append(at.float().mean(dim=1))
            key = torch.rand(at.shape, generator=draws).masked_fill(~at, 2.0)
            drawn = at & (key.argsort(dim=1).argsort(dim=1) < PATCHES)
            into.append(fmap.flatten(2).mT[drawn])
    told = {name: float(torch.cat(s).mean()) for name, s in zip(("id_share", "ood_share"), shares, strict=True)}
    return tuple(torch.cat(f) for f in found), told


def fit_head(ids: torch.Tensor, oods: torch.Tensor) -> torch.nn.Linear:
    """The OOD head by itself, by SSOD's balanced loss (LWB) with a little weight decay."""
    mean, std = (f(torch.cat([ids, oods]), dim=0) for f in (torch.mean, torch.std))
    head = torch.nn.Linear(ids.shape[1], 1)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        z = [head((x - mean) / (std + 1e-6))[:, 0] for x in (ids, oods)]
        terms = [torch.nn.functional.softplus(-z[0]).mean(), torch.nn.functional.softplus(z[1]).mean()]
        total = sum(terms) / 2 + 1e-4 * head.weight.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    with torch.no_grad():  # back to features as they are
        head.bias -= (head.weight * mean / (std + 1e-6)).sum()
        head.weight /= std + 1e-6
    return head


def judge_strong() -> None:
    """Whether a better classifier makes better labels: the OOD head alone is trained, on 10,000 training images."""
    classifier = densenet()
    (inside, outside), shares = patches(classifier, nescio.open_source(CIFAR10.train + "[:10000]"))
    classifier.heads["ood"] = lift(fit_head(inside, outside))
    detectors = ("energy", "ssod", "ssod:pool=mean", "ssod:pool=top")
    ids = CIFAR10.test + "[:5000]"
    results = nescio.bench(
        nescio.Session(classifier, cache=WORK / "banks"), id=ids, ood=CIFAR10.ood, detectors=detectors
    )
    table = {d: {r.ood: [r.fpr95, r.auroc] for r in results.rows if r.detector == d} for d in results.detectors}
    _, on_test = patches(classifier, nescio.open_source(CIFAR10.test + "[:2000]"))
    record = {"training": shares, "test": on_test, "patches": [len(inside), len(outside)], "results": table}
    write_whole(STRONG, json.dumps(record, indent=1) + "\n")


def lift(head: torch.nn.Linear) -> SSODHead:
    """The head over vectors as one over feature maps."""
    lifted = SSODHead(head.in_features)
    lifted.load_state_dict({"weight": head.weight.detach()[..., None, None], "bias": head.bias.detach()})
    return lifted


def strong() -> str:
    """As a table."""
    record = json.loads(STRONG.read_text())
    lines = [
        f"shares of patches, ID / OOD: {100 * s['id_share']:.1f} / {100 * s['ood_share']:.1f} % of {name} images"
        for name, s in ((n, record[n]) for n in ("training", "test"))
    ]
    lines += ["", "| detector | " + " | ".join(CIFAR10.ood) + " |", "|---" * (len(CIFAR10.ood) + 1) + "|"]
    for detector, row in record["results"].items():
        lines.append(
            f"| `{detector}` | " + " | ".join(f"{100 * f:.1f} / {100 * a:.1f}" for f, a in row.values()) + " |"
        )
    return "\n".join(lines)


RESOLUTION = STORED / "resolution.json"


def judge_resolution() -> None:
    """The sampler of tiny-imagenet's first cross-entropy network on larger images (and so maps), and at other γ."""
    found = []
    weights = WORK / f"{TINY.name}-ce-0" / "model.safetensors"
    for size, resize in ((128, 146), (192, 219)):
        transform = f"resize={resize},crop={size}"
        classifier = load_classifier(str(weights.parent), weights=weights, transform=transform, device="cpu")
        shares = {gamma: judge_sampler(classifier, TINY.test, gamma) for gamma in (0.8, 0.95, 0.99)}
        found += [{"size": size, "gamma": gamma, **at} for gamma, at in shares.items()]
    write_whole(RESOLUTION, json.dumps(found, indent=1) + "\n")


def resolution() -> str:
    """As a table, beside the base rate."""
    heads = ("pixels", "γ", "patches OOD", "of these outside the box", "patches ID", "of these inside", "outside, all")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for at in json.loads(RESOLUTION.read_text()):
        columns = ("ood_share", "ood_outside", "id_share", "id_inside", "base_outside")
        cells = " | ".join(f"{100 * at[c]:.1f}" for c in columns)
        lines.append(f"| {at['size']} | {at['gamma']} | {cells} |")
    return "\n".join(lines)


def stored(name: str) -> dict[str, list[dict[str, Any]]]:
    """The records of a study by objective, in the order of its plan."""
    setup, plan = PLANS[name]
    records: dict[str, list[dict[str, Any]]] = {}
    for objective, seed in plan:
        path = file_of(setup, objective, seed)
        if path.exists():
            records.setdefault(objective, []).append(json.loads(path.read_text()))
    return records


def comparison(name: str) -> str:
    """Mean ± standard deviation over seeds: FPR95 / AUROC of every detector on every training."""
    oods = list(PLANS[name][0].ood)
    heads = ["training", "seeds", "ID accuracy", "detector", *oods]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for objective, same in stored(name).items():
        tables = [r["results"]["ours"] for r in same]
        accuracy = spread([t["id_accuracy"] for t in tables])
        for detector in (d for d in tables[0] if d != "id_accuracy"):
            cells = [
                spread([t[detector][o]["fpr95"] for t in tables]) + " / "
                + spread([t[detector][o]["auroc"] for t in tables])
                for o in oods
            ]  # fmt: skip
            lines.append(f"| `{objective}` | {len(same)} | {accuracy} | `{detector}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def selection(name: str) -> str:
    """Our choice of the epoch beside the paper's, by the objective's own detector, averaged over the OOD sets."""
    lines = ["| training | choice | ID accuracy | FPR95 | AUROC |", "|---|---|---|---|---|"]
    for objective, same in stored(name).items():
        detector = "energy" if objective == "ce" else "ssod"
        for choice in ("ours", "papers choice"):
            tables = [r["results"][choice] for r in same]
            means = [
                spread([statistics.mean(pair[m] for pair in t[detector].values()) for t in tables])
                for m in ("fpr95", "auroc")
            ]
            accuracy = spread([t["id_accuracy"] for t in tables])
            lines.append(f"| `{objective}` | {choice} | {accuracy} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def sampler(name: str) -> str:
    """Where the sampled patches lie, by epoch, against the objects' boxes."""
    columns = ("ood_share", "ood_outside", "id_share", "id_inside")
    lines = ["| training | epoch | patches OOD | of these outside the box | patches ID | of these inside |"]
    lines.append("|---|---|---|---|---|---|")
    for objective, same in stored(name).items():
        for at in (at for record in same for at in record.get("sampler", ())):
            cells = " | ".join(f"{100 * at[c]:.1f}" for c in columns)
            lines.append(f"| `{objective}` | {at['epoch']} | {cells} |")
            base = at["base_outside"]
    return "\n".join([*lines, "", f"base rates: {base:.1%} outside, {1 - base:.1%} inside"]) if len(lines) > 2 else ""


def shuffled() -> str:
    """The stand-in that chooses among epochs of like accuracy, as the kept epochs of SSOD's runs see it, by network."""
    found: dict[str, list[float]] = {}
    for path in sorted(STORED.glob("*-ssod*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["settings"]["model"], []).append(record["selected"]["kept"]["val_shuffled_auroc"])
    lines = ["| network | SSOD runs | of these, shuffled validation images look more ID | AUROC against them |"]
    lines.append("|---|---|---|---|")
    for network, values in found.items():
        worse = sum(v < 0.5 for v in values)
        lines.append(f"| `{network}` | {len(values)} | {worse} | {100 * min(values):.1f} to {100 * max(values):.1f} |")
    return "\n".join(lines)


PAPER = Setup(
    "cifar10-paper", CIFAR10.train, CIFAR10.val, CIFAR10.test, CIFAR10.ood,
    Recipe.named("ssod", epochs=30, precision="bf16"),
    {"model": "timm:resnet18", "size": 224, "transform": "resize=224"},
    device="cuda",
)  # fmt: skip
VARIANTS = (
    *(f"alpha={a}" for a in (0.5, 0.7, 1.2, 1.5)),
    *("balance=lw", "balance=dr"),
    *(f"gamma={g}" for g in (0.8, 0.9, 0.99)),
)
CANDIDATES = ("ssod-correct", "ssod-detached", "ssod-pooled", "ssod-teacher")
PLANS = {
    "cifar10": (CIFAR10, [(o, seed) for seed in SEEDS for o in ("ce", "ssod", "ssod:start=4")]),
    "tiny-imagenet": (TINY, [(o, seed) for seed in SEEDS for o in ("ce", "ssod")]),
    "ablations": (ABLATION, [(o, 0) for o in ("ce", "ssod", "ssod:start=3", *(f"ssod:start=3,{v}" for v in VARIANTS))]),
    "cifar10-paper": (PAPER, [(o, seed) for seed in SEEDS for o in ("ce", "ssod")]),
    "candidates": (
        ABLATION,
        [("ssod:start=3", 0), *((f"{o}:start=3", 0) for o in CANDIDATES)],
    ),
}


def main() -> None:
    """Run what is missing of a study, then write every table."""
    arguments = parser(__doc__)
    arguments.add_argument("study", nargs="?", default="tables", choices=(*PLANS, "strong", "resolution", "tables"))
    study = arguments.parse_args().study
    os.chdir(ROOT)  # where studies.networks is found
    if study == "resolution":
        judge_resolution()
    if study == "strong":
        judge_strong()
    setup, plan = PLANS.get(study, (CIFAR10, []))
    for objective, seed in plan:
        run(setup, objective, seed, boxes=setup is TINY and seed == 0)
    lines = ["# SSOD against cross entropy"]
    for name in (n for n in PLANS if stored(n)):
        lines += [
            "",
            f"## {name}",
            "",
            comparison(name),
            "",
            f"### {name}: the choice of the epoch",
            "",
            selection(name),
        ]
        if patches := sampler(name):
            lines += ["", f"### {name}: where the patches lie", "", patches]
    lines += ["", "## kept epochs", "", shuffled()]
    if STRONG.exists():
        lines += ["", "## strong", "", strong()]
    if RESOLUTION.exists():
        lines += ["", "## resolution", "", resolution()]
    store("ssod/tables.md", lines)


if __name__ == "__main__":
    main()
