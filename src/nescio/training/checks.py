"""What is refused before training, while nothing is lost."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nescio.core.errors import InputError, some
from nescio.core.files import make_folder
from nescio.data.hashing import combine
from nescio.data.labels import aligned, plain
from nescio.data.source import Source
from nescio.methods.objective import OBJECTIVES, Objective
from nescio.models.runs import RUN, Run

log = logging.getLogger(__name__)


def _matched(val: Source, names: Sequence[str] | None) -> Source:
    """The validation images with the class numbers of the training images, by name.

    Raises:
        InputError: the sets have other classes.
    """
    theirs = sorted(map(plain, val.classes or ()))
    if names and theirs and theirs != sorted(map(plain, names)):
        differing = some(sorted(set(names) ^ set(val.classes or ())))
        raise InputError(f"the training and validation images disagree about the classes ({differing})")
    return aligned(val, names)


def check_sources(train: Source, val: Source, batch_size: int) -> tuple[int, Source]:
    """The number of classes; and the validation images with the training images' class numbers, by name.

    Raises:
        InputError: an image has no label, a class no image, there is one class only, the sets disagree, or there are
            fewer images than make a batch.
    """
    for name, source in (("training", train), ("validation", val)):
        unlabelled = int((source.labels < 0).sum())
        if unlabelled:
            raise InputError(
                f"{unlabelled:,} of {len(source):,} {name} images have no class number; give a folder of class "
                "folders, or parquet with a column 'label' of integers"
            )
    names = train.classes
    n = max(len(names or []), int(train.labels.max()) + 1)
    counts = np.bincount(train.labels, minlength=n)
    empty = [names[c] if names and c < len(names) else c for c in np.flatnonzero(counts == 0)]
    if empty:
        raise InputError(f"the training set has no images of class {some(empty)}; add some")
    if n < 2:
        raise InputError("all training images have the same class; give two or more classes")
    val = _matched(val, names)
    if int(val.labels.max()) >= n:
        raise InputError(
            f"the validation images have labels up to {val.labels.max()}, but the training images have {n} classes"
        )
    if train.identity == val.identity:
        log.warning(
            "the validation images are the training images, so validation results are too good; give other images"
        )
    if len(train) < batch_size:
        raise InputError(
            f"{len(train):,} training images do not fill a batch of {batch_size}; lower batch_size= (--batch-size)"
        )
    return n, val


def check_objective(objective: Objective, sources: Mapping[str, Source], epochs: int) -> None:
    """Refuse outliers that an objective does not read, or their absence where it does.

    Raises:
        InputError: as said, or the outliers are the training or validation images.
    """
    outliers = sources.get("outliers")
    if objective.needs.outliers and outliers is None:
        raise InputError(f"objective '{objective}' learns from outliers; give outliers= (--outliers SET)")
    if outliers is not None and not objective.needs.outliers:
        reading = some(f"{name}:outliers=1" for name, o in sorted(OBJECTIVES.items()) if "outliers" in o.options())
        raise InputError(f"objective '{objective}' does not use outliers; these do: {reading}")
    for name in ("train", "val"):
        if outliers is not None and outliers.identity == sources[name].identity:
            raise InputError(f"the outliers are the same images as the {name} images; give other images")
    if objective.start >= epochs:
        log.warning(
            "'%r' starts after epoch %g, and training ends before that: it trains with cross entropy alone",
            objective,
            objective.start,
        )


def check_same_run(out: Path, run: Run, *, resume: bool) -> Run:
    """The run that a folder holds, if it is the one to be resumed; ``run`` itself in a fresh folder.

    Raises:
        InputError: the folder holds another run, or one and nobody asked to resume it, or cannot be written to.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder")
    if not (out / RUN).exists():
        if resume and out.exists() and any(out.iterdir()):
            raise InputError(f"{out} has no run to resume: it has no {RUN}")
        if resume:
            log.info("%s has no run yet: starting one", out)
        make_folder(out)
        if not os.access(out, os.W_OK):
            raise InputError(f"{out} cannot be written to; give another folder")
        return run
    there = Run.read(out)
    if not resume:
        raise InputError(f"{out} has a run already; continue it with resume=True (--resume), or give another folder")
    wanted, stored = _flat(run), _flat(there)
    differing = [k for k in wanted if wanted[k] != stored.get(k) and k != "epochs"]
    if differing:
        first = differing[0]
        raise InputError(
            f"{out} was trained with a different {some(differing)} ({first}: {stored.get(first)}, now "
            f"{wanted[first]}); give the same options to resume it, or another folder"
        )
    there.settings["epochs"] = run.settings["epochs"]
    return there


def made_with(device: torch.device) -> dict[str, Any]:
    """Versions and machine, for the record."""
    packages = ("nescio", "torch", "torchvision", "timm", "lightning-fabric")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"python": platform.python_version(), "device": where} | {p: importlib.metadata.version(p) for p in packages}


def fingerprint(run: Run) -> str:
    """A hash of all that a run follows from, but for the number of epochs."""
    return combine(json.dumps({k: v for k, v in _flat(run).items() if k != "epochs"}, sort_keys=True))


def _flat(run: Run) -> dict[str, object]:
    return {
        "architecture": run.model,
        "classes": run.classes or run.n_classes,
        "transform": run.transform,
        "objective": run.objective,
        **run.settings,
    }
