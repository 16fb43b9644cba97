"""What a classifier says at every position of its feature map: where it sees its class, and where background."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nescio.core.errors import BadImage, InputError, nearest
from nescio.core.files import make_folder, whole
from nescio.core.needs import Maps, Probe
from nescio.core.outputs import check_file
from nescio.data.decode import decode
from nescio.data.labels import aligned
from nescio.data.source import AnySource, Labels, Source, as_source
from nescio.explanation.plates import Seen, draw_maps
from nescio.methods.background import check_gamma, class_confidence, sure_positions
from nescio.models import Classifier
from nescio.models.coerce import classifiers_by_name
from nescio.models.heads import PositionHead, decide, known_heads

MOST = 24
"""Images in one picture."""


@dataclass(frozen=True)
class PatchMaps:
    """Position by position, for a batch of images.

    Attributes:
        probability: softmax of the whole images' logits ``(B, C)``.
        labels: the classes that the confidences are of ``(B,)``.
        confidence: softmax confidence on that class at each position ``(B, h, w)``.
        ood: the OOD head's probability of ID at each position ``(B, h, w)``; None where the network has no such head.
        p_id: ``P(x ∈ ID | x)`` of the whole images ``(B,)``; None likewise.
    """

    probability: Tensor
    labels: Tensor
    confidence: Tensor
    ood: Tensor | None
    p_id: Tensor | None

    def sampled(self, gamma: float) -> Tensor:
        """Which positions ``(B, h, w)`` are sure of the class (1), which that it is not there (-1), and neither (0)."""
        is_id, is_ood = sure_positions(self.confidence, check_gamma(gamma))
        return is_id.int() - is_ood.int()


@torch.no_grad()
def patch_maps(classifier: Classifier, images: Tensor, labels: Tensor | None = None) -> PatchMaps:
    """The classification head, and the OOD head if there is one, at every position of the last feature map.

    Args:
        classifier: any whose feature map can be found.
        images: uint8 ``(B, 3, S, S)``, as the transform's geometry leaves them.
        labels: classes ``(B,)`` to show the confidence of; the predicted one where -1, everywhere where None.

    Raises:
        InputError: the network has no feature map, or does not pool it by the mean.
    """
    fmap = _checked_map(classifier, classifier.transform.normalise(images.to(classifier.device)))
    split = classifier.split
    logits = decide(classifier.heads, split.neck(split.pool(fmap)).flatten(1), classifier.head)
    asked = logits.new_full((len(fmap),), -1).long() if labels is None else labels.to(logits.device)
    labels = torch.where(asked >= 0, asked, logits.argmax(dim=1))
    confidence, z = _at_positions(classifier, fmap, labels)
    ood, p_id = (None, None) if z is None else (z.sigmoid(), z.mean(dim=(1, 2)).sigmoid())
    return PatchMaps(logits.softmax(dim=1), labels, confidence, ood, p_id)


@torch.no_grad()
def patch_probe(classifier: Classifier) -> tuple[Probe, tuple[int, int]]:
    """What computes the maps of the predicted class within a pass of the network, and the maps' sides ``(h, w)``.

    Its columns are the confidence ``(B, h · w)`` and, with an OOD head, that head's probability of ID.

    Raises:
        InputError: as ``patch_maps``.
    """

    def probe(maps: Maps) -> list[Tensor]:
        fmap = maps.layers[-1]
        labels = decide(classifier.heads, maps.rest(fmap), maps.head).argmax(dim=1)
        confidence, z = _at_positions(classifier, fmap, labels)
        return [confidence] if z is None else [confidence, z.sigmoid()]

    _, _, height, width = _checked_map(classifier, classifier.noise()).shape
    return probe, (height, width)


def _checked_map(classifier: Classifier, x: Tensor) -> Tensor:
    """The last feature map ``(B, K, h, w)`` of normalised images."""
    fmap: Tensor = classifier.split.backbone(x)
    if not classifier.split.averages(fmap):
        raise InputError(
            f"{classifier.name} does not average its feature map, so its positions are not patches; use a network with "
            "average pooling"
        )
    return fmap


def _at_positions(classifier: Classifier, fmap: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Confidence on each image's label, and the OOD head's logits if there is one, at every position ``(B, h, w)``."""
    confidence = class_confidence(classifier.logits_at_positions(fmap), labels)
    known = known_heads()
    reading = next((m for k, m in classifier.heads.items() if issubclass(known.get(k, nn.Module), PositionHead)), None)
    return confidence.reshape(len(fmap), *fmap.shape[2:]), None if reading is None else reading(fmap)[:, 0]


def explain(
    classifiers: Any,
    images: AnySource | Sequence[AnySource],
    out: str | Path,
    *,
    gamma: float = 0.95,
    label: str | None = None,
) -> Path:
    """Draw the maps of some images, models side by side, and store the arrays beside the picture.

    Args:
        classifiers: a session or classifier, or several by the name to print.
        images: up to 24. The confidence is on the true class where the images name classes as the model does, else on
            the predicted one; the picture says which.
        out: the picture, ``.png`` or ``.svg``; the arrays go to the same name with ``.npz``.
        gamma: the sampler's threshold, in (0.5, 1).
        label: class, by name or number, to show the confidence of instead.

    Returns:
        Where the arrays are: ``MODEL/confidence``, ``…/sampled``, ``…/label``, ``…/probability``, and with an OOD head
        ``…/ood``, ``…/p_id``.

    Raises:
        InputError: there are more images, one cannot be read, or a network has no feature map.
    """
    out = Path(out).expanduser()
    classifiers = classifiers_by_name(classifiers)
    several: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
    sources = [as_source(one) for one in several]
    positions = [(source, i) for source in sources for i in range(len(source))]
    _check(out, len(positions))
    arrays: dict[str, Any] = {}
    rows: list[list[Seen]] = [[] for _ in positions]
    for name, classifier in classifiers.items():
        pixels = torch.stack([_pixels(classifier, source, i) for source, i in positions])
        wanted = [_labels(classifier, source, label) for source in sources]
        known = torch.cat([torch.from_numpy(w) for w in wanted])
        maps = patch_maps(classifier, pixels, known)
        sampled = maps.sampled(gamma)
        for i, row in enumerate(rows):
            what = "asked" if label is not None else "true" if known[i] >= 0 else "predicted"
            row.append(_seen(classifier, pixels[i], maps, sampled, i, what))
        found: dict[str, Tensor | None] = {"confidence": maps.confidence, "sampled": sampled, "label": maps.labels}
        found |= {"probability": maps.probability, "ood": maps.ood, "p_id": maps.p_id}
        arrays |= {f"{name}/{k}": t.cpu().numpy() for k, t in found.items() if t is not None}
    names = [Path(source.name(i)).name for source, i in positions]
    make_folder(out.parent)
    with whole(out.with_suffix(".npz")) as partial:  # takes its place right after the picture's, or neither does
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        draw_maps(list(zip(names, rows, strict=True)), list(classifiers), gamma, out)
    return out.with_suffix(".npz")


def _check(out: Path, n: int) -> None:
    """Refuse what cannot be drawn or written before anything is computed."""
    check_file(out, (".png", ".svg"))
    check_file(out.with_suffix(".npz"))
    if n > MOST:
        raise InputError(f"{n:,} images do not fit in one picture; give at most {MOST}, e.g. SET[:12]")


def _pixels(classifier: Classifier, source: Source, i: int) -> Tensor:
    try:
        return classifier.transform.geometry(decode(source.read(i)))
    except (BadImage, OSError) as e:
        raise InputError(f"{source.name(i)} cannot be read: {e}") from None


def _labels(classifier: Classifier, source: Source, label: str | None) -> Labels:
    """The class to show of each image, -1 for the predicted one."""
    n, names = classifier.head.n_classes, classifier.classes or []
    if label is not None:
        if label not in names and not (label.isdecimal() and int(label) < n):
            raise InputError(
                f"unknown class '{label}'{nearest(label, names) if names else f'; give a number below {n}'}"
            )
        return np.full(len(source), names.index(label) if label in names else int(label))
    with contextlib.suppress(InputError):  # of other classes
        source = aligned(source, classifier.classes)
    same = source.classes == classifier.classes if names and source.classes else len(source.classes or names) in (0, n)
    return source.labels if same and source.labels.max() < n else np.full(len(source), -1)


def _seen(classifier: Classifier, pixels: Tensor, maps: PatchMaps, sampled: Tensor, i: int, what: str) -> Seen:
    label = int(maps.labels[i])
    name = classifier.classes[label] if classifier.classes else f"class {label}"
    return Seen(
        pixels.permute(1, 2, 0).numpy(),
        maps.confidence[i].cpu().numpy(),
        sampled[i].cpu().numpy(),
        None if maps.ood is None else maps.ood[i].cpu().numpy(),
        f"{name} ({what}): {float(maps.probability[i, label]):.0%}",
        "" if maps.p_id is None else f"P(ID) {float(maps.p_id[i]):.0%}",
    )
