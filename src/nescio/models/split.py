"""The feature maps of a network, and the network cut at its global pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from nescio.core.errors import InputError
from nescio.models.tracing import bottlenecks, cut, inputs, shape, traced_on

_MOST_STEPS = 3
"""Operations that a pooling may be made of, such as flattening and a mean."""


@dataclass(frozen=True)
class Taps:
    """A network that also hands out feature maps on its way.

    Attributes:
        maps: images ``(B, 3, H, W)`` to feature maps by depth, the pooled one last. Of each resolution it is the last
            map through which everything later is computed: the output of a stage of blocks, not a branch within.
        rest: the last feature map to the penultimate features ``(B, L)``.
    """

    maps: nn.Module
    rest: nn.Module


@dataclass(frozen=True)
class Split:
    """Three parts that give the penultimate features when run one after the other.

    Attributes:
        backbone: images ``(B, 3, H, W)`` to the feature map ``(B, K, h, w)``, everything up to the pooling.
        pool: ``(B, K, h, w)`` to ``(B, K)`` or ``(B, K, 1, 1)``, as the network's own pooling returns it.
        neck: what the pooling returns to the penultimate features ``(B, L)``.
        pooled: what stands behind ``(B, K)`` in the shape that the pooling returns: ``()`` or ``(1, 1)``.

    The pooling may be one of a fixed size, so what is pooled already must not go through it again: ``behind_pool``.

    A vision transformer's patch tokens, in the square grid that they are cut from, are its feature map.
    """

    backbone: nn.Module
    pool: nn.Module
    neck: nn.Module
    pooled: tuple[int, ...]

    def averages(self, fmap: Tensor) -> bool:
        """Whether the pooling is the mean, by this feature map ``(B, K, h, w)``: only then are positions patches."""
        pooled: Tensor = self.pool(fmap)
        return torch.allclose(pooled.flatten(1), fmap.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)

    def behind_pool(self, vectors: Tensor) -> Tensor:
        """Penultimate features ``(N, L)`` of pooled vectors ``(N, K)``."""
        h: Tensor = self.neck(vectors.reshape(*vectors.shape, *self.pooled))
        return h.flatten(1)

    def at_positions(self, fmap: Tensor) -> Tensor:
        """Penultimate features ``(B, h · w, L)`` of each position, as if it were the whole of a feature map.

        That is the neck behind no pooling: right for networks whose pooling is the mean.
        """
        rows = fmap.flatten(2).mT  # (B, h·w, K)
        return self.behind_pool(rows.flatten(0, 1)).reshape(*rows.shape[:2], -1)


class _TokensToMap(nn.Module):
    """``(B, N, K) -> (B, K, √N, √N)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Lay the tokens out in their grid."""
        side = math.isqrt(tokens.shape[1])
        return tokens.mT.reshape(len(tokens), -1, side, tokens.shape[1] // side)


class _MapToTokens(nn.Module):
    """``(B, K, H, W) -> (B, H · W, K)``."""

    def forward(self, fmap: Tensor) -> Tensor:
        """Put the positions in a row."""
        return fmap.flatten(2).mT


class _Alone(nn.Module):
    """A module whose output is put in a tuple."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Run the module."""
        return (self.module(x),)


def split_backbone(body: nn.Module, probe: Tensor, name: str) -> Split:
    """Trace ``body`` and cut it at the last operation that reduces a feature map to one position.

    Raises:
        InputError: the network cannot be traced, has no such operation, or bypasses it.
    """
    traced, nodes, pool = _trace_to_pool(body, probe, name)
    fmap, last = inputs(pool[0])[0], pool[-1]
    image, output = nodes[0], nodes[-1].all_input_nodes[0]
    backbone: nn.Module = cut(traced, nodes[: nodes.index(pool[0])], image, [fmap], name)
    pooling: nn.Module = cut(traced, pool, fmap, [last], name)
    if len(shape(fmap)) == 3:
        backbone, pooling = nn.Sequential(backbone, _TokensToMap()), nn.Sequential(_MapToTokens(), pooling)
    neck = cut(traced, nodes[nodes.index(last) + 1 : -1], last, [output], name)
    return Split(backbone, pooling, neck, shape(last)[2:])


def tap(body: nn.Module, probe: Tensor, name: str) -> Taps:
    """Trace ``body`` and find its feature maps.

    Raises:
        InputError: as ``split_backbone``.
    """
    traced, nodes, pool = _trace_to_pool(body, probe, name)
    fmap, at = inputs(pool[0])[0], nodes.index(pool[0])
    # of a transformer, whose tokens stay in one grid, the pooled map alone
    by_size: dict[tuple[int, ...], fx.Node] = {}
    for node in bottlenecks(nodes[:at]):
        sides = shape(node)[2:]
        if len(sides) == 2 and sides[0] * sides[1] > 1 and node.op != "placeholder":
            by_size[sides] = node
    by_size[shape(fmap)[2:]] = fmap
    maps = sorted(by_size.values(), key=nodes.index)
    rest: nn.Module = cut(traced, nodes[at:-1], fmap, [nodes[-1].all_input_nodes[0]], name)
    if len(shape(fmap)) == 3:
        tokens = cut(traced, nodes[:at], nodes[0], [fmap], name)
        return Taps(_Alone(nn.Sequential(tokens, _TokensToMap())), nn.Sequential(_MapToTokens(), rest))
    return Taps(cut(traced, nodes[:at], nodes[0], maps, name, several=True), rest)


def _trace_to_pool(body: nn.Module, probe: Tensor, name: str) -> tuple[fx.GraphModule, list[fx.Node], list[fx.Node]]:
    """The traced network, its operations in order, and those among them that are its last global pooling."""
    traced, nodes = traced_on(body, probe, name)
    pool = next((found for node in reversed(nodes[:-1]) if (found := _pooling_that_ends_at(node))), None)
    if pool is None:
        raise InputError(
            f"{name} has no global pooling of a feature map at {tuple(probe.shape[2:])} pixels; a vision transformer "
            "needs average pooling of its tokens, e.g. timm:vit_tiny_patch16_224:global_pool=avg"
        )
    return traced, nodes, pool


def _pooling_that_ends_at(end: fx.Node) -> list[fx.Node]:
    """The operations from a feature map to one position, of which ``end`` is the last; none where it is not."""
    pooled, chain = shape(end), [end]
    if len(pooled) < 2 or any(side != 1 for side in pooled[2:]):
        return []
    while len(read := inputs(chain[0])) == 1:
        before = shape(read[0])
        if len(before) == 4 and before[2] * before[3] > 1:
            return chain if before[:2] == pooled[:2] else []
        if _averages_tokens(end, before):
            return [end]
        # over one side and then over the other, or flattened before: functions alone, as layers may do anything
        functions = chain[0].op != "call_module" and read[0].op != "call_module"
        if not functions or len(before) != 3 or before[:2] != pooled[:2] or len(chain) == _MOST_STEPS:
            return []
        chain.insert(0, read[0])
    return []


def _averages_tokens(node: fx.Node, before: tuple[int, ...]) -> bool:
    """Whether an operation averages tokens ``(B, N, K)`` that can be laid out in a square."""
    if len(before) != 3 or node.target not in ("mean", torch.mean) or math.isqrt(before[1]) ** 2 != before[1]:
        return False
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return before[1] > 1 and dims in (1, -2, (1,), [1], (-2,), [-2])
