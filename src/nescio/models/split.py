"""What tracing a network allows: to cut it at its global pooling, and to fold its batch norms."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp

from nescio.errors import InputError


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

    def at_positions(self, fmap: Tensor) -> Tensor:
        """Penultimate features ``(B, h · w, L)`` of each position, as if it were the whole of a feature map.

        That is the neck behind no pooling: right for networks whose pooling is the mean.
        """
        rows = fmap.flatten(2).mT.reshape(-1, fmap.shape[1], *self.pooled)
        h: Tensor = self.neck(rows)
        return h.reshape(len(fmap), fmap.shape[2] * fmap.shape[3], -1)


class _Tracer(fx.Tracer):
    """Keeps modules without children whole: timm's padding layers branch on sizes, which cannot be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""
        # timm's batch norms with an activation call a function, which would keep the mode they were traced in
        whole = isinstance(m, nn.modules.batchnorm._BatchNorm) or not list(m.children())  # noqa: SLF001
        whole = whole or getattr(m, "traced_whole", False)
        return whole or super().is_leaf_module(m, module_qualified_name)


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


class _OneInput(nn.Module):
    """A network that is given images and nothing else: its optional inputs are the constants that they default to."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        """Run the network."""
        return self.body(x)


def _trace(body: nn.Module) -> fx.GraphModule:
    alone = _OneInput(body).train(body.training)
    return fx.GraphModule(alone, _Tracer().trace(alone))


def fold_batch_norms(body: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode whose batch norms are part of the convolutions before them."""
    folded: nn.Module = fuse(_trace(copy.deepcopy(body)), no_trace=True)
    return folded


def split_backbone(body: nn.Module, probe: Tensor, name: str) -> Split:
    """Trace ``body`` and cut it at the last operation that reduces a feature map to one position.

    Raises:
        InputError: the network cannot be traced, has no such operation, or bypasses it.
    """
    traced, nodes, pool = _trace_to_pool(body, probe, name)
    fmap, at = pool.all_input_nodes[0], nodes.index(pool)
    image, output = nodes[0], nodes[-1].all_input_nodes[0]
    backbone: nn.Module = _cut(traced, nodes[:at], image, [fmap], name)
    pooling: nn.Module = _cut(traced, [pool], fmap, [pool], name)
    if len(_shape(fmap)) == 3:
        backbone, pooling = nn.Sequential(backbone, _TokensToMap()), nn.Sequential(_MapToTokens(), pooling)
    neck = _cut(traced, nodes[at + 1 : -1], pool, [output], name)
    return Split(backbone, pooling, neck, _shape(pool)[2:])


def tap(body: nn.Module, probe: Tensor, name: str) -> Taps:
    """Trace ``body`` and find its feature maps.

    Raises:
        InputError: as ``split_backbone``.
    """
    traced, nodes, pool = _trace_to_pool(body, probe, name)
    fmap, at = pool.all_input_nodes[0], nodes.index(pool)
    # of a transformer, whose tokens stay in one grid, the pooled map alone
    by_size: dict[tuple[int, ...], fx.Node] = {}
    for node in _bottlenecks(nodes[:at]):
        shape = _shape(node)
        if len(shape) == 4 and shape[2] * shape[3] > 1 and node.op != "placeholder":
            by_size[shape[2:]] = node
    by_size[_shape(fmap)[2:]] = fmap
    maps = sorted(by_size.values(), key=nodes.index)
    rest: nn.Module = _cut(traced, nodes[at:-1], fmap, [nodes[-1].all_input_nodes[0]], name)
    if len(_shape(fmap)) == 3:
        tokens = _cut(traced, nodes[:at], nodes[0], [fmap], name)
        return Taps(_Alone(nn.Sequential(tokens, _TokensToMap())), nn.Sequential(_MapToTokens(), rest))
    return Taps(_cut(traced, nodes[:at], nodes[0], maps, name, several=True), rest)


@torch.no_grad()
def _trace_to_pool(body: nn.Module, probe: Tensor, name: str) -> tuple[fx.GraphModule, list[fx.Node], fx.Node]:
    """The traced network, its operations in order, and the global pooling among them."""
    try:
        traced = _trace(body)  # in the mode that the body is in; shapes are found without touching batch norms
        modes = {m: m.training for m in traced.modules()}
        with contextlib.redirect_stderr(io.StringIO()):  # it prints a traceback before it raises
            ShapeProp(traced.eval()).propagate(probe)
        for m, mode in modes.items():
            m.training = mode
    except Exception as e:  # noqa: BLE001 - tracing runs the model's own code
        raise InputError(f"{name} cannot be traced, so its feature maps cannot be found: {e}") from None
    nodes = sorted(traced.graph.nodes, key=lambda n: n.op != "placeholder")
    pools = [n for n in nodes if _collapses(n)]
    if not pools:
        raise InputError(
            f"{name} has no global pooling of a feature map at {tuple(probe.shape[2:])} pixels; a vision transformer "
            "needs average pooling of its tokens, e.g. timm:vit_tiny_patch16_224:global_pool=avg"
        )
    return traced, nodes, pools[-1]


def _bottlenecks(nodes: list[fx.Node]) -> Iterator[fx.Node]:
    """The operations that no later one reads past: each is all that the rest of the network sees of the image."""
    position = {node: i for i, node in enumerate(nodes)}
    reach = -1
    for i, node in enumerate(nodes):
        if reach <= i:
            yield node
        if node.op != "get_attr":  # a constant is no way round
            reach = max([reach, *(position.get(user, len(nodes)) for user in node.users)])


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


def _collapses(node: fx.Node) -> bool:
    inputs = [_shape(n) for n in node.all_input_nodes]
    if len(inputs) == 1 and len(inputs[0]) == 3:
        batch, tokens, channels = inputs[0]
        average = node.target in ("mean", torch.mean) and _shape(node) == (batch, channels)
        return average and tokens > 1 and math.isqrt(tokens) ** 2 == tokens
    if len(inputs) != 1 or len(inputs[0]) != 4:
        return False
    batch, channels, height, width = inputs[0]
    return height * width > 1 and _shape(node) in ((batch, channels), (batch, channels, 1, 1))


def _cut(
    traced: fx.GraphModule,
    nodes: Iterable[fx.Node],
    start: fx.Node,
    ends: Sequence[fx.Node],
    name: str,
    *,
    several: bool = False,
) -> fx.GraphModule:
    """The part of the network from ``start`` to ``ends``; it returns a tuple if ``several``."""
    graph = fx.Graph()
    made = {start: graph.placeholder("x")}

    def known(node: fx.Node) -> fx.Node:
        if node not in made:
            end = ends[-1].name
            raise InputError(
                f"{name}: '{end}' also reads '{node.name}', past the pooling; it has no plain neck, or its feature map "
                "is a single position at this image size"
            )
        return made[node]

    for node in nodes:
        if node is not start and node.op not in ("placeholder", "output"):
            made[node] = graph.node_copy(node, known)
    graph.output(tuple(known(end) for end in ends) if several else known(ends[0]))
    part = fx.GraphModule(traced, graph)
    part.recompile()  # no dead code is removed: an operation in place may look like it
    return part
