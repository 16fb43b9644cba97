"""Stand-ins for OOD images, made of ID images or of nothing: what a detector can be chosen by before it is deployed.

A proxy is two streams of features: what should be accepted, and what should not. Every proxy but the last is a set of
images, which the network sees as it sees any other.

- ``noise``: pixels that are N(0, 1) for the network, as in the FM + LS paper (section V-F), in 8 bits.
- ``pixels``, ``tiles``, ``blur``, ``corner``: the ID validation images with their pixels or their 4 × 4 tiles in
  another order, blurred away, or a corner alone.
- ``background``: no images at all. The frozen classifier says which positions (``methods/background.py``) of an
  image's feature map are sure of its class, and which are sure that it is not there. The least sure positions of one
  half of the images are pooled into a vector each, and as many of the surest of the other half; single positions would
  differ from pooled features in scale alone. A probe does it within the pass over the validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nescio.core.errors import InputError, check_choice
from nescio.core.feature_set import FeatureSet
from nescio.core.features import Features
from nescio.core.needs import Maps, Probe
from nescio.data.corruptions import CORRUPTIONS, Corrupted
from nescio.data.formats.synthetic import Gaussian, NoiseSource
from nescio.data.source import Source
from nescio.methods.background import class_confidence, sure_positions
from nescio.models import Classifier
from nescio.run.passes import PLAIN
from nescio.run.session import Session

BACKGROUND = "background"
PROXIES = ("noise", *CORRUPTIONS, BACKGROUND)
MIXED = "mixed"
"""All proxies that can be had, each counting the same."""
GAMMA = 0.95
_COLUMN = f"patches-{GAMMA:g}"
LEAST = 50
"""Images that must have both kinds of positions."""


def named(proxy: str) -> tuple[str, ...]:
    """The proxies that a name stands for."""
    return PROXIES if proxy == MIXED else (check_choice("proxy", proxy, [*PROXIES, MIXED]),)


def proxy_source(proxy: str, val: Source, classifier: Classifier) -> Source:
    """The images of a proxy: as many as the validation images, at the size that the network's transform resizes to."""
    t = classifier.transform
    if proxy != "noise":
        return Corrupted(val, proxy, t)
    mean, std = ("/".join(map(repr, values)) for values in (t.mean, t.std))
    return NoiseSource(Gaussian(images=len(val), size=t.resize or t.crop, mean=mean, std=std))


def proxy_features(
    proxy: str, val: Source, session: Session, own: FeatureSet, probes: Mapping[str, Probe] | None = None
) -> tuple[FeatureSet, FeatureSet]:
    """The features that should be accepted, and those that should not.

    Args:
        proxy: one of ``PROXIES``.
        val: ID validation images.
        session: the network and how it is run.
        own: its features of them; for ``background`` with the column of ``background_probe``.
        probes: what else is read of the images.

    Raises:
        InputError: the images do not have enough positions of both kinds (``background``).
    """
    if proxy == BACKGROUND:
        return _halves(own)
    return own, session.read(proxy_source(proxy, val, session.classifier), PLAIN, probes or {}, proxy)


def background_probe(neck: Callable[[Tensor], Tensor]) -> dict[str, Probe]:
    """The probe, by its name: pooled background, pooled foreground and how many positions each pools, per image.

    ``neck`` is the network behind its pooling: pooled vectors ``(N, K)`` to penultimate features ``(N, L)``.
    """

    def probe(maps: Maps) -> Sequence[Tensor]:
        fmap = maps.layers[-1]
        rows = fmap.flatten(2).mT  # (B, H·W, K)
        logits = maps.head.linear(neck(rows.flatten(0, 1))).view(*rows.shape[:2], -1)
        pred = maps.head.linear(maps.rest(fmap)).argmax(dim=1)
        confidence = class_confidence(logits, pred)
        is_id, is_ood = sure_positions(confidence, GAMMA)
        pooled = torch.minimum(is_id.sum(dim=1), is_ood.sum(dim=1))  # as many of the one as of the other
        rank = confidence.argsort(dim=1).argsort(dim=1)
        least, surest = rank < pooled[:, None], rank >= rank.shape[1] - pooled[:, None]
        means = [(rows * at[..., None]).sum(dim=1) / pooled.clamp(min=1)[:, None] for at in (least, surest)]
        return [*map(neck, means), pooled[:, None].to(fmap.dtype)]

    return {_COLUMN: probe}


def _halves(own: FeatureSet) -> tuple[FeatureSet, FeatureSet]:
    """Foreground of the images with an even number, background of the others; none of images that are misread."""
    right = torch.from_numpy((own.labels < 0) | (own.pred == own.labels))

    def half(column: int, parity: int) -> FeatureSet:
        def chunks() -> Iterator[Features]:
            start = 0
            for f in own.chunks():
                *pooled, count = f.probed(_COLUMN)
                number = torch.arange(start, start + len(f.h))
                start += len(f.h)
                keep = (count[:, 0] > 0) & right[number] & (number % 2 == parity)
                h = pooled[column][keep]
                yield Features(h, f.head, f.head.linear(h).argmax(dim=1))

        return FeatureSet.stream(chunks, own.head)

    foreground, background = half(1, 0), half(0, 1)
    least = min(len(foreground), len(background))
    if least < LEAST:
        raise InputError(
            f"the classifier finds both the class and a background in only {2 * least} validation images; the "
            f"proxy 'background' needs {2 * LEAST}: give more images or another proxy"
        )
    return foreground, background
