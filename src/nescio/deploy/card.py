"""The model card of a detector: what its file says of itself, as the Markdown that the hub shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nescio.core.artifact import kind_of
from nescio.core.detector import Detector
from nescio.core.text import printable
from nescio.deploy.file import describe
from nescio.evaluation.accuracy import Accuracy

TAGS = ["nescio", "out-of-distribution-detection", "ood-detection"]
MOST_ROWS = 50
"""Rows of a table and names in a list; the rest is counted."""


LIMITS = (
    (
        "The promise is about new ID images. It does not say how many other images are rejected: measure that on "
        "images that you expect (`nescio bench`)."
    ),
    (
        "The promise holds while new images are like the calibration images. `nescio serve` and "
        "`nescio.calibration.drift` notice when they no longer are."
    ),
    "The p-value is the share of ID images that score this low. It is not the probability that an image is ID.",
)


def card_of(path: str | Path, name: str, license: str | None = None) -> str:  # noqa: A002 - the hub's word
    """The card of a file, with a snippet that loads it.

    Args:
        path: a file that ``nescio fit`` or ``Detector.save`` wrote.
        name: what ``nescio.load`` is given: ``hf:user/name``, or a path.
        license: as the hub abbreviates it; left out where None.

    Raises:
        InputError: the file is damaged, or none of these.
    """
    alone = kind_of(Path(path)) == "detector"
    parts = _of_detector(Detector.load(path), name) if alone else _of_deployed(describe(path), name)
    return f"{_front(license, pipeline=not alone)}\n# {_title(name)}\n\n{parts}"


def _front(license: str | None, *, pipeline: bool) -> str:  # noqa: A002 - the hub's word
    from huggingface_hub import ModelCardData

    task = "image-classification" if pipeline else None
    data = ModelCardData(library_name="nescio", tags=TAGS, license=license, pipeline_tag=task)
    return f"---\n{data.to_yaml()}\n---\n"


def _title(name: str) -> str:
    return _safe(name.partition("@")[0].rpartition("/")[2])


def _of_deployed(about: dict[str, Any], name: str) -> str:
    model, calibration = about["model"], about["calibration"]
    return f"""An image classifier that can say "I do not know". For each image it gives a class, a score, a p-value,
and whether the image is enough like the images that the classifier was made for.

## Use

```python
import nescio

detector = nescio.load({json.dumps(name)})
for verdict in detector(["photo.jpg"]):
    print(verdict.label if verdict.accepted else "I do not know", verdict.p_value)
```

`pip install nescio` gives the library. The file is safetensors and JSON: nothing in it is run when it is loaded.
{_missing_weights(model)}
## What it is

{_table(("", ""), _facts(about))}

## Calibration

**Promise:** {_safe(calibration["promise"])}.

{_table(("predicted class", "calibration images", "accepted from a score of"), _groups(model, calibration))}
{_tallies(model, calibration)}
## Intended use

Images like the calibration images, in the same format and from the same kind of source, that belong to the classes
above. A rejected image should go to a person or to another system. An accepted image may still be classified wrongly.

## Limits

{_list(_limits(about))}
"""


def _of_detector(detector: Detector, name: str) -> str:
    return f"""A detector alone, without a network and without a threshold. It scores features; a higher score
means more like the training images.

## Use

```python
import nescio

detector = nescio.load({json.dumps(name)})
scores = detector(features)  # (N, L), from before the last layer of the network that it was fitted for
```

`pip install nescio` gives the library. The file is safetensors and JSON: nothing in it is run when it is loaded.

## What it is

{_table(("", ""), [("detector", str(detector)), ("size", f"{detector.size / 1e6:,.1f} MB")])}

## Limits

- It has no threshold. `nescio fit` makes one from held-out images of your own.
- Features of another network, or of other layers, give scores that mean nothing.
"""


def _missing_weights(model: dict[str, Any]) -> str:
    if model["embedded"]:
        return ""
    return (
        f"\nThe file holds a hash of the network's weights (`{model['weights']}`), not the weights. "
        "Give them: `nescio.load(…, weights=FILE)`.\n"
    )


def _facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    model, calibrator = about["model"], about["calibrator"]
    names = f": {_named(model['classes'], range(model['n_classes']))}" if model["classes"] else ", without names"
    facts = [
        ("network", model["name"]),
        ("classes", f"{model['n_classes']:,}{names}"),
        ("images", model["transform"]),
        ("detector", about["detector"]["spec"]),
        ("weights (hash)", model["weights"]),
    ]
    if calibrator:
        facts.append(("P(ID given image)", f"against {calibrator['proxy']}, with a prior of {calibrator['prior']:g}"))
    versions = about.get("versions")
    if isinstance(versions, dict):
        facts.append(("made with", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return facts


def _groups(model: dict[str, Any], calibration: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (_named(model["classes"], g["classes"]) if g["classes"] else "any", f"{g['n']:,}", f"{g['threshold']:.6g}")
        for g in calibration["groups"]
    ]


def _tallies(model: dict[str, Any], calibration: dict[str, Any]) -> str:
    tallies = calibration.get("by_class")
    if not tallies:
        return ""
    rows = [
        (_named(model["classes"], [t["index"]]), f"{t['images']:,}", f"{t['rejected']:,}", f"{t['median']:.6g}")
        for t in tallies
    ]
    table = _table(("predicted class", "calibration images", "rejected of these", "median score"), rows)
    return f"\nThe calibration images by predicted class:\n\n{table}\n"


def _limits(about: dict[str, Any]) -> list[str]:
    limits = [*LIMITS]
    limits.append(_accuracy(about.get("accuracy")))
    if about.get("untrained") is True:
        limits.insert(0, "**The weights are random: the network is untrained.**")
    return limits


def _accuracy(found: Any) -> str:
    try:
        accuracy = Accuracy(**found)
        warning = f" **{_safe(accuracy.warning)}**" if accuracy.warning else ""
        return f"The class is right for {_safe(str(accuracy))}.{warning}"
    except (TypeError, ValueError):  # no image was labelled, or an earlier version wrote it
        return "How often the class is right is not known: no labelled images were given."


def _named(names: Sequence[str] | None, classes: Iterable[int]) -> str:
    """Classes by name, or by number where they have none."""
    found = [names[c] if names else str(c) for c in classes]
    more = f" and {len(found) - MOST_ROWS:,} more" if len(found) > MOST_ROWS else ""
    return ", ".join(found[:MOST_ROWS]) + more


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_safe(cell) for cell in row] for row in rows[:MOST_ROWS])]
    more = f"\n\n… and {len(rows) - MOST_ROWS:,} more" if len(rows) > MOST_ROWS else ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + more


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _safe(text: str) -> str:
    """Text of a file's, on one line and without Markdown or HTML of its own."""
    line = printable(" ".join(text.split()))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in line)
