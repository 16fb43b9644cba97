"""Choosing a detector and its hyperparameters without any OOD image."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from nescio.calibration.cost import Costs, OperatingPoint, operating_point
from nescio.core.detector import AnyDetector, Detector, score_all
from nescio.core.errors import InputError, some
from nescio.core.feature_set import FeatureSet
from nescio.core.needs import Probe
from nescio.core.spec import all_specs, search_space
from nescio.data.source import AnySource, Source, as_source
from nescio.evaluation import metrics
from nescio.evaluation.accuracy import Accuracy, measure, with_classes
from nescio.evaluation.metrics import Scores
from nescio.evaluation.proxies import BACKGROUND, MIXED, PROXIES, background_probe, named, proxy_features
from nescio.evaluation.tables import table_of
from nescio.models import Classifier
from nescio.models.heads import FeatureHead
from nescio.run.passes import PLAIN, probes_of, servable
from nescio.run.session import Session, as_session

log = logging.getLogger(__name__)

Examples = AnySource | Mapping[str, AnySource]
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
    accuracy: Accuracy | None = None
    """The classifier's on the validation images, else on the training images; None where none are labelled."""

    def __repr__(self) -> str:
        auroc = self.candidates[0].mean("auroc", self.proxies)
        return (
            f"Choice({self.best} of {len(self.candidates)} candidates; AUROC {auroc:.2%} on {', '.join(self.proxies)})"
        )

    @property
    def best(self) -> str:
        """The spec of the best one."""
        return self.candidates[0].detector

    def operating_point(self, costs: Costs | None = None) -> OperatingPoint:
        """The best one's threshold of least expected cost, all proxies together taken for the OOD images to come.

        Raises:
            InputError: the background was the only proxy: its features are pooled, not an image's.
        """
        images = [pair for name, pair in self.scores.items() if name != BACKGROUND]  # whose scale is another
        if not images:
            raise InputError(f"the proxy '{BACKGROUND}' alone gives no threshold; give another: proxy= (--proxy mixed)")
        return operating_point(images[0][0], np.concatenate([oods for _, oods in images]), costs)

    def operating_lines(self, costs: Costs) -> Iterator[str]:
        """What the operating point means, in words."""
        point = self.operating_point(costs)
        low, high = point.threshold_interval
        yield f"threshold of least expected cost: {point.threshold:.6g} (bootstrap, 95 %: {low:.6g} to {high:.6g})"
        yield f"it rejects {point.reject_id:.1%} of the ID images and accepts {point.accept_ood:.1%} of the others"
        low, high = point.cost_interval
        yield (
            f"expected cost of a new image like these: {point.new_cost:.4g} ({low:.4g} to {high:.4g}); "
            f"if all were accepted or all rejected, whichever costs less: {point.trivial_cost:.4g}"
        )

    def table(self, most: int = 10) -> Table:
        """The best candidates for a terminal."""
        columns = [*self.proxies, *(["average"] if len(self.proxies) > 1 else [])]
        table = table_of(["detector"], columns, title=f"FPR95 ↓ / AUROC ↑ in % against {', '.join(self.proxies)}")
        for c in self.candidates[:most]:
            cells = [f"{c.fpr95[p] * 100:.2f} / {c.auroc[p] * 100:.2f}" for p in self.proxies]
            if len(self.proxies) > 1:
                cells.append(f"{c.mean('fpr95', self.proxies) * 100:.2f} / {c.mean('auroc', self.proxies) * 100:.2f}")
            table.add_row(c.detector, *cells)
        return table


def tune(
    session: Session | Any,
    space: AnyDetector | Sequence[AnyDetector],
    *,
    val: AnySource,
    train: AnySource | None = None,
    examples: Examples | None = None,
    proxy: str | None = None,
) -> Choice:
    """Judge every detector of a search space by how well it tells ID validation images from a proxy of OOD ones.

    The criterion is the AUROC, averaged over the proxies; of candidates that agree to a hundredth of a percentage point
    (noise is often told apart without an error), the one with the largest gap between the mean scores, in standard
    deviations of the ID scores. The network runs once over each set of images, whatever the number of candidates.

    Args:
        session: the network and how it is run; or a classifier, a network or a name.
        space: spec strings with ranges (``fm:p=0.1..0.9+react:q=0.8..0.995+ls+energy``), or presets.
        val: ID images that the classifier was not trained on, as ``open_source`` takes them, or a source.
        train: its training images, with labels, for detectors that are fitted on them.
        examples: OOD images of the user's own, or several sets of them by name, each of which counts the same.
        proxy: one of ``PROXIES``, or ``mixed`` for all that the network and the images can serve: the default, but with
            examples these alone are.

    Raises:
        InputError: a spec cannot be read or served, or a proxy cannot be had.
    """
    session = as_session(session).meet(val)
    spaces = [space] if isinstance(space, str) or not isinstance(space, Iterable) else space
    detectors = session.detectors([d for one in spaces for d in (search_space(one) if isinstance(one, str) else [one])])
    for spec, detector in detectors.items():
        if detector.input_stage is not None:
            raise InputError(
                f"detector '{spec}' needs its own pass; tune only the stages after '{detector.input_stage}'"
            )
        if train is None and detector.needs.fitting:
            raise InputError(f"detector '{spec}' is fitted on training images; give train= (--train) or leave it out")
    return _Selection(session.ready(train), detectors, val, train, chosen=True).judged(examples, proxy)


def recommend(
    session: Session | Any,
    *,
    val: AnySource,
    train: AnySource | None = None,
    examples: Examples | None = None,
    proxy: str | None = None,
) -> Choice:
    """Judge one detector of every kind, and every preset, as ``tune`` does; those with a pass of their own apart.

    Args:
        session: the network and how it is run; or a classifier, a network or a name.
        val: ID images that the classifier was not trained on, as ``open_source`` takes them, or a source.
        train: its training images, with labels.
        examples: as for ``tune``.
        proxy: as for ``tune``.
    """
    session = as_session(session).meet(val)
    served = servable(all_specs(), session.classifier, trained=train is not None)
    detectors = {spec: d for spec, d in served.items() if d.input_stage is None}
    return _Selection(session.ready(train), detectors, val, train, chosen=False).judged(examples, proxy)


class _Selection:
    """Detectors to choose from, and the ID images to choose by.

    ``chosen``: the user named these detectors, so that one which fails is an error, and not left out.
    """

    def __init__(
        self, session: Session, detectors: dict[str, Detector], val: AnySource, train: AnySource | None, *, chosen: bool
    ) -> None:
        self.detectors, self.chosen = detectors, chosen
        self.val = session.images(val, "a choice with stand-ins for OOD images")
        self.train = None if train is None else session.images(train, "a choice with stand-ins for OOD images")
        sets = {"training": self.train, "validation": self.val}
        self.session = session.of(with_classes(session.classifier, sets))

    def judged(self, examples: Examples | None, proxy: str | None) -> Choice:
        """All candidates, the best first."""
        session, classifier = self.session, self.session.classifier
        others = _named_examples(examples, self.val)
        wanted = named(proxy or MIXED) if proxy or not others else ()
        background: dict[str, Probe] = {}
        if BACKGROUND in wanted:
            # a detector that is named, or that the network was trained for, counts for more than one proxy of several
            keep = (self.chosen or bool(classifier.heads)) and proxy in (None, MIXED)
            with _leaving_out(BACKGROUND, proxy):
                background = _background(classifier, self.detectors, keep=keep)
            if not background:
                wanted = tuple(p for p in wanted if p != BACKGROUND)
        probes = probes_of(self.detectors.values())
        own = session.read(self.val, PLAIN, probes | background, "validation")
        accuracy = measure(classifier, own, "validation")  # before the training images are read
        of_training = self._fit()
        pairs: dict[str, tuple[FeatureSet, FeatureSet]] = {}
        for name, source in others.items():
            pairs[name] = (own, session.read(source, PLAIN, probes, name))
        for name in wanted:
            with _leaving_out(name, proxy):
                pairs[name] = proxy_features(name, self.val, session, own, probes)
        if not pairs:
            raise InputError(
                "no proxy works for this network and these images; give OOD examples: examples= (--ood-examples)"
            )
        found = {name: self._against(name, pair) for name, pair in pairs.items()}
        proxies = tuple(found)
        candidates = [Candidate(s, *({p: found[p][s][i] for p in proxies} for i in range(3))) for s in self.detectors]
        candidates.sort(key=lambda c: (round(c.mean("auroc", proxies), DIGITS), c.mean("gap", proxies)), reverse=True)
        best = self.detectors[candidates[0].detector]
        scores = {name: (best(accept).numpy(), best(refuse).numpy()) for name, (accept, refuse) in pairs.items()}
        return Choice(candidates, proxies, scores, accuracy or of_training)

    def _fit(self) -> Accuracy | None:
        """Fit all; one that cannot be is an error, or left out. The accuracy on the training images."""
        failed: dict[Detector, InputError] = {}
        found: list[Accuracy | None] = []

        def see(_title: str, rows: FeatureSet) -> None:
            found.append(measure(self.session.classifier, rows, "training"))

        self.session.fit(self.detectors, self.train, failed=None if self.chosen else failed.__setitem__, seen=see)
        _leave_out(failed, self.detectors)
        return found[0] if found else None

    def _against(self, proxy: str, pair: tuple[FeatureSet, FeatureSet]) -> dict[str, tuple[float, float, float]]:
        """AUROC, FPR95 and gap of each detector; one that gives no numbers is an error, or left out."""
        ids, oods = (score_all(list(self.detectors.values()), rows.chunks())[0] for rows in pair)
        found = {}
        failed: dict[Detector, InputError] = {}
        for spec, accept, refuse in zip(self.detectors, ids, oods, strict=True):
            a, b = accept.numpy(), refuse.numpy()
            try:
                auroc, fpr95 = metrics.auroc(a, b), metrics.fpr_at_tpr(a, b)
            except InputError as e:
                failed[self.detectors[spec]] = InputError(f"detector '{spec}' on the proxy '{proxy}': {e}")
                if self.chosen:
                    raise failed[self.detectors[spec]] from None
                continue
            finite = np.isfinite(a).all() and np.isfinite(b).all()
            gap = float(a.mean() - b.mean()) / (float(a.std()) or 1.0) if finite else float("-inf")
            found[spec] = (auroc, fpr95, gap)
        _leave_out(failed, self.detectors)
        return found


def _named_examples(examples: Examples | None, val: Source) -> dict[str, Source]:
    sets = examples if isinstance(examples, Mapping) else {} if examples is None else {"examples": examples}
    others = {name: as_source(source) for name, source in sets.items()}
    for name, source in others.items():
        if name in (*PROXIES, MIXED):
            raise InputError(f"OOD examples cannot be called '{name}', the name of a proxy; give them another name")
        if source.identity == val.identity:
            raise InputError(
                f"the OOD {name} are the validation images themselves; give other images: examples= (--ood-examples)"
            )
    return others


@contextlib.contextmanager
def _leaving_out(name: str, asked: str | None) -> Iterator[None]:
    """A proxy that fails, for whatever reason, is left out with a line; one that was asked for by name is an error."""
    try:
        yield
    except Exception as e:
        reason = str(e) if isinstance(e, InputError) else f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0]}"
        if asked not in (None, MIXED):
            raise InputError(f"the proxy '{name}' cannot be used: {reason}") from e
        log.info("leaving out the proxy %s: %s", name, reason)


def _leave_out(failed: Mapping[Detector, InputError], detectors: dict[str, Detector]) -> None:
    for spec, detector in list(detectors.items()):
        if detector in failed:
            log.info("leaving out %s: %s", spec, failed[detector])
            del detectors[spec]
    if not detectors:
        raise InputError(f"no detector is left to choose from; the last one: {list(failed.values())[-1]}")


@torch.no_grad()
def _background(classifier: Classifier, detectors: dict[str, Detector], *, keep: bool) -> dict[str, Probe]:
    """The probe of the background. Detectors that read feature maps, which it does not have, are left out.

    Raises:
        InputError: the network has no background, or no detector would be left, or with ``keep`` one would not.
    """
    reading = [spec for spec, d in detectors.items() if d.needs.probes or d.needs.heads]
    if reading and (keep or len(reading) == len(detectors)):
        raise InputError(
            f"it has no feature maps, which {some(reading)} reads; give another proxy: proxy= (--proxy tiles)"
        )
    if not classifier.split.averages(classifier.split.backbone(classifier.noise())):
        raise InputError(f"{classifier.name} does not average its feature map, so it has no background")
    if any(isinstance(head, FeatureHead) and head.decides for head in classifier.heads.values()):
        raise InputError(
            f"the label of {classifier.name} does not come from its last layer, which pooled features need"
        )
    probe = background_probe(classifier.split.behind_pool)
    classifier.probed(probe)(classifier.noise())  # a network that cannot serve it must fail here, not in the long pass
    for spec in reading:
        log.info("leaving out %s: it reads feature maps, which the proxy %s does not have", spec, BACKGROUND)
        del detectors[spec]
    return probe
