"""A classifier or an encoder, and how it is run: what features and scores of images come from."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from nescio.core.detector import AnyDetector, Detector, detectors_of, fit_all, score_all
from nescio.core.errors import InputError
from nescio.core.feature_set import FeatureSet
from nescio.core.needs import Probe
from nescio.data.coerce import is_stream
from nescio.data.formats.torch import dataset_of
from nescio.data.labels import aligned
from nescio.data.source import AnySource, Source, as_source
from nescio.models.probe import fit_probe
from nescio.run.bank import Bank
from nescio.run.extraction import bank_of, in_memory, some_batches
from nescio.run.passes import PLAIN, Pass, check_model, pass_of, probes_of, training_pass
from nescio.run.runner import Runner

Images = Any
"""Images in any form that ``nescio.open_source`` takes; batches that the network takes as they are (a ``DataLoader``);
or a ``FeatureSet``."""


class Session(Runner):
    """A network and how it is run. Features of named sets of images are computed once and kept in banks on disk.

    >>> session = Session(net)  # or a name: Session("torchvision:resnet50", cache="banks", workers=4)
    >>> detectors = session.fit(["knn", "odin+msp"], train_loader)  # or images by name, "imagenet/train"
    >>> session.scores(detectors, test_loader)["knn"].shape
    (60,)

    Args:
        model: a name as ``load_classifier`` takes it, a ``Classifier``, or any ``nn.Module`` from normalised batches
            ``(B, 3, H, W)`` to logits ``(B, C)``.
        transform: how images are prepared for it: a ``Transform``, or a preprocessing callable. Needless for batches
            that the network takes as they are, and for a model with a name.
        head: the last linear layer's name, where it cannot be found; ``none`` for an encoder.
        output: which of the model's outputs are the logits, where it gives several: a key or a number.
        size: ``(C, H, W)`` of the batches, where no transform says it; by default that of the first batch.
        classes: class names in label order.
        device: where to run it; where it is, by default.
        devices: how many processes share a pass over named images, one per GPU or with a share of the cores each;
            ``auto`` for all GPUs, or one per NUMA node of a CPU; ``torchrun``, where it has started this process and
            all of its processes do the same; ``ray``. On a CPU the bank is the same, byte for byte.
        engine: how to run it: ``torch``, ``compile``, ``openvino`` (the extra ``nescio[openvino]``), ``plain`` for a
            network that is being trained; by default the fastest one in a trial, if the images are many.
        precision: ``float32``; ``bf16``, ``fp16`` or, on NVIDIA's GPUs, ``tf32`` are faster and change the features.
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

    def ready(self, train: Images | None) -> Session:
        """This session; where the head is still to be fitted (``head="probe"``), one whose network has it.

        Raises:
            InputError: there are no training images, or they do not suffice.
        """
        if not self.classifier.awaits_probe:
            return self
        if train is None:
            raise InputError(
                "head='probe' (--head probe) fits a linear head on labelled training images: give train= (--train)"
            )
        source, features = self.source(train), self.read(train, PLAIN, {}, "train")
        names = self.classifier.classes or (None if source is None else source.classes)
        head = fit_probe(features, classes=names or int(features.labels.max()) + 1)
        made = self.of(self.classifier.with_head(head, names))
        made.encoder = self
        return made

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
        found = list(self.meet(images).detectors(readers).values())
        passes = {p.key: p for p in (pass_of(d, self.classifier.device) for d in found)} or {PLAIN.key: PLAIN}
        if len(passes) > 1:
            raise InputError(f"these detectors need different passes over the images: {found}; use them one at a time")
        return self.read(images, next(iter(passes.values())), probes_of(found), title)

    def detectors(self, detectors: AnyDetector | Iterable[AnyDetector] | Mapping[str, Detector]) -> dict[str, Detector]:
        """Detectors by what the caller called them, with the settings published for this network.

        Raises:
            InputError: one is no detector, or this network cannot serve it.
        """
        if isinstance(detectors, Mapping):
            return dict(detectors)
        found = detectors_of(detectors, *self.classifier.published)
        for name, detector in found.items():
            try:
                check_model(detector, self.classifier)
            except InputError as e:
                raise InputError(f"detector '{name}': {e}") from None
        return found

    def _with_heads(self, given: AnyDetector | Iterable[AnyDetector] | Mapping[str, Detector]) -> dict[str, Detector]:
        """The detectors, once the head that they read is there."""
        found = self.detectors(given)
        reading = [name for name, d in found.items() if d.needs.head or d.needs.logits]
        if reading and self.classifier.awaits_probe:
            raise InputError(
                f"detector '{reading[0]}' reads a head that is not fitted yet: call session.ready(train) first"
            )
        return found

    def read(self, images: Images, network_pass: Pass, probes: Mapping[str, Probe], title: str) -> FeatureSet:
        """Features of all images by a pass, with what probes make of the feature maps on the way."""
        if isinstance(images, FeatureSet):
            return images
        if (batches := self.batches(images)) is not None:
            return in_memory(self, batches, network_pass, probes, _count(images))
        return self.bank(images, network_pass, probes, title=title)

    def source(self, images: Images | None) -> Source | None:
        """The named images that ``images`` stand for; None for batches and features, which have no names."""
        if images is None or isinstance(images, FeatureSet):
            return None
        return as_source(images) if self.batches(images) is None else None

    def images(self, images: Images, what: str) -> Source:
        """Images by name, for ``what`` reads them as images.

        Raises:
            InputError: they are normalised batches, or nobody says how they are prepared.
        """
        is_batches = not is_stream(images) and self.batches(images) is not None  # as_source refuses a stream
        if is_batches or not self.classifier.has_transform:
            raise InputError(
                f"{what} needs images, not normalised batches: give images (a folder, or a data set of PIL images) "
                "and their transform, Session(model, transform=…)"
            )
        return as_source(images)

    def bank(
        self,
        images: AnySource,
        network_pass: Pass = PLAIN,
        probes: Mapping[str, Probe] | None = None,
        *,
        title: str = "images",
    ) -> Bank:
        """The bank of features of all images of a source by a pass: opened where it is known, else made."""
        source, head = as_source(images), self.classifier.head
        if self.encoder is not None and network_pass is PLAIN and not probes and not self.classifier.heads:
            with contextlib.suppress(InputError):  # names of OOD images need not be the model's
                source = aligned(source, self.classifier.classes)
            bank: Bank = self.encoder.bank(source, title=title).with_head(head)
            return bank
        return bank_of(self, source, network_pass, probes or {}, title)

    def fit(
        self,
        detectors: AnyDetector | Iterable[AnyDetector] | Mapping[str, Detector],
        train: Images | None = None,
        held_out: Images | None = None,
        *,
        failed: Callable[[Detector, InputError], None] | None = None,
        seen: Callable[[str, FeatureSet], None] | None = None,
    ) -> dict[str, Detector]:
        """Fit detectors, each on the features of the pass that it is fitted on.

        Args:
            detectors: to be fitted in place, or spec strings. Stages that are equal are fitted once.
            train: the network's training images, with labels, where one is fitted on them.
            held_out: ID images that are none of these, for ensembles and a fitted temperature; without, a share of the
                training images is kept apart for them.
            failed: told of a detector that cannot be fitted on these images, and why; without it, that is raised.
            seen: told of the features of the plain pass, and what they are: ``train`` or ``calibrate``.

        Returns:
            the fitted detectors by what the caller called them, as ``scores`` takes them.
        """
        self.meet(train, held_out)
        found, head = self._with_heads(detectors), self.classifier.head.to("cpu")
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
                fit_all(members, data, failed)
                self._choose(train if held_out is None else held_out, members)
        return found

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
                raise InputError(f"detector '{detector}' is fitted on training images; give train= (--train)")
            own = Pass(f"choice of {stage!r}", PLAIN.features, stage.prepare, stage.needs.gradients)
            network = self.network(own, detector.needs.probes)
            fitted = copy.deepcopy(detector).to(self.classifier.device)
            stage.choose(network, fitted, some_batches(self, images))

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
        self.meet(images)
        found, made = self._with_heads(detectors), Scores({}, {}, {}, {})
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

    def __repr__(self) -> str:
        return f"Scores({', '.join(self.usable)}: {max(map(len, self.usable.values()), default=0):,} images)"

    def __iter__(self) -> Iterator[str]:
        return iter(self.usable)

    def __len__(self) -> int:
        return len(self.usable)


def _count(images: Images) -> int:
    """The number of images in memory, or in a DataLoader's data set; 0 where it is not known."""
    rows: Any = images[0] if isinstance(images, tuple) else images
    try:
        return len(getattr(rows, "dataset", rows))
    except TypeError:
        return 0


def grouped(detectors: Mapping[str, Detector], pass_for: Callable[[Detector], Pass]) -> list[tuple[Pass, list[str]]]:
    """Names of the detectors that read the same pass, with it."""
    passes: dict[str, Pass] = {}
    groups: dict[str, list[str]] = {}
    for name, detector in detectors.items():
        network_pass = pass_for(detector)
        passes.setdefault(network_pass.key, network_pass)
        groups.setdefault(network_pass.key, []).append(name)
    return [(passes[key], group) for key, group in groups.items()]


def as_session(model: Any) -> Session:
    """The session itself, or that of a classifier, a network or a name.

    Raises:
        InputError: it is none of these.
    """
    return model if isinstance(model, Session) else Session(model)
