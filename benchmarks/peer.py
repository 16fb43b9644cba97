"""The same detectors on the same images with ``pytorch-ood`` 0.4.0 and with nescio, in one run.

Needs ``pip install --no-deps pytorch-ood==0.4.0``. The peer fits each detector on a loader over the training images and
evaluates all of them with ``evaluate(..., cache=True)``, which keeps logits and features between detectors; ours makes
banks (extraction included), fits, scores and computes all metrics. Same network, batch size, workers, decoding.
Prints the ratio of seconds, and both tables of AUROC.

    python benchmarks/peer.py [--way ENGINE,PRECISION ...] [--rounds N] [--full]
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pytorch_ood import detector as peer
from pytorch_ood.api import Detector
from pytorch_ood.benchmark.base import Benchmark
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from _common import data, densenet, in_turns, parser, tests, way_option, ways
from nescio import Results, Session, bench, open_source
from nescio.data.decode import decode
from nescio.data.source import Source
from nescio.models import Classifier
from one_pass import TRANSFORM

Prepare = Callable[[Image.Image], torch.Tensor]
LOADER = {"batch_size": 32, "num_workers": 2}


class Labelled(Dataset):
    """Image and label; all labels -1 for OOD images."""

    def __init__(self, source: Source, prepare: Prepare, *, ood: bool = False) -> None:
        self.source, self.prepare, self.ood = source, prepare, ood

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.prepare(decode(self.source.read(i))), -1 if self.ood else int(self.source.labels[i])


class Sets(Benchmark):
    """The peer's interface to one ID and several OOD sets."""

    def __init__(self, train: Source, test: Source, oods: dict[str, Source], prepare: Prepare = TRANSFORM) -> None:
        self.train, self.test, self.oods, self.prepare = train, test, oods, prepare
        self.ood_names = list(oods)

    def train_set(self) -> Dataset:
        """Training images."""
        return Labelled(self.train, self.prepare)

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[Dataset]:
        """ID with each OOD set."""
        del known, unknown
        test = Labelled(self.test, self.prepare)
        return [ConcatDataset([test, Labelled(s, self.prepare, ood=True)]) for s in self.oods.values()]


def cached(
    network: nn.Module | None, encoder: nn.Module | None, w: torch.Tensor, b: torch.Tensor
) -> dict[str, Detector]:
    """The peer's detectors that it can cache, by our names; without a network, for features and logits at hand."""
    return {
        "msp": peer.MaxSoftmax(network),
        "maxlogit": peer.MaxLogit(network),
        "energy": peer.EnergyBased(network),
        "entropy": peer.Entropy(network),
        "gen": peer.GEN(network),
        "klm": peer.KLMatching(network),
        "mahalanobis": peer.Mahalanobis(encoder),
        "rmd": peer.RMD(encoder),
        "knn": peer.KNN(encoder, k=50),
        "vim": peer.ViM(encoder, d=min(1000, w.shape[1] // 2), w=w, b=b),
    }


def shaped(classifier: Classifier) -> dict[str, Detector]:
    """Those that run the network each."""
    encoder, w, b = classifier.body, classifier.head.weight, classifier.head.bias
    head = nn.Sequential(nn.Flatten(), classifier.layer)

    def maps(x: torch.Tensor) -> torch.Tensor:
        return encoder(x)[:, :, None, None]

    return {
        "react:clip=1.6+energy": peer.ReAct(encoder, classifier.layer, threshold=1.6),
        "dice:p=0.9+energy": peer.DICE(encoder, w, b, p=0.9),
        "ashs:p=0.9+energy": peer.ASH(maps, head, variant="ash-s", percentile=0.9),
        "scale:p=0.85+energy": peer.SCALE(maps, head, percentile=0.85),
    }


def run(
    detectors: dict[str, Detector], sets: Sets, loader: dict[str, Any], device: str = "cpu"
) -> list[dict[str, float]]:
    """Fit and evaluate the peer's detectors as its users do."""
    for d in detectors.values():
        if d.requires_fit and not isinstance(d, peer.ReAct):  # its fit would replace the threshold
            d.to(device).fit(DataLoader(sets.train_set(), **loader))
    return sets.evaluate(list(detectors.values()), loader_kwargs=loader, device=device, cache=True)


def main() -> None:
    """Print ratios and tables."""
    options = parser(__doc__)
    way_option(options, "auto,float32")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--full", action="store_true", help="all images instead of a slice")
    warnings.simplefilter("ignore")
    chosen = options.parse_args()
    cut = ("", "", "") if chosen.full else ("[:1000]", "[:500]", "[:250]")
    train, test = data("cifar10/train") + cut[0], data("cifar10/test") + cut[1]
    names = ("textures", "scenes", "tiny-imagenet-scenes", "cifar100")
    oods = {name: spec + cut[2] for name, spec in tests(*names).items()}
    sets = Sets(open_source(train), open_source(test), {name: open_source(s) for name, s in oods.items()})
    classifier = densenet(None)
    network = nn.Sequential(classifier.body, classifier.layer)

    some = cached(network, classifier.body, classifier.head.weight, classifier.head.bias)
    every = {**some, **shaped(classifier)}
    for title, theirs in (("cacheable", some), ("and those that change features", every)):
        results: list[dict[str, float]] = []
        ours: dict[tuple[str, str], Results] = {}

        def run_theirs(theirs: dict[str, Detector] = theirs, found: list[dict[str, float]] = results) -> None:
            sets._representation_cache = {}  # noqa: SLF001 - a fresh start
            found[:] = run(theirs, sets, LOADER)

        def run_ours(
            engine: str,
            precision: str,
            specs: dict[str, Detector] = theirs,
            ours: dict[tuple[str, str], Results] = ours,
        ) -> None:
            how = {"batch_size": LOADER["batch_size"], "workers": LOADER["num_workers"], "progress": False}
            how |= {"engine": engine, "precision": precision}
            with tempfile.TemporaryDirectory() as folder:
                session = Session(densenet(None), cache=Path(folder), **how)
                ours[engine, precision] = bench(session, train=train, id=test, ood=oods, detectors=list(specs))

        runs = {f"nescio, {e}, {p}": functools.partial(run_ours, e, p) for e, p in ways(chosen)}
        times = in_turns({"pytorch-ood": run_theirs, **runs}, chosen.rounds, warm=0)
        peers = times.pop("pytorch-ood")
        print(f"{title}, {len(theirs)} detectors: pytorch-ood {statistics.median(peers):.0f} s")
        for name, values in times.items():
            ratios = [a / b for a, b in zip(peers, values, strict=True)]
            median = f"{statistics.median(ratios):.1f} × ({min(ratios):.1f} to {max(ratios):.1f})"
            print(f"  {name} {statistics.median(values):.1f} s: {median}", flush=True)
    print(f"\nAUROC in %, pytorch-ood / nescio\n{'':<24}" + "".join(f"{name:>24}" for name in names))
    per_set = len(results) // len(names)
    for i, spec in enumerate(every):
        cells = [
            f"{results[j * per_set + i]['AUROC'] * 100:.2f} / {ours[ways(chosen)[0]].row(spec, n).auroc * 100:.2f}"
            for j, n in enumerate(names)
        ]
        print(f"{spec:<24}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
