"""Thresholds that hold for a graph of fewer bits, and what it loses.

A promise about scores does not outlive a change of the scores. Those of a network in float16 or int8 are others, so the
threshold, the p-values and ``p_id`` are made again, as they were first: from held-out ID images, here as the lowered
graph itself scores them. The images that set the ranges of an int8 network are no calibration images: their scores
would be those of images that the network was fitted on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from nescio.calibration.conformal import Calibration
from nescio.calibration.posterior import ProxyCalibrator
from nescio.core import numerics
from nescio.core.errors import InputError
from nescio.core.progress import progress_bar
from nescio.data.source import AnySource, Rows, Source, as_source, by_name, draw
from nescio.deploy.deployed import Deployed
from nescio.deploy.graph import BEGIN, END
from nescio.deploy.lower import INT8, cut_network, lowered, put_back
from nescio.deploy.side_by_side import Compared, Reader, sessions
from nescio.evaluation.metrics import auroc
from nescio.evaluation.proxies import BACKGROUND, PROXIES, proxy_source

RANGES, MOST_FOR_RANGES = 64, 0.2
"""Images that the ranges of int8 are taken from, and the share of the calibration images that they may be."""
STAND_INS = 500
"""Calibration images that each proxy is made of."""


@dataclass(frozen=True)
class Loss:
    """What telling one OOD set from the calibration images loses.

    Attributes:
        name: of the set.
        images: how many it has.
        before: AUROC of the float32 graph, in [0, 1].
        after: that of the lowered one.
    """

    name: str
    images: int
    before: float
    after: float


@dataclass(frozen=True)
class Lowered:
    """What a graph of fewer bits is worth.

    Attributes:
        precision: ``fp16`` or ``int8``.
        calibration: the thresholds, from this graph's own scores.
        losses: an entry for each OOD set.
        stand_ins: whether these are made of the calibration images, since no OOD images were given.
        same_label: share of the calibration images with the label that the float32 graph gives.
        ranges: images that were taken from the calibration images for the ranges of int8.
        sizes: bytes of the float32 file and of this one.
    """

    precision: str
    calibration: Calibration
    losses: tuple[Loss, ...]
    stand_ins: bool
    same_label: float
    ranges: int
    sizes: tuple[int, int]


@dataclass(frozen=True)
class Images:
    """The images that lowering needs.

    Attributes:
        held: ID images that calibrate.
        ranges: ID images apart from these, for the ranges of int8; None for float16.
        ood: OOD images by name.
        stand_ins: whether these are made of the calibration images.
    """

    held: Source
    ranges: Source | None
    ood: Mapping[str, Source]
    stand_ins: bool

    @classmethod
    def of(
        cls, deployed: Deployed, precision: str, calibrate: AnySource, ood: Mapping[str, AnySource] | None = None
    ) -> Images:
        """Split the calibration images where int8 needs some, and make stand-ins where no OOD images are given.

        Raises:
            InputError: the detector was fitted on the calibration images, or a set cannot be opened.
        """
        held = as_source(calibrate)
        if held.identity == deployed.about.get("data", {}).get("train"):
            raise InputError(
                "the calibration images are those that the detector was fitted on; a threshold set on them "
                "rejects more new images than promised: give held-out images, calibrate= (--calibrate)"
            )
        ranges = None
        if precision == INT8:
            chosen = numerics.drawn(len(held), max(1, min(RANGES, int(MOST_FOR_RANGES * len(held))))).tolist()
            left = sorted(set(range(len(held))) - set(chosen))
            held, ranges = Rows(held, left), Rows(held, chosen)
        if ood:
            return cls(
                held, ranges, {name: as_source(source) for name, source in by_name(ood, "ood").items()}, stand_ins=False
            )
        few = draw(held, STAND_INS)
        made = {p: proxy_source(p, few, deployed.classifier) for p in PROXIES if p != BACKGROUND}
        return cls(held, ranges, made, stand_ins=True)


def lower(
    deployed: Deployed,
    images: Images,
    trace: Callable[[Deployed], Any],
    precision: str,
    *,
    layout: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[Any, Deployed, Lowered]:
    """Lower the network inside a detector's graph, and calibrate the thresholds anew with that graph's scores.

    Args:
        deployed: says the form of the guarantee, too: accept, confidence, by class or not.
        images: what to do it with.
        trace: makes a graph with marks (``Judge.marks``).
        precision: ``fp16`` or ``int8``.
        layout: of the pixels that the graph takes; None for normalised images.
        workers: decoding processes.
        progress: show a bar on a terminal.

    Returns:
        the graph, what it computes (with a calibration of its own), and what it lost.

    Raises:
        InputError: images are too few or unreadable, or their features overflow.
    """
    graph = trace(deployed)
    seen = Reader(deployed.classifier.transform, layout, workers)
    part = cut_network(graph, graph.graph.input[0].name if layout is None else BEGIN, END)
    network = lowered(part, precision, () if images.ranges is None else seen.normalised(images.ranges))
    both = sessions(graph, put_back(graph, network))
    with progress_bar(show=progress) as bar:
        ids = seen.by(both, images.held, "calibration images", bar)
        lost = int(np.isnan(ids.after).sum())
        if lost:
            raise InputError(
                f"{precision} cannot represent the features of {lost:,} of {len(ids.after):,} calibration images; "
                "export with another precision= (--precision)"
            )
        again = _recalibrated(deployed, ids)
        if deployed.calibrator is not None:
            named, prior = deployed.calibrator.proxy, deployed.calibrator.prior
            proxy = seen.by(both, proxy_source(named, images.held, deployed.classifier), named, bar)
            scores = [torch.from_numpy(s[~np.isnan(s)]) for s in (ids.after, proxy.after)]
            again.calibrator = ProxyCalibrator.fit(*scores, proxy=named, prior=prior)
        losses = tuple(_loss(name, ids, seen.by(both, source, name, bar)) for name, source in images.ood.items())
    whole = put_back(trace(again), network)
    result = Lowered(
        precision,
        again.calibration,
        losses,
        images.stand_ins,
        float((ids.preds[0] == ids.preds[1]).mean()),
        0 if images.ranges is None else len(images.ranges),
        (graph.ByteSize(), whole.ByteSize()),
    )
    again.about |= {
        "data": deployed.about.get("data", {}) | {"calibrate": images.held.identity},
        "precision": {k: v for k, v in asdict(result).items() if k not in ("calibration", "sizes")},
    }
    return whole, again, result


def _recalibrated(deployed: Deployed, ids: Compared) -> Deployed:
    """The same detector with the thresholds of other scores."""
    old, again = deployed.calibration, copy.copy(deployed)
    again.about = dict(deployed.about)
    again.calibration = Calibration.fit(
        ids.after,
        ids.preds[1],
        accept=old.accept,
        confidence=old.confidence,
        n_classes=None if old.groups[0].classes is None else deployed.classifier.head.n_classes,
    )
    return again


def _loss(name: str, ids: Compared, oods: Compared) -> Loss:
    after = np.where(np.isnan(oods.after), -np.inf, oods.after)
    return Loss(name, len(after), auroc(ids.before, oods.before), auroc(ids.after, after))
