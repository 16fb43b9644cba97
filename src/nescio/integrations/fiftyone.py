"""Verdicts as fields of FiftyOne's samples, to look through them there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from nescio.core.errors import InputError
from nescio.deploy.deployed import Deployed


def add_verdicts(samples: Iterable[Any], deployed: Deployed, field: str = "nescio", *, batch_size: int = 32) -> int:
    """Judge the image of each sample, and write the verdict into a field of it.

    ::

        add_verdicts(dataset.iter_samples(autosave=True), nescio.load("my.nescio"))
        dataset.match(F("nescio.accepted") == False)

    The field is a ``Classification``: ``label`` and ``confidence`` are the classifier's; ``score``, ``p_value`` and
    ``accepted`` are the detector's, with ``p_id`` where it gives one.

    Args:
        samples: of a dataset or view; ``iter_samples(autosave=True)`` stores what is written.
        deployed: what ``nescio.fit`` or ``nescio.load`` gives.
        field: the field's name.
        batch_size: images per step.

    Returns:
        how many samples were judged.

    Raises:
        InputError: FiftyOne is not installed, or an image cannot be read; it is named.
    """
    try:
        from fiftyone import Classification
    except ImportError:
        raise InputError("add_verdicts needs FiftyOne: pip install fiftyone") from None
    judged, rest = 0, iter(samples)
    while batch := list(itertools.islice(rest, batch_size)):
        for sample, verdict in zip(batch, deployed([s.filepath for s in batch]), strict=True):
            more = {} if verdict.p_id is None else {"p_id": verdict.p_id}
            sample[field] = Classification(
                label=verdict.label,
                confidence=verdict.probability,
                score=verdict.score,
                p_value=verdict.p_value,
                accepted=verdict.accepted,
                **more,
            )
        judged += len(batch)
    return judged
