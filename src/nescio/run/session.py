"""A classifier or an encoder, and how it is run: what features and scores of images come from."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nescio.core import numerics
from nescio.core.detector import AnyDetector, Detector, detectors_of, fit_all, score_all
from nescio.core.errors import InputError, check_share, nearest
from nescio.core.feature_set import FeatureSet, joined, of_record
from nescio.core.features import Features
from nescio.core.needs import Probe
from nescio.core.progress import Clock
from nescio.core.stage import Network
from nescio.data.formats.torch import dataset_of
from nescio.data.hashing import cache_root
from nescio.data.labels import aligned
from nescio.data.loader import read_batches
from nescio.data.source import AnySource, Rows, Source, as_source
from nescio.models import Classifier
from nescio.models.coerce import as_classifier
from nescio.models.probe import fit_probe
from nescio.run.bank import DTYPES, Bank, BankKey
from nescio.run.bank_writer import BankWriter
from nescio.run.batches import Batches, batches_of
from nescio.run.engine import engine_of
from nescio.run.extraction import Extraction, check_bad
from nescio.run.passes import PLAIN, Pass, check_model, pass_of, probes_of, training_pass

CPU_BATCH, GPU_BATCH = 32, 256
"""Default batch sizes. On a CPU small batches keep the activations in the caches: measured in benchmarks/."""
CHOOSING = 1000
"""ID images that an input stage chooses on."""

Images = Any
"""Images in any form that ``nescio.open_source`` takes; batches that the network takes as they are (a ``DataLoader``);
or a ``FeatureSet``."""


@dataclass(eq=False)
class Session:
    """A network and how it is run. Features of named sets of images are computed once and kept in banks on disk.

    >>> session = Session("torchvision:resnet50", cache="banks", workers=4)
    >>> train = session.features("imagenet/train")
    >>> scores = session.scores(["fmls", "knn"], "unknown/")["knn"]

    Args:
        model: a name as ``load_classifier`` takes it, a ``Classifier``, or any ``nn.Module`` from normalised batches
            ``(B, 3, H, W)`` to logits ``(B, C)``.
        transform: how images are prepared for it: a ``Transform``, or a preprocessing callable. Needless for batches
            that the network takes as they are, and for a model with a name.
        head: the last linear layer's name, where it cannot be found; ``none`` for an encoder.
        output: which of the model's outputs are the logits, where it gives several: a key or a number.
        classes: class names in label order.
        device: where to run it; where it is, by default.
        engine: how to run it.
        batch_size: images per step; 32 on a CPU, 256 on a GPU by default.
        workers: decoding processes; one per core, at most 8, by default. 0 decodes in this process.
        cache: folder of the banks; ``$NESCIO_CACHE/banks`` or the user's cache folder by default.
        dtype: ``float32`` or ``float16``: how features are stored.
        max_bad: share of the images, in [0, 1], that may be bad.
        progress: show a bar on a terminal.
        clock: counts where the time goes.

    Raises:
        InputError: the model is none, or an option is no choice.
    """

    model: Any
    _: KW_ONLY
    transform: Any = None
    head: str | None = None
    output: str | int | None = None
    classes: list[str] | None = None
    device: str | torch.device | None = None
    engine: str = "torch"
    batch_size: int | None = None
    workers: int | None = None
    cache: str | Path | None = None
    dtype: str = "float32"
    max_bad: float = 0.01
    progress: bool = True
    clock: Clock = field(default_factory=Clock, repr=False)

    def __post_init__(self) -> None:
        check_share("max_bad", self.max_bad)
        if self.dtype not in DTYPES:
            raise InputError(f"unknown bank dtype '{self.dtype}'{nearest(self.dtype, DTYPES)}")
        self._engine = engine_of(self.engine)
        self._made: dict[Any, Any] = {}
        self._weights: tuple[int, ...] = ()
        self._banks: dict[str, Bank] = {}
        self._encoder: Session | None = None
        """The same network without the head that ``ready`` fitted: its banks serve whatever head is fitted."""

    @cached_property
    def classifier(self) -> Classifier:
        """The network, wrapped."""
        return self._wrapped(None)

    def _wrapped(self, size: Sequence[int] | None) -> Classifier:
        options: dict[str, Any] = {"head": self.head, "output": self.output, "classes": self.classes}
        made = as_classifier(self.model, self.transform, size=size, **options)
        return made if self.device is None else made.to(self.device)

    @property
    def prepared(self) -> bool:
        """Whether images come as the network takes them, since nobody says how to prepare them."""
        if isinstance(self.model, Classifier):
            return not self.model.has_transform
        return self.transform is None and isinstance(self.model, nn.Module)

    def _batches(self, images: Images) -> Batches | None:
        """Batches that the network takes as they are; None for images that a transform prepares."""
        device = self.classifier.device if "classifier" in vars(self) else torch.device("cpu")
        batches = batches_of(images, self.batch_size or default_batch(device), prepared=self.prepared)
        if batches is None or "classifier" in vars(self):
            return batches
        first = next(batches, None)
        if first is None:
            raise InputError("there are no images")
        self._meet(first[0])
        return itertools.chain([first], batches)

    def _meet(self, x: Tensor) -> None:
        """Wrap a network of which nobody has said how large its images are."""
        if "classifier" not in vars(self):
            self.classifier = self._wrapped(tuple(x.shape[1:]) if self.prepared else None)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made on first use: traced networks cannot be pickled."""
        return vars(self) | {"_made": {}, "_banks": {}, "_weights": ()}

    def __repr__(self) -> str:
        return f"Session({self.classifier.name} on {self.classifier.device})"

    def of(self, classifier: Classifier) -> Session:
        """The same session of the same network under other names of its classes."""
        twin = copy.copy(self)
        twin.model = twin.classifier = classifier
        return twin

    def ready(self, train: Images | None) -> Session:
        """This session; where the head is still to be fitted (``head="probe"``), one whose network has it.

        Raises:
            InputError: there are no training images, or they do not suffice.
        """
        if not self.classifier.awaits_probe:
            return self
        if train is None:
            raise InputError("head=probe fits a linear head on labelled training images: give them (--train)")
        source, features = self.source(train), self.read(train, PLAIN, {}, "train")
        names = self.classifier.classes or (None if source is None else source.classes)
        head = fit_probe(features, classes=names or int(features.labels.max()) + 1)
        made = self.of(self.classifier.with_head(head, names))
        vars(made)["_encoder"] = self
        return made

    def __call__(self, x: Tensor) -> Features:
        """Features of normalised images ``(B, 3, H, W)``, on the network's device."""
        self._meet(x)
        with torch.no_grad():
            f: Features = self.network()(x.to(self.classifier.device))
            return f

    def network(self, network_pass: Pass = PLAIN, probes: Mapping[str, Probe] | None = None) -> Network:
        """The network as a pass runs it, with probes in it; made once for these weights."""
        key = network_pass.key, *sorted(probes or ())

        def made() -> Any:
            whole = self._once(network_pass.key, lambda: self._engine.prepare(changed(network_pass.prepare)))
            return whole.probed(probes or {})

        changed = self.classifier.changed
        network: Network = self._once(key, made)
        return network

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, which holds as long as no weight changes."""
        state = self.classifier.state_dict(keep_vars=True).values()
        if self._weights != (now := tuple(n for t in state for n in (t.data_ptr(), t._version))):  # noqa: SLF001
            self._made.clear()
            self._weights = now
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def features(
        self, images: Images, readers: AnyDetector | Iterable[AnyDetector] = (), *, title: str = "images"
    ) -> FeatureSet:
        """Features of all images, from the bank where they are known, else from one pass of the network.

        An interrupted pass goes on where it stopped and gives the same bytes as an uninterrupted one. Two processes
        that want the same bank don't disturb each other: the second waits, then reads. Labels become the model's class
        numbers where both have names, and those of the images are among the model's.

        Args:
            images: see ``Images``. Features of batches stay in memory and in no bank.
            readers: detectors that will read the features: their probes are run in the pass, and it is theirs.
            title: what the progress bar calls the images.

        Raises:
            InputError: more than ``max_bad`` of the images are bad, or all of them; the bank and its list stay.
        """
        self._batches(images)  # a network of which nobody has said how large its images are
        found = list(self.detectors(readers).values())
        passes = {p.key: p for p in (pass_of(d, self.classifier.device) for d in found)} or {PLAIN.key: PLAIN}
        if len(passes) > 1:
            raise InputError(f"these detectors read different passes over the images: {found}; ask for each alone")
        return self.read(images, next(iter(passes.values())), probes_of(found), title)

    def detectors(self, given: AnyDetector | Iterable[AnyDetector] | Mapping[str, Detector]) -> dict[str, Detector]:
        """Detectors by what the caller called them, with the settings published for this network.

        Raises:
            InputError: one is no detector, or this network cannot serve it.
        """
        if isinstance(given, Mapping):
            return dict(given)
        found = detectors_of(given, *self.classifier.published)
        for name, detector in found.items():
            try:
                check_model(detector, self.classifier)
            except InputError as e:
                raise InputError(f"detector '{name}': {e}") from None
        return found

    def read(self, images: Images, network_pass: Pass, probes: Mapping[str, Probe], title: str) -> FeatureSet:
        """Features of all images by a pass, with what probes make of the feature maps on the way."""
        if isinstance(images, FeatureSet):
            return images
        if (batches := self._batches(images)) is not None:
            return self._in_memory(batches, network_pass, probes)
        return self.bank(as_source(images), network_pass, probes, title=title)

    def source(self, images: Images | None) -> Source | None:
        """The named images that ``images`` stand for; None for batches and features, which have no names."""
        if images is None or isinstance(images, FeatureSet):
            return None
        return as_source(images) if self._batches(images) is None else None

    @property
    def batch(self) -> int:
        """Images per step."""
        return self.batch_size or default_batch(self.classifier.device)

    @torch.no_grad()
    def _in_memory(
        self, batches: Iterable[tuple[Tensor, Tensor | None]], network_pass: Pass, probes: Mapping[str, Probe]
    ) -> FeatureSet:
        parts = []
        for x, labels in batches:
            with self.clock("network"):
                f = network_pass.run(self.network(network_pass, probes), x.to(self.classifier.device))
            parts.append(f.with_fields(labels=labels).to("cpu"))
        return of_record(joined(parts))

    def bank(
        self,
        images: AnySource,
        network_pass: Pass = PLAIN,
        probes: Mapping[str, Probe] | None = None,
        *,
        title: str = "images",
    ) -> Bank:
        """The bank of features of all images of a source by a pass: opened where it is known, else made."""
        probes, source, classifier = probes or {}, as_source(images), self.classifier
        with contextlib.suppress(InputError):  # names of OOD images need not be the model's
            source = aligned(source, classifier.classes)
        if self._encoder is not None and network_pass is PLAIN and not probes and not classifier.heads:
            return self._encoder.bank(source, title=title).with_head(classifier.head)
        weights = self._once("fingerprint", lambda: classifier.fingerprint)
        names = tuple(sorted(probes))
        key = BankKey(weights, str(classifier.transform), source.identity, network_pass.key, self.dtype, names)
        if key.digest not in self._banks:
            self._banks[key.digest] = self._extracted(key, source, network_pass, probes, title)
        bank = self._banks[key.digest]
        check_bad(bank, source, self.max_bad, title)
        return bank

    def _extracted(
        self, key: BankKey, source: Source, network_pass: Pass, probes: Mapping[str, Probe], title: str
    ) -> Bank:
        classifier = self.classifier
        writer = BankWriter(Path(self.cache or cache_root()).expanduser() / "banks", key)
        reaction = self._once("reaction", classifier.reaction)
        with writer.alone():
            bank = writer.finished(reaction)
            if bank is None:
                network = self.network(network_pass, probes)
                with torch.no_grad():
                    seen = network_pass.run(network, classifier.noise())
                widths = {"h": seen.h.shape[1]} | {name: column.shape[1] for name, column in seen.aux.items()}
                start, size = writer.begin(len(source), classifier.head, reaction, self.batch, widths)
                Extraction(
                    network, classifier.device, classifier.transform, source, network_pass, self.workers, title,
                    self.progress, self.clock,
                ).fill(writer, start, size)  # fmt: skip
                bank = writer.finish()
        return bank

    def fit(
        self,
        detectors: AnyDetector | Iterable[AnyDetector] | Mapping[str, Detector],
        train: Images | None = None,
        held_out: Images | None = None,
        *,
        failed: Callable[[Detector, InputError], None] | None = None,
        seen: Callable[[str, FeatureSet], None] | None = None,
    ) -> dict[str, float]:
        """Fit detectors in place, each on the features of the pass that it is fitted on.

        Args:
            detectors: to be fitted. Stages that are equal are fitted once.
            train: the network's training images, with labels, where one is fitted on them.
            held_out: ID images that are none of these, for ensembles and a fitted temperature; without, a share of the
                training images is kept apart for them.
            failed: told of a detector that cannot be fitted on these images, and why; without it, that is raised.
            seen: told of the features of the plain pass, and what they are: ``train`` or ``calibrate``.

        Returns:
            the seconds that each took.
        """
        found = self.detectors(detectors)
        head, seconds = self.classifier.head.to("cpu"), dict[str, float]()
        for network_pass, names in grouped(found, training_pass):
            members = [found[name] for name in names]
            apart = [d for d in members if d.needs.held_out]
            needy = [d for d in members if d.needs.train or (d in apart and held_out is None)]
            data = FeatureSet(head=head)
            for title, images, readers in (("train", train, needy), ("calibrate", held_out, apart)):
                if images is None or not readers:
                    continue
                rows = self.read(images, network_pass, probes_of(readers), title)
                if seen is not None and network_pass is PLAIN:
                    seen(title, rows)
                data = rows.with_held_out(data.held_out) if title == "train" else data.with_held_out(rows)
            with self.clock("fit"):
                seconds |= zip(names, fit_all(members, data, failed), strict=True)
                self._choose(train if held_out is None else held_out, members)
        return seconds

    @torch.no_grad()
    def _choose(self, images: Images | None, detectors: Iterable[Detector]) -> None:
        """Let the input stages of fitted detectors choose what they choose on ID images, of which they see a thousand.

        Raises:
            InputError: there are no images.
        """
        for detector in detectors:
            stage = detector.input_stage
            if stage is None or not stage.needs.images:
                continue
            if images is None or isinstance(images, FeatureSet):
                raise InputError(f"detector '{detector}' is fitted on training images; give them (--train)")
            network = self.network(Pass(PLAIN.key, PLAIN.features, stage.prepare), detector.needs.probes)
            fitted = copy.deepcopy(detector).to(self.classifier.device)
            stage.choose(network, fitted, self._some_batches(images))

    def _some_batches(self, images: Images) -> Iterator[Tensor]:
        """A thousand images as the network takes them."""
        device = self.classifier.device
        if (batches := self._batches(images)) is not None:
            seen = 0
            for x, _ in batches:
                yield x.to(device)
                seen += len(x)
                if seen >= CHOOSING:
                    return
            return
        source, transform = as_source(images), self.classifier.transform
        some = Rows(source, numerics.drawn(len(source), CHOOSING).tolist())
        for batch in read_batches(some, transform, 0, CPU_BATCH, self.workers):
            if batch.images is not None:
                yield transform.normalise(batch.images.to(device))

    def scores(
        self,
        detectors: AnyDetector | Iterable[AnyDetector] | Mapping[str, Detector],
        images: Images,
        *,
        title: str = "images",
        known: Mapping[str, FeatureSet] | None = None,
    ) -> Scores:
        """Scores of all images by fitted detectors: the network runs once for each pass that they read.

        Args:
            detectors: fitted for this network.
            images: see ``Images``.
            title: what the progress bar calls the images.
            known: their features that are at hand, by key of the pass.

        Raises:
            InputError: as ``features``; or a detector is not fitted.
        """
        if isinstance(images, DataLoader):
            dataset_of(images)  # refuses another order: nobody would know which score is whose
        found, made = self.detectors(detectors), Scores({}, {}, {}, {})
        for network_pass, names in grouped(found, lambda d: pass_of(d, self.classifier.device)):
            members = [found[name] for name in names]
            rows = (known or {}).get(network_pass.key) or self.read(images, network_pass, probes_of(members), title)
            with self.clock("score"):
                scores, seconds = score_all(members, rows.chunks())
            made.features[network_pass.key] = rows
            for name, values, took in zip(names, scores, seconds, strict=True):
                made.usable[name], made.rows[name], made.seconds[name] = values.cpu().numpy(), rows.positions, took
        return made


@dataclass(frozen=True)
class Scores(Mapping[str, npt.NDArray[np.float64]]):
    """Scores ``(N,)`` by detector, one for each image in order; NaN for an image that could not be used.

    Attributes:
        usable: scores of the images that could be used.
        rows: which images these are.
        seconds: what scoring took.
        features: by key of the pass.
    """

    usable: dict[str, npt.NDArray[np.float64]]
    rows: dict[str, npt.NDArray[np.int64]]
    seconds: dict[str, float]
    features: dict[str, FeatureSet]

    def __getitem__(self, detector: str) -> npt.NDArray[np.float64]:
        n = max(len(f) + len(f.skipped) for f in self.features.values())
        scores = np.full(n, np.nan)
        scores[self.rows[detector]] = self.usable[detector]
        return scores

    def __iter__(self) -> Iterator[str]:
        return iter(self.usable)

    def __len__(self) -> int:
        return len(self.usable)


def default_batch(device: torch.device) -> int:
    """Images per step."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def grouped(detectors: Mapping[str, Detector], pass_for: Callable[[Detector], Pass]) -> list[tuple[Pass, list[str]]]:
    """Names of the detectors that read the same pass, with it."""
    passes: dict[str, Pass] = {}
    groups: dict[str, list[str]] = {}
    for name, detector in detectors.items():
        network_pass = pass_for(detector)
        passes.setdefault(network_pass.key, network_pass)
        groups.setdefault(network_pass.key, []).append(name)
    return [(passes[key], group) for key, group in groups.items()]


def as_session(given: Any) -> Session:
    """The session itself, or that of a classifier, a network or a name.

    Raises:
        InputError: it is none of these.
    """
    return given if isinstance(given, Session) else Session(given)
