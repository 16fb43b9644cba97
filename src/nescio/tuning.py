"""Choosing a detector and its hyperparameters without any OOD image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from nescio import metrics
from nescio.data.sources import Source
from nescio.detector import Detector, fit_all, score_all
from nescio.errors import InputError
from nescio.extraction import check_model, extract
from nescio.features import TrainingData
from nescio.grammar import all_specs, search_space
from nescio.models import Classifier
from nescio.proxies import MIXED, Chunks, background_probe, named, proxy_features

log = logging.getLogger(__name__)

DIGITS = 4
"""To which an AUROC is rounded before two candidates count as equally good: a hundredth of a percentage point."""


@dataclass(frozen=True)
class Candidate:
    """A detector and how it does on the proxies.

    Attributes:
        detector: its spec.
        auroc, fpr95: by proxy, shares.
        gap: by proxy, how many standard deviations of the ID scores lie between the two means.
    """

    detector: str
    auroc: dict[str, float]
    fpr95: dict[str, float]
    gap: dict[str, float]

    def mean(self, metric: str, proxies: Sequence[str]) -> float:
        """A metric over some proxies, each counting the same."""
        return float(np.mean([getattr(self, metric)[p] for p in proxies]))


@dataclass(frozen=True)
class Choice:
    """All candidates, the best first, by the proxies that all of them could be judged by."""

    candidates: list[Candidate]
    proxies: tuple[str, ...]

    @property
    def best(self) -> str:
        """The spec of the best one."""
        return self.candidates[0].detector

    def table(self, most: int = 10) -> Iterator[Table]:
        """The best candidates for a terminal."""
        table = Table(title=f"FPR95 ↓ / AUROC ↑ in % against {', '.join(self.proxies)}", title_justify="left")
        table.add_column("detector", overflow="fold")
        for name in (*self.proxies, *(("average",) if len(self.proxies) > 1 else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for c in self.candidates[:most]:
            cells = [f"{c.fpr95[p] * 100:.2f} / {c.auroc[p] * 100:.2f}" for p in self.proxies]
            if len(self.proxies) > 1:
                cells.append(f"{c.mean('fpr95', self.proxies) * 100:.2f} / {c.mean('auroc', self.proxies) * 100:.2f}")
            table.add_row(c.detector, *cells)
        yield table


def tune(
    classifier: Classifier,
    space: str | Sequence[str],
    *,
    val: Source,
    train: Source | None = None,
    proxy: str = MIXED,
    **extraction: Any,
) -> Choice:
    """Judge every detector of a search space by how well it tells ID validation images from a proxy of OOD ones.

    The criterion is the AUROC, averaged over the proxies; of candidates that agree to a hundredth of a percentage point
    (noise is often told apart without an error), the one with the largest gap between the mean scores, in standard
    deviations of the ID scores. The network runs once over each set of images, whatever the number of candidates.

    Args:
        classifier: the network.
        space: spec strings with ranges (``fm:p=0.1..0.9+react:q=0.8..0.995+ls+energy``), or presets.
        val: ID images that the classifier was not trained on.
        train: its training images, with labels, for detectors that are fitted on them.
        proxy: one of ``PROXIES``, or ``mixed`` for all that the network and the images can serve.
        **extraction: options of ``extract``.

    Raises:
        InputError: a spec cannot be read or served, or a proxy cannot be had.
    """
    specs = list(
        dict.fromkeys(s for given in ([space] if isinstance(space, str) else space) for s in search_space(given))
    )
    detectors = {spec: Detector.parse(spec, classifier.name) for spec in specs}
    for spec, detector in detectors.items():
        check_model(detector, classifier)
        if detector.input_stage is not None:
            raise InputError(
                f"detector '{spec}' makes a pass of its own; tune what stands behind '{detector.input_stage}'"
            )
        if train is None and (detector.needs_train or detector.needs_held_out):
            raise InputError(f"detector '{spec}' is fitted on training images; give them (--train) or leave it out")
    return _judged(classifier, detectors, val, train, proxy, extraction)


def recommend(
    classifier: Classifier, *, val: Source, train: Source | None = None, proxy: str = MIXED, **extraction: Any
) -> Choice:
    """Judge one detector of every kind, and every preset, as ``tune`` does; those with a pass of their own apart.

    Args:
        classifier: the network.
        val: ID images that the classifier was not trained on.
        train: its training images, with labels.
        proxy: as for ``tune``.
        **extraction: options of ``extract``.
    """
    detectors = {}
    for spec in all_specs():
        detector = Detector.parse(spec, classifier.name)
        needs = detector.needs_train or detector.needs_held_out
        try:
            check_model(detector, classifier)
        except InputError as e:
            log.info("leaving out %s: %s", spec, e)
            continue
        if detector.input_stage is None and (train is not None or not needs):
            detectors[spec] = detector
    return _judged(classifier, detectors, val, train, proxy, extraction)


def _judged(
    classifier: Classifier,
    detectors: dict[str, Detector],
    val: Source,
    train: Source | None,
    proxy: str,
    extraction: dict[str, Any],
) -> Choice:
    wanted = named(proxy)
    probes = {name: p for d in detectors.values() for name, p in d.probes().items()}
    background = background_probe() if _has_maps(classifier, wanted) else {}
    if train is not None:
        bank = extract(classifier, train, probes=probes, title="train", **extraction)
        fit_all(list(detectors.values()), TrainingData(classifier.head.cpu(), bank.chunks))
    else:
        fit_all(list(detectors.values()), TrainingData(classifier.head.cpu()))
    own = extract(classifier, val, probes=probes | background, title="validation", **extraction)
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name in wanted:
        try:
            if name == "background" and not background:
                raise InputError(f"{classifier.name} has no feature map, and so no background")
            streams = proxy_features(name, val, classifier, own, probes=probes, **extraction)
        except InputError as e:
            if proxy != MIXED:
                raise
            log.info("leaving out the proxy %s: %s", name, e)
            continue
        readers = {s: d for s, d in detectors.items() if name != "background" or not d.probes()}
        found[name] = _against(readers, streams)
    shared = {s for s in detectors if all(s in scores for scores in found.values())}
    for spec in (s for s in detectors if s not in shared):
        log.info("leaving out %s: it reads feature maps, which the proxy background does not have", spec)
    proxies = tuple(found)
    candidates = [
        Candidate(spec, *({p: found[p][spec][i] for p in proxies} for i in range(3)))
        for spec in detectors
        if spec in shared
    ]
    candidates.sort(key=lambda c: (round(c.mean("auroc", proxies), DIGITS), c.mean("gap", proxies)), reverse=True)
    return Choice(candidates, proxies)


@torch.no_grad()
def _has_maps(classifier: Classifier, wanted: Sequence[str]) -> bool:
    if "background" not in wanted:
        return False
    try:
        return classifier.split.averages(classifier.split.backbone(classifier.noise()))
    except InputError:
        return False


def _against(detectors: dict[str, Detector], streams: tuple[Chunks, Chunks]) -> dict[str, tuple[float, float, float]]:
    """AUROC, FPR95 and gap of each detector."""
    ids, oods = (score_all(list(detectors.values()), chunks())[0] for chunks in streams)
    found = {}
    for spec, accept, refuse in zip(detectors, ids, oods, strict=True):
        a, b = accept.numpy(), refuse.numpy()
        spread = float(a.std()) or 1.0
        found[spec] = (metrics.auroc(a, b), metrics.fpr_at_tpr(a, b), float(a.mean() - b.mean()) / spread)
    return found
