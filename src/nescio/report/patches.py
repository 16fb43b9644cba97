"""What the OOD head says at every position of some images: small heat maps beside their pictures, and a plate."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image
from torch import Tensor

from nescio.core.errors import BadImage
from nescio.data.decode import decode
from nescio.data.source import Source
from nescio.data.transform import Transform
from nescio.evaluation.results import Results
from nescio.report.figures import Panel, Plate
from nescio.report.pictures import SIDE, address, short_name

SHOWN = 6
"""Images of each set."""


@dataclass(frozen=True)
class PatchMap:
    """An image as the network saw it, and what the OOD head says of it.

    Attributes:
        name: what the image is called.
        image: its pixels, as a data address.
        heat: the probability of ID at each position, likewise.
        p_id: that of the whole image.
    """

    name: str
    image: str
    heat: str
    p_id: float


def patch_maps(results: Results) -> dict[str, list[PatchMap]]:
    """Maps of the first few sampled images of each set that is at hand; none without a square map of an OOD head."""
    sample, transform = results.sample, results.manifest.get("transform")
    if sample is None or not transform:
        return {}
    geometry = Transform.parse(transform).geometry
    found = {}
    for scored in (results.id_set, *results.ood_sets):
        s, source = sample.sets[scored.name], scored.source
        side = 0 if s.ood is None else math.isqrt(s.ood.shape[1])
        if source is not None and s.ood is not None and side * side == s.ood.shape[1]:
            logits = s.ood[:SHOWN].astype(np.float64).reshape(-1, side, side)
            maps = (_map(source, int(row), z, geometry) for row, z in zip(s.rows, logits, strict=False))
            found[scored.name] = [m for m in maps if m is not None]
    return {name: maps for name, maps in found.items() if maps}


def _map(
    source: Source, row: int, logits: np.ndarray[Any, Any], geometry: Callable[[Image.Image], Tensor]
) -> PatchMap | None:
    """None where the image cannot be read any more."""
    try:
        pixels = geometry(decode(source.read(row))).permute(1, 2, 0).numpy()
    except (BadImage, OSError):
        return None
    heat = mpl.colormaps["viridis"](_sigmoid(logits), bytes=True)[..., :3]
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    p_id = float(_sigmoid(logits.mean()))
    return PatchMap(short_name(source, row), address(image), address(Image.fromarray(heat.copy()), "PNG"), p_id)


def _sigmoid(z: Any) -> Any:
    return 0.5 * (1 + np.tanh(z / 2))


def plate(maps: Mapping[str, Sequence[PatchMap]]) -> Plate:
    """For the files: a panel for each set, its images above their maps."""

    def panel(name: str, found: Sequence[PatchMap]) -> Panel:
        def draw(ax: Any) -> None:
            for column, m in enumerate(found):
                left = 1.05 * column
                for top, drawn in ((0, m.image), (1.05, m.heat)):
                    ax.imshow(_pixels(drawn), extent=(left, left + 1, top + 1, top), interpolation="nearest")
                ax.text(left + 0.5, 2.3, f"{m.p_id:.2f}", ha="center", fontsize=7)
            ax.set(xlim=(0, 1.05 * SHOWN), ylim=(2.4, 0), aspect="equal")
            ax.set_axis_off()

        return Panel(name, draw)

    return Plate("patches", [panel(*item) for item in maps.items()], size=(4.6, 2.0))


def _pixels(drawn: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2]))).convert("RGB"))
