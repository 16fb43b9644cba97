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
from nescio.calibration import Costs, OperatingPoint, operating_point
from nescio.data.sources import Source
from nescio.detector import Detector, fit_all, score_all
from nescio.errors import InputError
from nescio.extraction import check_model, extract
from nescio.features import TrainingData
from nescio.grammar import all_specs, search_space
from nescio.metrics import Scores
from nescio.models import Classifier
from nescio.proxies import BACKGROUND, MIXED, Chunks, background_probe, named, proxy_features

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
    scores: dict[str, tuple[Scores, Scores]]
    """Of the best one, by proxy: what should be accepted, and what should not."""

    @property
    def best(self) -> str:
        """The spec of the best one."""
        return self.candidates[0].detector

    def operating_point(self, costs: Costs | None = None) -> OperatingPoint:
        """The best one's threshold of least expected cost, all proxies together taken for the OOD images to come."""
        ids, oods = (np.concatenate([pair[i] for pair in self._images()]) for i in (0, 1))
        return operating_point(ids, oods, costs)

    def _images(self) -> list[tuple[Scores, Scores]]:
        """The pairs that are scores of images: those of pooled background lie on another scale."""
        pairs = [pair for name, pair in self.scores.items() if name != BACKGROUND]
        return [(pairs[0][0], pair[1]) if i == 0 else (pairs[0][0][:0], pair[1]) for i, pair in enumerate(pairs)]

    def operating_lines(self, costs: Costs) -> Iterator[str]:
        """What the operating point means, in words."""
        if not self._images():
            return
        point = self.operating_point(costs)
        low, high = point.threshold_interval
        yield f"threshold of least expected cost: {point.threshold:.6g} (bootstrap, 95 %: {low:.6g} to {high:.6g})"
        yield f"it rejects {point.reject_id:.1%} of the ID images and accepts {point.accept_ood:.1%} of the others"
        low, high = point.cost_interval
        yield (
            f"expected cost of a new image like these: {point.new_cost:.4g} ({low:.4g} to {high:.4g}); "
            f"of accepting or rejecting all, whichever is less: {point.trivial_cost:.4g}"
        )

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
    examples: Source | None = None,
    proxy: str | None = None,
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
        examples: OOD images of the user's own.
        proxy: one of ``PROXIES``, or ``mixed`` for all that the network and the images can serve: the default, but with
            examples these alone are.
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
    return _judged(classifier, detectors, val, train, examples, proxy, extraction, keep=True)


def recommend(
    classifier: Classifier,
    *,
    val: Source,
    train: Source | None = None,
    examples: Source | None = None,
    proxy: str | None = None,
    **extraction: Any,
) -> Choice:
    """Judge one detector of every kind, and every preset, as ``tune`` does; those with a pass of their own apart.

    Args:
        classifier: the network.
        val: ID images that the classifier was not trained on.
        train: its training images, with labels.
        examples: as for ``tune``.
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
    keep = bool(classifier.heads)  # what such a network was trained for must be among the candidates
    return _judged(classifier, detectors, val, train, examples, proxy, extraction, keep=keep)


def _judged(
    classifier: Classifier,
    detectors: dict[str, Detector],
    val: Source,
    train: Source | None,
    examples: Source | None,
    proxy: str | None,
    extraction: dict[str, Any],
    *,
    keep: bool,
) -> Choice:
    wanted = named(proxy or MIXED) if proxy or examples is None else ()
    if keep and proxy in (None, MIXED) and any(d.probes() for d in detectors.values()):
        log.info(
            "leaving out the proxy %s: some of the detectors read feature maps, which it does not have", BACKGROUND
        )
        wanted = tuple(p for p in wanted if p != BACKGROUND)
    background = background_probe() if BACKGROUND in wanted and _has_maps(classifier) else {}
    for spec in [s for s, d in detectors.items() if background and d.probes()]:
        log.info("leaving out %s: it reads feature maps, which the proxy %s does not have", spec, BACKGROUND)
        del detectors[spec]
    if not detectors:
        raise InputError("no detector is left to choose from; name another proxy (--proxy tiles)")
    probes = {name: p for d in detectors.values() for name, p in d.probes().items()}
    chunks = None
    if train is not None:
        chunks = extract(classifier, train, probes=probes, title="train", **extraction).chunks
    fit_all(list(detectors.values()), TrainingData(classifier.head.cpu(), chunks))
    own = extract(classifier, val, probes=probes | background, title="validation", **extraction)
    streams: dict[str, tuple[Chunks, Chunks]] = {}
    if examples is not None:
        streams["examples"] = (
            own.chunks,
            extract(classifier, examples, probes=probes, title="examples", **extraction).chunks,
        )
    for name in wanted:
        try:
            if name == BACKGROUND and not background:
                raise InputError(
                    f"{classifier.name} has no feature map that it pools by the mean, and so no background"
                )
            streams[name] = proxy_features(name, val, classifier, own, probes=probes, **extraction)
        except InputError as e:
            if proxy not in (None, MIXED):
                raise
            log.info("leaving out the proxy %s: %s", name, e)
    found = {name: _against(name, detectors, pair) for name, pair in streams.items()}
    proxies = tuple(found)
    candidates = [Candidate(s, *({p: found[p][s][i] for p in proxies} for i in range(3))) for s in detectors]
    candidates.sort(key=lambda c: (round(c.mean("auroc", proxies), DIGITS), c.mean("gap", proxies)), reverse=True)
    best = detectors[candidates[0].detector]
    scores = {name: (_scores(best, accept), _scores(best, refuse)) for name, (accept, refuse) in streams.items()}
    return Choice(candidates, proxies, scores)


def _scores(detector: Detector, chunks: Chunks) -> Scores:
    scores: Scores = score_all([detector], chunks())[0][0].numpy()
    return scores


@torch.no_grad()
def _has_maps(classifier: Classifier) -> bool:
    try:
        return classifier.split.averages(classifier.split.backbone(classifier.noise()))
    except InputError:
        return False


def _against(
    proxy: str, detectors: dict[str, Detector], streams: tuple[Chunks, Chunks]
) -> dict[str, tuple[float, float, float]]:
    """AUROC, FPR95 and gap of each detector."""
    ids, oods = (score_all(list(detectors.values()), chunks())[0] for chunks in streams)
    found = {}
    for spec, accept, refuse in zip(detectors, ids, oods, strict=True):
        a, b = accept.numpy(), refuse.numpy()
        try:
            auroc, fpr95 = metrics.auroc(a, b), metrics.fpr_at_tpr(a, b)
        except InputError as e:
            raise InputError(f"detector '{spec}' on the proxy '{proxy}': {e}") from None
        finite = np.isfinite(a).all() and np.isfinite(b).all()
        gap = float(a.mean() - b.mean()) / (float(a.std()) or 1.0) if finite else float("-inf")
        found[spec] = (auroc, fpr95, gap)
    return found
