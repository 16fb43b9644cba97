"""Heads that a network may be trained with, beside its classification head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nescio.errors import InputError


class OODHead(nn.Conv2d):
    """``f_ood``: one linear output for every position of a feature map, ``(B, K, H, W) -> (B, 1, H, W)`` logits.

    ``sigmoid`` of a logit is the probability of ID. Of a pooled map ``(B, K, 1, 1)`` it is equation 15 of Pei, "Image
    Background Serves as Good Proxy for Out-of-distribution Data", ICLR 2024. Equation 14 there has two outputs and a
    cross entropy: a softmax over two is the sigmoid of their difference, so one output, their difference, with a binary
    cross entropy is the same function and the same loss.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, kernel_size=1)


HEADS: dict[str, type[OODHead]] = {"ood": OODHead}


def restore_heads(state: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The heads in a state dict of ``NAME.weight``, ``NAME.bias``.

    Raises:
        InputError: a head is not known to this version.
    """
    heads: dict[str, nn.Module] = {}
    for name in sorted({key.partition(".")[0] for key in state}):
        if name not in HEADS:
            raise InputError(f"the weights hold a head '{name}', which this version of nescio does not know")
        own = {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
        heads[name] = HEADS[name](own["weight"].shape[1])
        heads[name].load_state_dict(own)
    return heads
