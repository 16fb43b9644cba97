"""What tracing a network allows: to cut it at its global pooling, and to fold its batch norms."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp

from nescio.errors import InputError


@dataclass(frozen=True)
class Split:
    """Three parts that give the penultimate features when run one after the other.

    Attributes:
        backbone: images ``(B, 3, H, W)`` to the feature map ``(B, K, h, w)``, everything up to the pooling.
        pool: ``(B, K, h, w)`` to ``(B, K)`` or ``(B, K, 1, 1)``, as the network's own pooling returns it.
        neck: what the pooling returns to the penultimate features ``(B, L)``.
    """

    backbone: nn.Module
    pool: nn.Module
    neck: nn.Module


class _Tracer(fx.Tracer):
    """Keeps modules without children whole: timm's padding layers branch on sizes, which cannot be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""
        return super().is_leaf_module(m, module_qualified_name) or not list(m.children())


def _trace(body: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(body, _Tracer().trace(body))


def fold_batch_norms(body: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode whose batch norms are part of the convolutions before them."""
    folded: nn.Module = fuse(_trace(copy.deepcopy(body)), no_trace=True)
    return folded


@torch.no_grad()
def split_backbone(body: nn.Module, probe: Tensor, name: str) -> Split:
    """Trace ``body`` and cut it at the last operation that reduces a feature map to one position.

    Raises:
        InputError: the network cannot be traced, has no such operation, or bypasses it.
    """
    try:
        traced = _trace(body)
        ShapeProp(traced).propagate(probe)
    except Exception as e:  # noqa: BLE001 - tracing runs the model's own code
        raise InputError(f"{name} cannot be traced, so its feature map cannot be found: {e}") from None
    nodes = list(traced.graph.nodes)
    pools = [n for n in nodes if _collapses(n)]
    if not pools:
        raise InputError(f"{name} has no global pooling of a feature map at {tuple(probe.shape[2:])} pixels")
    pool = pools[-1]
    fmap = pool.all_input_nodes[0]
    at = nodes.index(pool)
    image = next(n for n in nodes if n.op == "placeholder")
    output = nodes[-1].all_input_nodes[0]
    return Split(
        _cut(traced, nodes[:at], image, fmap, name),
        _cut(traced, [pool], fmap, pool, name),
        _cut(traced, nodes[at + 1 : -1], pool, output, name),
    )


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


def _collapses(node: fx.Node) -> bool:
    inputs = [_shape(n) for n in node.all_input_nodes]
    if len(inputs) != 1 or len(inputs[0]) != 4:
        return False
    batch, channels, height, width = inputs[0]
    return height * width > 1 and _shape(node) in ((batch, channels), (batch, channels, 1, 1))


def _cut(traced: fx.GraphModule, nodes: Iterable[fx.Node], start: fx.Node, end: fx.Node, name: str) -> fx.GraphModule:
    graph = fx.Graph()
    made = {start: graph.placeholder("x")}

    def known(node: fx.Node) -> fx.Node:
        if node not in made:
            raise InputError(f"{name}: '{end.name}' also reads '{node.name}', past the pooling; it has no plain neck")
        return made[node]

    for node in nodes:
        if node is not start and node.op not in ("placeholder", "output"):
            made[node] = graph.node_copy(node, known)
    graph.output(known(end))
    part = fx.GraphModule(traced, graph)
    part.graph.eliminate_dead_code()
    part.recompile()
    return part
