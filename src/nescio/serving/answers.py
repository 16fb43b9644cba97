"""What the service says, as its OpenAPI description shows it."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, Field

from nescio.deploy.deployed import Verdict


class Explanation(BaseModel):
    """What a verdict may be understood by."""

    nearest: str = Field(description="The class whose prototype is nearest to the image's penultimate features.")
    cosine: float = Field(description="Cosine of the angle between the two.")
    prototypes: str = Field(description="'training': mean training features by class; 'head': the head's own rows.")
    patch_map: list[list[float]] | None = Field(
        description="Softmax confidence on the label at each position of the last feature map; null if the network "
        "has no such map."
    )
    ood_map: list[list[float]] | None = Field(description="P(ID) at each position, from an OOD head; else null.")


class ImageVerdict(BaseModel):
    """What is said of one image."""

    image: str = Field(description="The file name that the client sent.")
    label: str = Field(description="The classifier's prediction, whether accepted or not.")
    index: int = Field(description="The label as a number.")
    probability: float = Field(description="Softmax probability of the label.")
    score: float | None = Field(
        description="The detector's score; higher means more in-distribution. Null if infinite."
    )
    p_value: float = Field(
        description="Share of calibration ID images with a score this low or lower. Not a probability of ID."
    )
    accepted: bool = Field(description="Whether the score reaches the calibrated threshold.")
    p_id: float | None = Field(description="P(ID | image), from an OOD head or a named proxy; else null.")
    posterior: float | None = Field(description="probability · p_id; else null.")
    explanation: Explanation | None = Field(default=None, description="Only if requested.")

    @classmethod
    def of(cls, name: str, v: Verdict, explanation: Explanation | None = None) -> ImageVerdict:
        """A verdict, in this form."""
        shown = vars(v) | {"score": v.score if math.isfinite(v.score) else None}
        return cls(image=name, posterior=v.posterior, explanation=explanation, **shown)


class Answer(BaseModel):
    """Verdicts in the order of the images."""

    verdicts: list[ImageVerdict]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


class Status(BaseModel):
    """How the service is."""

    status: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an endpoint may refuse with, for its description."""
    return {status: {"model": Problem} for status in statuses}
