"""Whether a classifier knows its classes: its accuracy on labelled ID images, judged the same everywhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nescio.core.errors import InputError, some
from nescio.core.feature_set import FeatureSet
from nescio.data.labels import aligned, plain
from nescio.data.source import Source
from nescio.models import Classifier

log = logging.getLogger(__name__)

FEWEST = 20
"""Labelled images from which accuracy is judged: it says too little of fewer."""
FAR_BELOW = 0.1
"""How much less than the recorded accuracy is worth a warning, beyond what chance explains."""
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """How often a classifier is right.

    Attributes:
        title: what the images are: id, training, calibration, validation.
        images: how many are labelled.
        share: of these, that are classified right, in [0, 1].
        guessing: what that would be, class by class, if the predictions had nothing to do with the images.
        warning: what is wrong with that; empty where nothing is.
    """

    title: str
    images: int
    share: float
    guessing: float
    warning: str = ""

    def __str__(self) -> str:
        return f"{self.share:.2%} of {self.images:,} {self.title} images"


def measure(classifier: Classifier, rows: FeatureSet, title: str) -> Accuracy | None:
    """Accuracy on the labelled images, with a warning in the log where it is near chance or far too low.

    Args:
        classifier: the network.
        rows: its features of ID images, from the plain pass.
        title: what they are.

    Returns:
        None where no image is labelled.

    Raises:
        InputError: the predictions say that the labels are in another order than the classes of the model.
    """
    known = rows.labels >= 0
    labels, pred = rows.labels[known], rows.pred[known]
    if not len(labels) or not classifier.has_head:
        return None
    if not classifier.untrained:
        _check_order(labels, pred, classifier.classes or (), title)
    share = float((labels == pred).mean())
    guessing, near = _against_guessing(labels, pred, classifier.head.n_classes)
    warning = ""
    if len(labels) >= FEWEST:
        warning = _near_chance(share, guessing, title) if near else _far_below(classifier, share, len(labels), title)
    if warning:
        log.warning("%s", warning)
    return Accuracy(title, len(labels), share, guessing, warning)


def _against_guessing(labels: Labels, pred: Labels, n_classes: int) -> tuple[float, bool]:
    """The share that guessing gets right, and whether the predictions are hardly better.

    Both are means over the classes, so that neither a rare class nor a prediction that never changes hides anything.
    """
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    recall = np.bincount(inverse, weights=pred == labels) / counts
    weights = 1 / (len(classes) * counts[inverse])
    among = float(weights[np.isin(pred, classes)].sum())  # predictions that could be right for some of the images
    guessing = among / len(classes) if len(classes) > 1 else 1 / n_classes
    spread = float(np.sqrt((guessing * (1 - guessing) / counts).sum())) / len(classes)
    better = float(recall.mean()) - guessing
    unproven = better < 2 * spread and better < (1 - guessing) / 2
    return guessing, unproven or better <= min(0.1 * (1 - guessing), guessing)


def _near_chance(share: float, guessing: float, title: str) -> str:
    return (
        f"the classifier is right for {share:.1%} of the {title} images, about as often as guessing ({guessing:.1%}), "
        "so these results mean nothing; check the weights= (--weights), the "
        "transform= (--transform) and that the labels match its classes"
    )


def _far_below(classifier: Classifier, share: float, n: int, title: str) -> str:
    if classifier.recorded is None:
        return ""
    once, where = classifier.recorded
    if share >= once - FAR_BELOW - 3 * (once * (1 - once) / n) ** 0.5:
        return ""
    return (
        f"the classifier is right for {share:.1%} of {n:,} {title} images, far below the {once:.1%} that {where}; "
        "check the transform= (--transform), and that the images are of the kind and classes that it was trained for"
    )


def _check_order(labels: Labels, pred: Labels, names: Sequence[str], title: str) -> None:
    moved = moved_classes(labels, pred)
    if not moved:
        return
    meant = np.array([moved.get(int(label), int(label)) for label in labels])
    as_number = {number: label for label, number in moved.items()}
    order = [names[as_number.get(i, i)] if i in as_number or i not in moved else "?" for i in range(len(names))]
    hint = f"; the predictions suggest the order {some(order, 10)}" if order else ""
    raise InputError(
        f"the labels of the {title} images are in a different order from the classes of the model: it is right for "
        f"{(labels == pred).mean():.1%} of them, and would be for {(meant == pred).mean():.1%} with {len(moved)} "
        f"classes renumbered; write the class names into a file, one per line in the order of the model's outputs, and "
        f"give classes=FILE (--classes FILE){hint}; if the weights are random, give untrained=True (--untrained)"
    )


def moved_classes(labels: Labels, pred: Labels) -> dict[int, int]:
    """The model's number of each class that the labels give another number, as far as the predictions say so.

    A class has moved where most of its images are predicted as one other class, which is predicted for no class as
    often. Every second image of each class finds these, the others must confirm it.

    Args:
        labels: true classes ``(N,)``.
        pred: predictions ``(N,)``.

    Returns:
        by label, the number that was predicted; empty where the labels are in the model's order, or nobody can tell.
    """
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    finds = rank % 2 == 0
    pairs, often = np.unique(np.stack([labels[finds], pred[finds]], axis=1), axis=0, return_counts=True)
    called: dict[int, tuple[int, int]] = {}
    label_of: dict[int, int] = {}
    for i in np.argsort(often, kind="stable"):  # the most frequent one comes last and stays
        label, number = map(int, pairs[i])
        called[label], label_of[number] = (number, int(often[i])), label
    half = dict(zip(classes.tolist(), ((counts + 1) // 2).tolist(), strict=True))
    moved = {
        label: number
        for label, (number, n) in called.items()
        if number != label and label_of[number] == label and 2 * n > half[label]
    }
    whole = set(moved) == set(moved.values())
    if len(moved) < 2 or not (whole or 4 * len(moved) >= len(classes)):
        return {}
    confirms = ~finds & np.isin(labels, list(moved))
    meant = np.array([moved[label] for label in labels[confirms].tolist()], dtype=np.int64)
    right, as_labelled = int((pred[confirms] == meant).sum()), int((pred[confirms] == labels[confirms]).sum())
    sure = right - as_labelled >= 4 * (right + as_labelled) ** 0.5 and 2 * right > confirms.sum()
    return moved if sure else {}


def with_classes(classifier: Classifier, sources: Mapping[str, Source | None]) -> Classifier:
    """The classifier, with the class names of the images where it has none of its own: labels are matched by them.

    An encoder has no classes, and stays as it is.

    ``extract`` gives images the model's class numbers by name. Here that is said, and refused where it cannot be.

    Args:
        classifier: the network. It stays what it is; what comes back may be a copy.
        sources: ID images by what they are; names are taken from the first that name all classes.

    Raises:
        InputError: the classes of a set are not the model's, or those of two sets differ, or a label has no class.
    """
    if not classifier.has_head:
        return classifier
    n, sets = classifier.head.n_classes, {title: s for title, s in sources.items() if s is not None}
    named = {title: s.classes for title, s in sets.items() if s.classes}
    names, whose = classifier.classes, "the model"
    if names is None and named:
        title, names = next(((t, c) for t, c in named.items() if len(c) == n), next(iter(named.items())))
        whose = f"the {title} images"
    matched = {title: _matched(title, source, names, whose) for title, source in sets.items()}
    for title, source in matched.items():
        if len(source.labels) and source.labels.max() >= n:
            raise InputError(
                f"the {title} images have labels up to {source.labels.max()}, but the model has {n} classes "
                f"(0…{n - 1}); is this the right model?"
            )
    _check_alike(sets, matched, names or [], whose, complete=len(names or ()) == n)
    for title, source in matched.items():
        if source is not sets[title]:
            log.info("the labels of the %s images are matched by name to the classes of %s", title, whose)
    return classifier.named(names) if names and len(names) == n else classifier


def _matched(title: str, source: Source, names: Sequence[str] | None, whose: str) -> Source:
    try:
        return aligned(source, names)
    except InputError as e:
        raise InputError(f"the {title} images and {whose} disagree about the classes: {e}; {_HINT}") from None


def _check_alike(
    sets: Mapping[str, Source], matched: Mapping[str, Source], names: Sequence[str], whose: str, *, complete: bool
) -> None:
    """Refuse sets of other classes than another's, where no names of the model's own hold them together."""
    own = set(map(plain, names))
    named = {title: s.classes for title, s in matched.items() if s.classes}
    if whose == "the model":  # names that have nothing in common with its own, which may be of another kind
        apart = {title: classes for title, classes in named.items() if not own & set(map(plain, classes))}
    else:
        apart = {title: classes for title, classes in named.items() if set(map(plain, classes)) - own}
    first = next(iter(apart.items()), (whose, names))
    for title, classes in apart.items():
        if whose != "the model" or classes != first[1]:
            other = whose if whose != "the model" else f"the {first[0]} images"
            differing = some(sorted(set(classes) ^ set(first[1] if whose == "the model" else names)) or ["their order"])
            raise InputError(
                f"the {title} images and {other} disagree about the classes ({differing}), so their labels cannot be "
                f"compared; {_HINT}"
            )
    moved = [title for title, source in matched.items() if source is not sets[title]]
    if moved and not complete:
        raise InputError(
            f"the {moved[0]} images and {whose} number the classes differently, and neither names all classes of "
            f"the model; {_HINT}"
        )


_HINT = (
    "rename the class folders, or write the folders' class names into a file, in the order of the model's outputs, "
    "one per line, and give classes=FILE (--classes FILE)"
)
