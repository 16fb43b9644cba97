"""What a verdict may be understood by: the nearest class, and what the classifier sees where."""

from __future__ import annotations

import torch
from torch import Tensor

from nescio.core import numerics
from nescio.core.errors import InputError
from nescio.deploy.deployed import Deployed
from nescio.evaluation.sample import prototypes_of
from nescio.explanation.maps import PatchMaps, patch_maps
from nescio.serving.answers import Explanation


class Explainer:
    """Explains batches of images of one detector.

    Prototypes are the mean training features by class where the detector has learned them, else the head's rows.
    """

    def __init__(self, deployed: Deployed) -> None:
        learned = prototypes_of([deployed.detector])
        self.deployed = deployed
        self.prototypes = deployed.classifier.head.weight if learned is None else learned
        self.source = "head" if learned is None else "training"
        try:
            patch_maps(deployed.classifier, self._noise())
            self.has_maps = True
        except InputError:
            self.has_maps = False

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Explanation]:
        """Explain images as the transform's geometry leaves them: uint8 ``(B, 3, crop, crop)``."""
        h = self.deployed.features(images)[0].h
        cosines = torch.stack([numerics.cosine(one, self.prototypes.to(h)) for one in h])
        found, nearest = cosines.max(dim=1)
        maps = patch_maps(self.deployed.classifier, images) if self.has_maps else None
        return [
            Explanation(
                nearest=self.deployed.class_name(int(nearest[i])),
                cosine=float(found[i]),
                prototypes=self.source,
                **_maps(maps, i),
            )
            for i in range(len(images))
        ]

    def _noise(self) -> Tensor:
        side = self.deployed.classifier.transform.crop
        return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)


def _maps(maps: PatchMaps | None, i: int) -> dict[str, list[list[float]] | None]:
    both = {"patch_map": None if maps is None else maps.confidence, "ood_map": None if maps is None else maps.ood}
    return {name: None if t is None else t[i].tolist() for name, t in both.items()}
