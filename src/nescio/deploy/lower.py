"""The network inside a graph in fewer bits. What reads its features (head, detector, threshold) stays as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nescio.core.errors import InputError
from nescio.core.progress import quiet

FP32, FP16, INT8 = PRECISIONS = ("fp32", "fp16", "int8")
_PREFIX = "lowered/"

Batch = npt.NDArray[np.float32]


def cut_network(model: Any, begin: str, end: str) -> Any:
    """The network of a graph as a graph of its own: what ``end`` needs and ``begin`` does not.

    What reads feature maps on their way (probes) is no part of it, so the maps are outputs, too: statistics of high
    order would overflow in float16.

    Args:
        model: the whole graph (ONNX).
        begin: the value that the network sees.
        end: the penultimate features.

    Returns:
        from ``begin`` to ``end`` and to whatever else of it is read outside.

    Raises:
        InputError: the network reads something beside ``begin``.
    """
    from onnx import helper, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    weights = {t.name for t in graph.initializer}
    before = _needed(graph, {begin})
    inside = _needed(graph, {end}, stop=before)
    nodes = [n for i, n in enumerate(graph.node) if i in inside]
    made = {name for n in nodes for name in n.output}
    read = {name for n in nodes for name in n.input if name} - made
    if read - weights != {begin}:
        others = ", ".join(sorted(read - weights - {begin})) or "nothing"
        raise InputError(f"the network reads {others} besides its images: export it as fp32")
    outside = {name for i, n in enumerate(graph.node) if i not in inside for name in n.input}
    known = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    ends = [end, *sorted((made & outside) - {end})]
    part = helper.make_graph(
        nodes, "network", [known[begin]], [known[e] for e in ends], [t for t in graph.initializer if t.name in read]
    )
    return helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def put_back(model: Any, part: Any) -> Any:
    """The whole graph with another network in the place of its own: ``cut_network``'s, lowered.

    Outputs that only showed where the network begins and ends are no more.
    """
    import onnx

    part = onnx.compose.add_prefix(part, _PREFIX, rename_inputs=False, rename_outputs=False)
    begin, ends = part.graph.input[0].name, {o.name for o in part.graph.output}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    before = _needed(graph, {begin})
    replaced = _needed(graph, ends, stop=before)
    nodes = [n for i, n in enumerate(model.graph.node) if i in before]
    nodes += part.graph.node
    nodes += [n for i, n in enumerate(model.graph.node) if i not in before | replaced]
    read = {name for n in nodes for name in n.input}
    weights = [t for t in model.graph.initializer if t.name in read] + list(part.graph.initializer)
    outputs = [o for o in model.graph.output if o.name not in {begin, *ends}]
    for field, values in ((graph.node, nodes), (graph.initializer, weights), (graph.output, outputs)):
        del field[:]
        field.extend(values)
    domains = {n.domain for n in nodes}
    known = {o.domain for o in whole.opset_import}
    whole.opset_import.extend(o for o in part.opset_import if o.domain in domains - known)
    onnx.checker.check_model(whole)
    return whole


def lowered(part: Any, precision: str, images: Iterable[Batch]) -> Any:
    """A network in float16, or in int8 with a scale for each channel of the weights and for each map.

    Inputs and outputs keep names and types.

    Args:
        part: as ``cut_network`` gives it.
        precision: ``fp16`` or ``int8``.
        images: batches of what it sees; for int8, the ranges of its maps are taken from them.
    """
    return _fp16(part) if precision == FP16 else _int8(part, images)


def _fp16(part: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(convert_float_to_float16(part, keep_io_types=True))
    model.topological_sort()  # the converter appends its casts
    return model.model


def _int8(part: Any, images: Iterable[Batch]) -> Any:
    """Static ranges: the least and the largest value of each map; weights of 7 bits, a scale for each channel.

    Measured on a DenseNet and on EfficientNet-Lite0: one scale for all channels costs the latter a fifth of its labels;
    ranges by entropy or percentiles give the same AUROC in many times the time; signed or unsigned bytes for both
    weights and maps take two to ten times the time. The eighth bit of the weights changes little, and without it no sum
    overflows on processors that add pairs of products in 16 bits (x86 without VNNI): scores, and so the promise, are
    the same wherever the graph runs, up to rounding.
    """
    import onnx
    from onnxruntime import quantization as q

    name = part.graph.input[0].name
    batches = iter([{name: batch} for batch in images])

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Batch] | None:
            return next(batches, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, file = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(part, plain)  # a model in memory would lose its weights to a file
        q.quantize_static(
            plain,
            file,
            Reader(),
            per_channel=True,
            reduce_range=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
        )
        return onnx.load(file)


def _needed(graph: Any, values: set[str], stop: Set[int] = frozenset()) -> set[int]:
    """Positions of the nodes that some values follow from, without those of ``stop``."""
    wanted, found = set(values), set()
    for i in reversed(range(len(graph.node))):
        if i not in stop and wanted & set(graph.node[i].output):
            found.add(i)
            wanted |= set(graph.node[i].input)
    return found
