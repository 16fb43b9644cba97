"""One ``load`` for whatever nescio wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nescio.core.artifact import kind_of
from nescio.core.detector import Detector
from nescio.core.errors import InputError
from nescio.deploy.deployed import Deployed
from nescio.deploy.hub import fetched, is_on_hub
from nescio.evaluation.results import Results
from nescio.evaluation.results_files import RESULTS
from nescio.models import load_classifier
from nescio.models.runs import RUN


def load(path: str | Path, **options: Any) -> Any:
    """What nescio wrote, as what it was: a ``Detector``, a ``Deployed``, ``Results`` or a ``Classifier``.

    Args:
        path: a file that ``Detector.save`` or ``Deployed.save`` wrote (``nescio fit``); a folder of results
            (``nescio bench --out``) or with a trained network (``nescio train``); or ``hf:user/name[@revision]``, what
            ``push`` uploaded to the Hugging Face Hub.
        **options: of a deployed file ``model``, ``weights`` and ``device``; of results ``images``; of a trained
            network those of ``load_classifier``.

    Raises:
        InputError: it is missing, damaged, of a later version, or none of these; or the hub cannot be reached.
    """
    path = fetched(path) if is_on_hub(path) else Path(path)
    folder = path.parent if path.name in (RUN, RESULTS) else path
    if (folder / RESULTS).is_file():
        return Results.load(folder, **options)
    if (folder / RUN).is_file():
        return load_classifier(str(folder), **options)
    if path.is_dir():
        raise InputError(f"the folder {path} has neither results ({RESULTS}) nor a trained network ({RUN})")
    if kind_of(path) != "detector":
        return Deployed.load(path, **options)
    if options:
        raise InputError(
            f"{path} has a detector without a network, which does not take {next(iter(options))}=; leave it out"
        )
    return Detector.load(path)
