"""What trials of engines found on this machine, by network: a JSON file in the cache folder."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from pathlib import Path

import torch

from nescio.core.errors import InputError
from nescio.core.files import write_whole
from nescio.core.reading import read_json
from nescio.data.hashing import combine
from nescio.models import Classifier
from nescio.run.engines.engine import ENGINES

FILE = "engines.json"
_MOST = 1000
"""Networks that are remembered."""


def recall(folder: Path, classifier: Classifier, precision: str) -> str | None:
    """The engine that was fastest for this network in a trial on this machine, as a spec; None where there was none."""
    found = _read(folder).get(_key(classifier, precision))
    return found if isinstance(found, str) else None


def remember(folder: Path, classifier: Classifier, precision: str, engine: str) -> None:
    """Keep the outcome of a trial; where it cannot be kept, the next run makes one again."""
    known = dict(list(_read(folder).items())[1 - _MOST :]) | {_key(classifier, precision): engine}
    with contextlib.suppress(OSError, InputError):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE, json.dumps(known, indent=1))


def _read(folder: Path) -> dict[str, object]:
    try:
        known = read_json(folder / FILE)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _key(classifier: Classifier, precision: str) -> str:
    """Of what decides how fast an engine runs: the network's structure, the device, the libraries, the engines."""
    device = classifier.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    machine = (platform.node(), platform.machine(), str(os.cpu_count()), str(torch.get_num_threads()), gpu)
    size = "x".join(map(str, classifier.size))
    here = sorted(name for name, kind in ENGINES.items() if kind.setup is not None and kind().unusable(device) is None)
    return combine(repr(classifier.body), size, precision, torch.__version__, *machine, *here)
