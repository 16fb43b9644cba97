"""What a network sees: how large its images are, and how they were normalised."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.data.preprocess import AnyTransform


def input_size(
    model: nn.Module, transform: AnyTransform | None, size: Sequence[int] | None, name: str
) -> tuple[int, int, int]:
    """``(C, H, W)`` of the images that the network sees."""
    if transform is not None and not hasattr(transform, "normalise"):
        raise InputError(f"transform: expected a nescio.Transform, got {type(transform).__name__}")
    if size is not None:
        if len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(f"size={size} must be the (channels, height, width) of one normalised image")
        return size[0], size[1], size[2]
    if transform is None:
        raise InputError(
            f"{name}: the size of its images is unknown. Give size=(3, 224, 224), say, for normalised batches, or the "
            "transform of its test images: nescio.Transform(…)"
        )
    return 1 if channels_of(model) == 1 else transform.channels, transform.crop, transform.crop


def channels_of(model: nn.Module) -> int:
    """1 where the first convolution reads grey images, else 3."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3


def in_own_type(network: nn.Module, x: Tensor) -> Tensor:
    """Images in the type of float that the network computes in now, which is its first parameter's."""
    return next((x.to(p.dtype) for p in network.parameters() if p.is_floating_point()), x)


def spread(transform: AnyTransform | None, channels: int) -> Sequence[float]:
    """Standard deviation of each channel before it was normalised, as far as it is known."""
    std = (1.0,) if transform is None else transform.std
    return std if len(std) == channels else std[:1] * channels
