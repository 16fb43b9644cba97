"""Features of a batch with what the heads and probes say of it, all within one pass of the network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nescio.core.features import NO_HEAD, Columns, Features, Head
from nescio.core.needs import Maps, Probe
from nescio.models.heads import decide, read
from nescio.models.inputs import in_own_type
from nescio.models.split import Taps


class Probed(nn.Module):
    """A classifier that runs probes on its feature maps within the same pass."""

    std: Tensor

    def __init__(self, taps: Taps, probes: Mapping[str, Probe], head: Head, heads: nn.ModuleDict, std: Tensor) -> None:
        super().__init__()
        self.maps, self.rest = taps.maps, taps.rest
        self.probes, self.head, self.heads, self.std = probes, head, heads, std

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images ``x (B, 3, H, W)``, with a column per probe and feature map."""
        maps = self.maps(in_own_type(self.maps, x))
        if isinstance(maps, Tensor):  # of one map, some engines give no tuple
            maps = (maps,)

        def rest(fmap: Tensor) -> Tensor:
            h: Tensor = self.rest(fmap)
            return h.flatten(1)

        h = rest(maps[-1])
        read_by_probes = Maps(maps, rest, self.head, dict(self.heads.items()))
        columns = {
            f"{name}.{i}": column.flatten(1)
            for name, probe in self.probes.items()
            for i, column in enumerate(probe(read_by_probes))
        }
        return seen(h, self.head, self.heads, columns)


def seen(h: Tensor, head: Head, heads: nn.ModuleDict, columns: Mapping[str, Tensor] | None = None) -> Features:
    """The record of features ``h (B, L)``: the label, what the heads say of them, and other columns."""
    if head is NO_HEAD:
        return Features.of(h, aux=columns)
    if h.dtype != head.weight.dtype:  # a network in half precision has a head in float32 here
        h = h.to(head.weight.dtype)
    aux = Columns.of({**read(heads, h, head), **(columns or {})})
    return Features(h, head, decide(heads, h, head).argmax(dim=1), aux=aux)
