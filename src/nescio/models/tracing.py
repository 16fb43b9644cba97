"""A network as a graph of operations: tracing it, and cutting parts out of it."""

from __future__ import annotations

import contextlib
import copy
import io
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp

from nescio.core.errors import InputError

_WHOLE = "nescio.whole"
"""Under which an operation's meta keeps a result that is no tensor, such as a size."""


class _Tracer(fx.Tracer):
    """Keeps modules without children whole: timm's padding layers branch on sizes, which cannot be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""
        # timm's batch norms with an activation call a function, which would keep the mode they were traced in
        whole = isinstance(m, nn.modules.batchnorm._BatchNorm) or not list(m.children())  # noqa: SLF001
        whole = whole or getattr(m, "traced_whole", False)
        return whole or super().is_leaf_module(m, module_qualified_name)


class _OneInput(nn.Module):
    """A network that is given images and nothing else: its optional inputs are the constants that they default to."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Any:
        """Run the network."""
        return self.body(x)


class _Results(ShapeProp):
    """Runs a graph and notes what each operation gives: of a tensor its shape, of a size itself."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation."""
        result = super().run_node(n)
        if _is_plain(result):
            n.meta[_WHOLE] = result
        return result


def _is_plain(result: Any) -> bool:
    if isinstance(result, tuple | list):
        return all(_is_plain(r) for r in result)
    return isinstance(result, int | float | str | torch.dtype | torch.device)


def _trace(body: nn.Module) -> fx.GraphModule:
    alone = _OneInput(body).train(body.training)
    return fx.GraphModule(alone, _Tracer().trace(alone))


def fold_batch_norms(body: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode whose batch norms are part of the convolutions before them."""
    folded: nn.Module = fuse(_with_plain_norms(_trace(copy.deepcopy(body))), no_trace=True)
    return folded


def _with_plain_norms(traced: fx.GraphModule) -> fx.GraphModule:
    """The same network with timm's batch norms, which end in an activation, as two operations."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or type(norm) is nn.BatchNorm2d or not hasattr(norm, "act"):
            continue
        if norm.running_mean is None:
            continue
        plain = nn.BatchNorm2d(norm.num_features, eps=norm.eps, affine=norm.affine, device=norm.running_mean.device)
        own = norm.state_dict()
        plain.load_state_dict({name: own[name] for name in plain.state_dict()})
        after = nn.Sequential(*[getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)])
        name = f"{node.target}_after"
        traced.set_submodule(str(node.target), plain.eval())
        traced.add_submodule(name, after)
        with traced.graph.inserting_after(node):
            activated = traced.graph.call_module(name, (node,))
        node.replace_all_uses_with(activated)
        activated.args = (node,)
    traced.recompile()
    return traced


@torch.no_grad()
def traced_on(body: nn.Module, probe: Tensor, name: str) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The traced network and its operations in order, which know what they give for the images ``probe``.

    Raises:
        InputError: the network cannot be traced.
    """
    try:
        traced = _trace(body)  # in the mode that the body is in; shapes are found without touching batch norms
        modes = {m: m.training for m in traced.modules()}
        with contextlib.redirect_stderr(io.StringIO()):  # it prints a traceback before it raises
            _Results(traced.eval()).propagate(probe)
        for m, mode in modes.items():
            m.training = mode
    except Exception as e:  # noqa: BLE001 - tracing runs the model's own code
        raise InputError(f"{name} cannot be traced, so its feature maps cannot be found: {e}") from None
    return traced, sorted(traced.graph.nodes, key=lambda n: n.op != "placeholder")


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of the tensor that an operation gives; ``()`` where it gives something else."""
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


def is_size(node: fx.Node) -> bool:
    """Whether an operation gives no tensor but a size, a device or the like."""
    return _WHOLE in node.meta


def inputs(node: fx.Node) -> list[fx.Node]:
    """The operations whose tensors an operation reads."""
    return [n for n in node.all_input_nodes if not is_size(n)]


def bottlenecks(nodes: list[fx.Node]) -> Iterator[fx.Node]:
    """The operations that no later one reads past: each is all that the rest of the network sees of the image."""
    position = {node: i for i, node in enumerate(nodes)}
    reach = -1
    for i, node in enumerate(nodes):
        if is_size(node):
            continue
        if reach <= i:
            yield node
        if node.op != "get_attr":  # a constant is no way round, nor is a size
            reach = max([reach, *(position.get(user, len(nodes)) for user in node.users if not is_size(user))])


def cut(
    traced: fx.GraphModule,
    nodes: Iterable[fx.Node],
    start: fx.Node,
    ends: Sequence[fx.Node],
    name: str,
    *,
    several: bool = False,
) -> fx.GraphModule:
    """The part of the network from ``start`` to ``ends``; it returns a tuple if ``several``.

    Raises:
        InputError: the part reads something that was computed before ``start``.
    """
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {start: graph.placeholder("x")}

    def known(node: fx.Node) -> Any:
        if node in made:
            return made[node]
        if not is_size(node):
            end = ends[-1].name
            raise InputError(
                f"{name}: '{end}' also reads '{node.name}', past the pooling; its neck is not supported, or its "
                "feature map has only one position at this image size"
            )
        if all(n in made or is_size(n) for n in node.all_input_nodes):
            made[node] = graph.node_copy(node, known)
        else:  # a size of what is not in this part
            made[node] = _as_traced(node, made[start], len_traced)
        return made[node]

    len_traced = shape(next(n for n in traced.graph.nodes if n.op == "placeholder"))[0]
    for node in nodes:
        if node is not start and node.op not in ("placeholder", "output") and not is_size(node):
            made[node] = graph.node_copy(node, known)
    graph.output(tuple(known(end) for end in ends) if several else known(ends[0]))
    part = fx.GraphModule(traced, graph)
    part.recompile()  # no dead code is removed: an operation in place may look like it
    return part


def _as_traced(node: fx.Node, x: fx.Node, batch: int) -> Any:
    """A size as it was for the ``batch`` images of the tracing: constant, but for the number of images ``len(x)``."""
    value, graph = node.meta[_WHOLE], x.graph
    if isinstance(value, torch.device | torch.dtype):
        return graph.call_function(getattr, (x, "device" if isinstance(value, torch.device) else "dtype"))

    def count(rows: int) -> Any:
        return graph.call_function(operator.mul, (graph.call_method("size", (x, 0)), rows // batch))

    if all(n.op == "get_attr" for n in node.all_input_nodes):
        return value
    if isinstance(value, tuple):
        return (count(value[0]), *value[1:]) if value and value[0] % batch == 0 else tuple(value)
    first = node.target == "size" and (*node.args[1:], *node.kwargs.values()) in ((0,), (-4,))
    return count(value) if first and value % batch == 0 else value
