"""Writes a ``.nescio`` file of the present format, and what it says of five images: later versions must agree."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import TINY_TRANSFORM, coloured, picture, tiny_net
from nescio.deploy import fit
from nescio.deploy.file import KIND
from nescio.models import Classifier
from nescio.run.session import Session

with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    for seed, name in enumerate(("train", "held")):
        coloured(root, name, per_class=30, classes=4, side=8, seed=seed)
    network = Classifier(tiny_net(), TINY_TRANSFORM, name="tiny", classes=["red", "green", "blue", "dark"])
    deployed = fit(
        Session(network, cache=root, workers=0, progress=False),
        "fm:p=0.5+react:q=0.9+ls+energy",
        train=root / "train",
        calibrate=root / "held",
        per_class=True,
        accept=0.8,
        proxy="noise",
    )
    path = Path(__file__).with_name(f"format-{KIND.version}.nescio")
    deployed.save(path)
    verdicts = deployed([np.asarray(picture(i)) for i in range(5)])
    path.with_suffix(".json").write_text(json.dumps([vars(v) for v in verdicts], indent=1) + "\n")
