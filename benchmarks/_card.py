"""A device, and what ``gpu.py`` measures on it."""

from __future__ import annotations

import argparse
import io
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from _common import machine, seconds
from nescio import Classifier, Detector, FeatureSet, Session, Transform, bench, open_source
from nescio.core.spec import all_specs
from nescio.data.loader import default_workers

TYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SEED = 0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    models: tuple[str, ...]
    side: int
    batch: int
    classes: int
    images: int
    """Decoded for training; half as many are ID, and a quarter in each of two OOD sets."""
    rows: int
    """Of features on the card; half as many are scored."""
    width: int
    least: float
    """Seconds that a network is run for."""
    training: str
    steps: int


FULL = Size(("resnet18", "resnet50", "vit_b_16"), 224, 256, 1000, 4096, 100_000, 2048, 0.7, "ResNet-18", 10)
SMALL = Size(("resnet18",), 64, 4, 10, 64, 400, 64, 0.0, "small ResNet", 1)


def feature_methods() -> list[str]:
    """Every detector that reads nothing but penultimate features, logits and training features."""
    found = {spec: Detector(spec) for spec in all_specs()}
    return [s for s, d in found.items() if d.input_stage is None and not d.needs.probes and not d.needs.heads]


@contextmanager
def products(precision: str) -> Iterator[None]:
    """With TF32 where it is asked for, and nowhere else: PyTorch takes it for convolutions."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


class Batches(Dataset):
    """Whole batches of noise that lie on the card, one tensor again and again."""

    def __init__(self, x: Tensor, n: int) -> None:
        self.x, self.n = x, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Tensor:
        if i >= self.n:
            raise IndexError
        return self.x


class Card:
    """The device, and what is measured on it."""

    def __init__(self, device: torch.device, size: Size, folder: Path) -> None:
        self.device, self.size, self.folder = device, size, folder
        self.cuda = device.type == "cuda"
        self.name = torch.cuda.get_device_name(device) if self.cuda else machine()
        self.precisions = list(TYPES) if self.cuda else ["float32", "bf16"]

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds until the card is done."""

        def whole() -> None:
            run()
            if self.cuda:
                torch.cuda.synchronize(self.device)

        return seconds(whole)

    def rate(self, run: Callable[[], object], images: int) -> float:
        """Images per second of a call: the median of three runs of many calls, once it is warm."""
        for _ in range(3 if self.size.least else 1):
            once = self.timed(run)
        calls = max(1, round(self.size.least / 3 / once))
        times = [self.timed(lambda: [run() for _ in range(calls)]) for _ in range(3 if self.size.least else 1)]
        return round(calls * images / statistics.median(times), 1)

    def network(self, model: str) -> nn.Module:
        """A network with random weights."""
        torch.manual_seed(SEED)
        more = {"image_size": self.size.side} if model.startswith("vit") else {}
        made = torchvision.models.get_model(model, weights=None, num_classes=self.size.classes, **more)
        return made.eval().requires_grad_(requires_grad=False)

    def classifier(self, model: str) -> Classifier:
        """The same for images that are decoded."""
        side = self.size.side
        made = Classifier(self.network(model), Transform(crop=side, resize=side * 8 // 7), name=model)
        made.untrained = True
        return made.to(self.device)

    def noise(self) -> Tensor:
        """A normalised batch on the card."""
        shape = self.size.batch, 3, self.size.side, self.size.side
        return torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).to(self.device)

    @torch.inference_mode()
    def bare(self, model: str, precision: str, form: str) -> dict[str, float]:
        """Images per second of a network by itself."""
        network = self.network(model).to(self.device, TYPES[precision])
        x = self.noise().to(TYPES[precision])
        if form != "eager":
            network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        if form == "compiled":
            network = torch.compile(network, mode="reduce-overhead")  # on a card, this is CUDA graphs
        with products(precision):
            return {"images/s": self.rate(lambda: network(x), self.size.batch)}

    def session_only(self, model: str, precision: str) -> dict[str, float]:
        """Images per second of a session that reads batches on the card and leaves features in memory."""
        session = Session(self.network(model).to(self.device), precision=precision, progress=False)
        loader = DataLoader(Batches(self.noise(), 8 if self.size.least else 2), batch_size=None)
        return {"images/s": self.rate(lambda: session.features(loader), len(loader) * self.size.batch)}

    def with_decoding(self, model: str, precision: str) -> dict[str, Any]:
        """``bench`` of all feature methods from images on disk: images per second, and what the time went to."""
        sets, left = self.images(), set[str]()
        with tempfile.TemporaryDirectory(dir=self.folder) as cache, fewer_words():
            session = Session(self.classifier(model), precision=precision, cache=cache, progress=False)

            def whole() -> None:
                # with random weights some methods cannot be fitted: a class may have no prediction
                found = session.fit(feature_methods(), sets["train"], failed=lambda d, _: left.add(repr(d)))
                usable = [d for d in found.values() if repr(d) not in left]
                bench(session, id=sets["id"], ood={name: sets[name] for name in "ab"}, detectors=usable)

            took = self.timed(whole)
        spent = {what: round(s, 2) for what, s in session.clock.seconds.items()}
        rate, methods = round(2 * self.size.images / took, 1), len(feature_methods()) - len(left)
        return {"images/s": rate, "methods": methods, "seconds": spent}

    def against_peer(self, model: str) -> dict[str, float]:
        """Seconds of nine detectors from images on disk, of pytorch-ood and of nescio, in float32 as PyTorch has it."""
        import peer

        sets, classifier = self.images(), self.classifier(model)
        sources = {name: open_source(path) for name, path in sets.items()}
        plain = nn.Sequential(classifier.body, classifier.layer)
        theirs = peer.cached(plain, classifier.body, *self.head(classifier))
        theirs = {spec: d for spec, d in theirs.items() if spec != "klm"}  # with random weights it cannot be fitted
        images = peer.Sets(sources["train"], sources["id"], {n: sources[n] for n in "ab"}, self.prepared(classifier))
        loader = {"batch_size": self.size.batch, "num_workers": default_workers(), "pin_memory": self.cuda}

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=self.folder) as cache:
                session = Session(classifier, cache=cache, progress=False)
                oods = {name: sets[name] for name in "ab"}
                bench(session, train=sets["train"], id=sets["id"], ood=oods, detectors=list(theirs))

        with products("tf32"), fewer_words():
            took = self.timed(lambda: peer.run(theirs, images, loader, str(self.device))), self.timed(ours)
        return {"pytorch-ood": round(took[0], 2), "nescio": round(took[1], 2)}

    @staticmethod
    def head(classifier: Classifier) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        return classifier.head.weight, classifier.head.bias

    @staticmethod
    def prepared(classifier: Classifier) -> Callable[[Image.Image], Tensor]:
        """The test transform of one image."""
        transform = classifier.transform
        return lambda image: transform.normalise(transform.geometry(image)[None])[0]

    def images(self) -> dict[str, str]:
        """Sets of JPEGs, made once: a few pictures, each file made different behind its end."""
        rng, size, n = np.random.default_rng(SEED), self.size.side * 8 // 7, self.size.images
        files = []
        for _ in range(64 if self.size.least else 4):
            coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 6, 3), dtype=np.uint8))
            coarse.resize((size * 4 // 3, size), Image.Resampling.BICUBIC).save(
                file := io.BytesIO(), "JPEG", quality=90
            )
            files.append(file.getvalue())
        paths = {}
        for name, count in {"train": n, "id": n // 2, "a": n // 4, "b": n // 4}.items():
            paths[name] = str(self.folder / f"{name}-{size}-{n}.parquet")
            if not Path(paths[name]).exists():
                rows = [{"bytes": files[i % len(files)] + f"{name}{i}".encode(), "path": None} for i in range(count)]
                labels = [i % self.size.classes for i in range(count)]
                kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                pq.write_table(pa.table({"image": pa.array(rows, kind), "label": labels}), paths[name])
        return paths

    def features(self) -> tuple[FeatureSet, Tensor]:
        """Labelled training features and test features on the card, a cluster for each class."""
        g = torch.Generator(self.device).manual_seed(SEED)
        n, width, classes = self.size.rows, self.size.width, self.size.classes
        centres = torch.randn(classes, width, generator=g, device=self.device)
        labels = torch.arange(n, device=self.device) % classes
        h = torch.randn(n, width, generator=g, device=self.device).add_(centres[labels]).relu_()
        head = centres - centres.mean(dim=0), torch.zeros(classes, device=self.device)
        return FeatureSet(h, labels, head=head), h[n // 2 :].clone()

    def on_card(self, spec: str) -> dict[str, float]:
        """Seconds to fit a detector on features that lie on the card, and to score as many again."""
        train, test = self.features()
        Detector("msp").fit(train)(test[:64])
        detector = Detector(spec)
        with products("float32"):
            fit = self.timed(lambda: detector.fit(train))
            scored: list[Tensor] = []
            score = self.timed(lambda: scored.append(detector(test)))
        if scored[0].device != self.device:
            raise RuntimeError(f"the scores lie on {scored[0].device}")
        return {"fit": round(fit, 4), "score": round(score, 4)}

    def peer_on_card(self, spec: str) -> dict[str, float]:
        """The same of pytorch-ood's detector."""
        import peer

        train, test = self.features()
        record, head = train.record(), train.head
        theirs = peer.cached(None, None, head.weight, head.bias)[spec]
        kind = "features" if hasattr(theirs, "fit_features") else "logits"
        where = torch.device("cpu") if spec == "knn" else self.device  # theirs is scikit-learn's

        def rows(h: Tensor) -> Tensor:
            return (h if kind == "features" else head.linear(h)).to(where)

        with products("float32"):
            theirs.to(where)
            fit = self.timed(lambda: getattr(theirs, f"fit_{kind}")(rows(record.h), record.labels.to(where)))
            score = self.timed(lambda: getattr(theirs, f"predict_{kind}")(rows(test)))
        return {"fit": round(fit, 4), "score": round(score, 4)}

    def step(self, objective: str, precision: str) -> dict[str, float]:
        """Images per second of a whole step of training."""
        import training

        case = next(name for name in training.CASES if self.size.training in name)
        device = str(self.device) if self.cuda else "cpu"
        options = argparse.Namespace(device=device, precision=precision, batch=128 if self.cuda else self.size.batch)
        with products("tf32"):
            steps = training.Steps(case, objective, options)
            steps.take(3 if self.cuda else 1)
            return {"images/s": round(options.batch / steps.take(self.size.steps), 1)}


@contextmanager
def fewer_words() -> Iterator[None]:
    """Without what is said of random weights, here and by the peer."""
    logger = logging.getLogger("nescio")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)
