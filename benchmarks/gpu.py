"""What a card does: networks, ``nescio.bench``, detectors on features that lie on the card, training; and a peer.

    python benchmarks/gpu.py                       all, nine minutes at a time: run it again, and it goes on
    python benchmarks/gpu.py --device cpu --small  the same on a CPU, in little: a trial of the benchmark itself

Networks of torchvision with random weights, at 224 px, on images made on the spot: nothing is downloaded. Each finished
measurement is stored in a JSON (runs/gpu-CARD.json, or --out FILE). What stands there is not measured again, and what
failed is tried again. "network only" takes batches that lie on the card already; "with decoding" reads JPEGs of 256 px
from a parquet file. float32 is without TF32, which PyTorch otherwise takes for convolutions.

Rows of the peer need ``pip install --no-deps pytorch-ood==0.4.0``; those of training need ``nescio[train]``.
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import itertools
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from _card import FULL, SMALL, Card, feature_methods
from _common import WORK, parser
from nescio.core.files import write_whole

PEER = "pytorch-ood"
OBJECTIVES = ("ce", "ssod")
ON_BOTH = ("msp", "maxlogit", "energy", "entropy", "gen", "klm", "mahalanobis", "rmd", "knn", "vim")
Measurement = Callable[[], dict[str, Any]]


def plan(card: Card) -> dict[str, Measurement]:
    """What is measured, by key ``part | what | how``: what takes longest stands last."""
    models, precisions, step = card.size.models, card.precisions, functools.partial
    both = list(itertools.product(models, precisions))
    forms = itertools.product(both, ("eager", "channels last"))
    made = {f"network only | {m} | {p} | {form}": step(card.bare, m, p, form) for (m, p), form in forms}
    made |= {f"network only | {m} | {p} | nescio": step(card.session_only, m, p) for m, p in both}
    made |= {f"with decoding | {m} | {p} | nescio": step(card.with_decoding, m, p) for m, p in both}
    made |= {f"training | {o} | {p}": step(card.step, o, p) for o, p in itertools.product(OBJECTIVES, ("32", "bf16"))}
    made |= {f"features | {spec} | nescio": step(card.on_card, spec) for spec in feature_methods()}
    made |= {f"features | {spec} | {PEER}": step(card.peer_on_card, spec) for spec in ON_BOTH}
    made |= {f"peer | {m}": step(card.against_peer, m) for m in models}
    if card.cuda:  # each is compiled first
        made |= {f"network only | {m} | {p} | compiled": step(card.bare, m, p, "compiled") for m, p in both}
    return made


def measure(card: Card, path: Path, minutes: float) -> tuple[dict[str, Any], dict[str, str]]:
    """What is known now, and what could not be measured, with the reason. Each new number is stored at once."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    failed: dict[str, str] = {}
    end, todo = time.monotonic() + 60 * minutes, {k: run for k, run in plan(card).items() if k not in known}
    for i, (key, run) in enumerate(todo.items()):
        if time.monotonic() > end:
            print(f"{len(todo) - i} measurements are left after {minutes:g} minutes: run the same command again")
            break
        try:
            known[key] = run()
        except ModuleNotFoundError as e:
            failed[key] = "not installed" if e.name in ("pytorch_ood", "lightning_fabric") else str(e)
        except Exception as e:  # noqa: BLE001 - one that fails on this card leaves the others
            failed[key] = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(known, indent=1))
            print(f"{key}: {known[key]}", flush=True)
        if card.cuda:
            gc.collect()
            torch.cuda.empty_cache()
    return known, failed


def tables(card: Card, known: dict[str, Any], failed: dict[str, str]) -> list[str]:
    """The measurements as Markdown."""

    def cell(key: str, show: Callable[[dict[str, Any]], str]) -> str:
        return show(known[key]) if key in known else failed.get(key, "")

    def rate(key: str) -> str:
        return cell(key, lambda found: f"{found['images/s']:,.0f}")

    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision"))
    lines = [f"{card.name}, {libraries}, {time.strftime('%Y-%m-%d')}. {card.size.side} px, batches of "]
    lines[0] += f"{card.size.batch}. Images per second:"
    forms = ["network only | eager", "network only | channels last", "network only | compiled"]
    forms += ["network only | nescio", "with decoding | nescio"]
    rows = [
        [m, p, *(rate(f"{part} | {m} | {p} | {how}") for part, _, how in (f.partition(" | ") for f in forms))]
        for m in card.size.models
        for p in card.precisions
    ]
    lines += table(["network", "type", *(f.replace(" |", ",") for f in forms)], rows)
    rows = [[o, p, rate(f"training | {o} | {p}")] for o in OBJECTIVES for p in ("32", "bf16")]
    lines += ["", f"A step of training, {card.size.training}:", *table(["objective", "type", "images/s"], rows)]
    rows = [
        [m, cell(key, lambda f: f"{f[PEER]:.1f}"), cell(key, lambda f: f"{f['nescio']:.1f}"),
         cell(key, lambda f: f"{f[PEER] / f['nescio']:.1f} ×")]
        for m in card.size.models for key in [f"peer | {m}"]
    ]  # fmt: skip
    what = "Nine detectors from images on disk, float32 with TF32, seconds:"
    lines += ["", what, *table(["network", f"{PEER} 0.4.0", "nescio", "ratio"], rows)]

    def spent(key: str) -> list[str]:
        return [cell(key, lambda found, of=of: f"{found[of]:.3f}") for of in ("fit", "score")]

    rows = [
        [f"`{s}`", *spent(f"features | {s} | nescio"), *spent(f"features | {s} | {PEER}")] for s in feature_methods()
    ]
    size = card.size
    what = f"Seconds on features that lie on the card: {size.rows:,} × {size.width:,} to fit, half as many to score, "
    lines += ["", f"{what}{size.classes:,} classes:"]
    return lines + table(["detector", "fit", "score", f"{PEER} fit", f"{PEER} score"], rows)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown; a reason with a bar would break them."""
    cells = [head, ["---"] * len(head), *([c.replace("|", "/") for c in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def main() -> None:
    """Measure what is not known yet, and print all."""
    options = parser(__doc__)
    options.add_argument("--device", default="cuda")
    options.add_argument("--small", action="store_true", help="small images, one network, few rows")
    options.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after so long")
    options.add_argument("--out", type=Path, help="the JSON")
    chosen = options.parse_args()
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found: try --device cpu --small")
    with tempfile.TemporaryDirectory() as folder:
        card = Card(torch.device(chosen.device), SMALL if chosen.small else FULL, Path(folder))
        slug = re.sub(r"[^a-z0-9]+", "-", card.name.lower()).strip("-") + ("-small" if chosen.small else "")
        known, failed = measure(card, chosen.out or WORK / f"gpu-{slug}.json", chosen.minutes)
        print("\n".join(["", *tables(card, known, failed)]))
    if broken := {key: why for key, why in failed.items() if why != "not installed"}:
        raise SystemExit("\n".join(["", "failed:", *(f"  {key}: {why}" for key, why in broken.items())]))


if __name__ == "__main__":
    main()
