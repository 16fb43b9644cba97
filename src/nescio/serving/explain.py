"""What a verdict may be understood by: the nearest class, and what the classifier sees where."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.errors import InputError
from nescio.core.features import Features
from nescio.deploy.deployed import Deployed, Judged
from nescio.evaluation.sample import prototypes_of
from nescio.explanation.maps import patch_probe
from nescio.run.passes import PLAIN
from nescio.serving.answers import Explanation

_MAPS = "patch maps"


class Explainer:
    """Judges images and explains the verdicts, both from the same pass of the network.

    Prototypes are the mean training features by class where the detector has learned them, else the head's rows.
    """

    def __init__(self, deployed: Deployed) -> None:
        learned = prototypes_of([deployed.detector])
        self.deployed = deployed
        self.prototypes = deployed.classifier.head.weight if learned is None else learned
        self.source = "head" if learned is None else "training"
        self.network, self.sides = None, None
        with contextlib.suppress(InputError), torch.no_grad():  # a network without maps
            probe, sides = patch_probe(deployed.classifier)
            network = deployed.session.network(PLAIN, deployed.plain_probes | {_MAPS: probe})
            network(deployed.classifier.noise())
            self.network, self.sides = network, sides

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Judged, list[Explanation]]:
        """Judge and explain images as the transform's geometry leaves them: uint8 ``(B, 3, crop, crop)``."""
        judged, plain = self.deployed.judge_through(self.network, images)
        cosines = torch.stack([numerics.cosine(h, self.prototypes.to(h)) for h in plain.h])
        found, nearest = cosines.max(dim=1)
        maps = self._maps(plain)
        return judged, [
            Explanation(
                nearest=self.deployed.class_name(int(nearest[i])),
                cosine=float(found[i]),
                prototypes=self.source,
                **{name: None if rows is None else rows[i] for name, rows in maps.items()},
            )
            for i in range(len(images))
        ]

    def _maps(self, plain: Features) -> dict[str, list[list[list[float]]] | None]:
        columns = [c.reshape(-1, *self.sides).tolist() for c in plain.probed(_MAPS)] if self.sides else []
        return dict(zip(("patch_map", "ood_map"), [*columns, None, None], strict=False))
