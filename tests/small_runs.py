"""Training in tests: everything by its own keyword, without a bar."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nescio import training
from nescio.models.runs import Run
from nescio.training import Hardware, Sets, Start

CPU = Hardware(device="cpu", workers=0, progress=False)


def train(out: Path, *, seed: int = 0, **options: Any) -> Run:
    """``nescio.train``, with what ``Start`` and ``Sets`` take, and the seed, beside the rest."""

    def taken(*names: str) -> dict[str, Any]:
        return {name: options.pop(name) for name in names if name in options}

    model = Start(**taken("model", "init", "size", "transform"))
    sets = Sets(**taken("train", "val", "outliers", "watch"))
    recipe = dataclasses.replace(options.pop("recipe"), seed=seed)
    return training.train(out, model=model, sets=sets, recipe=recipe, **options)
