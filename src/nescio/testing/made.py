"""Features that are made up, and a detector around a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nescio.core.detector import Detector
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Columns, Features, Head
from nescio.core.needs import Maps
from nescio.core.spec import ENDS
from nescio.core.stage import Stage

MEMBERS = ("energy", "fm+knn:k=3")


def made_up(
    stage: type[Stage] | None = None, *, n: int = 200, width: int = 12, classes: int = 5, seed: int = 0,
    negative: bool = False,
) -> Features:  # fmt: skip
    """Labelled features in a cluster for each class, as a network with ReLU (or without) would give them."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(1)) * 2
    h = centres[labels] + torch.randn(n, width, generator=g)
    h = h if negative else h.relu()
    head = Head(centres + 0.3, torch.linspace(-1, 1, classes))
    fmap = h[:, :, None, None].expand(-1, -1, 2, 2)
    maps = Maps([fmap], lambda x: x.mean(dim=(2, 3)), head)
    probes = example(stage).needs.probes if stage else {}
    columns = {f"{name}.{i}": t for name, probe in probes.items() for i, t in enumerate(probe(maps))}
    return Features(h, head, head(h, labels).argmax(1), labels, Columns.of(columns))


def cases(stage: type[Stage] | None = None, made: Callable[..., Features] = made_up) -> list[Features]:
    """Features of several kinds: also negative, of few or many classes, wide, and of few images."""
    kinds: list[dict[str, Any]] = [
        {}, {"negative": True}, {"classes": 2}, {"width": 3, "classes": 8}, {"n": 15, "width": 300}, {"n": 5},
    ]  # fmt: skip
    return [made(stage, **kind) for kind in kinds]


def example(stage: type[Stage], **options: Any) -> Detector:
    """A detector around the stage: what it needs after it, members where it takes some."""
    required = {name: o.examples[0] for name, o in stage.options().items() if o.required and name not in options}
    made: Callable[..., Stage] = stage
    own = made(*MEMBERS) if stage.takes_members else made(**required, **options)
    return Detector([own, *([ENDS[stage.place]] if ENDS[stage.place] else [])])


def fitted(detector: Detector, f: Features, chunk: int = 64) -> Detector:
    """The detector, fitted on features as the pass that it reads would make them."""
    f = f.with_fields(network_pass=detector.training_pass_key)
    return detector.fit(FeatureSet.stream(lambda: f.blocks(chunk), f.head))


def scored(detector: Detector, f: Features) -> Tensor:
    """Scores of features as the pass that the detector reads would make them."""
    scores: Tensor = detector(f.with_fields(network_pass=detector.pass_key))
    return scores
