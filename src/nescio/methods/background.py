"""Which positions of a feature map are sure of the image's class, and which that it is not there: its background."""

from __future__ import annotations

from torch import Tensor

from nescio.core.errors import InputError


def check_gamma(gamma: float) -> float:
    """A threshold within (0.5, 1)."""
    if not 0.5 < gamma < 1:
        raise InputError(f"gamma={gamma:g} must be in (0.5, 1); 1-gamma is the threshold for OOD positions")
    return gamma


def class_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax confidence on each image's class: logits at P positions ``(B, P, C)``, labels ``(B,)``; ``(B, P)``."""
    own = labels[:, None, None].expand(-1, logits.shape[1], 1)
    return logits.float().softmax(dim=2).gather(2, own)[..., 0]


def sure_positions(confidence: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Where the confidence on the class is ``≥ γ``, and where it is ``< 1 - γ``: bool, of the confidence's shape.

    Source: Pei, "Image Background Serves as Good Proxy for Out-of-distribution Data", ICLR 2024, equation 12.
    """
    return confidence >= gamma, confidence < 1 - gamma
