"""A graph as a model of a Triton model repository: a folder with a configuration, class names and the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nescio.core.files import make_folder, whole, write_whole

CONFIG, LABELS, VERSION, MODEL = "config.pbtxt", "labels.txt", "1", "model.onnx"
MAX_BATCH = 64
"""Images that Triton may put into one batch."""
_TYPES = {1: "FP32", 2: "UINT8", 9: "BOOL", 11: "FP64"}
"""Triton's name of each of ONNX's types of numbers that our graphs have."""


def write_model(model: Any, folder: Path) -> None:
    """Write ``config.pbtxt``, ``labels.txt`` and ``1/model.onnx``. The folder's name becomes the model's.

    Args:
        model: the graph (ONNX), without optional inputs: Triton batches every input that a configuration names.
        folder: inside the folder that Triton is given as ``--model-repository``.

    Raises:
        InputError: a file cannot be written.
    """
    make_folder(folder / VERSION)
    with whole(folder / VERSION / MODEL) as partial:
        partial.write_bytes(model.SerializeToString())
    about = {entry.key: entry.value for entry in model.metadata_props}
    write_whole(folder / LABELS, "".join(f"{' '.join(name.split())}\n" for name in json.loads(about["classes"])))
    write_whole(folder / CONFIG, config(model, folder.absolute().name))


def config(model: Any, name: str) -> str:
    """Triton's configuration of a graph whose inputs and outputs all begin with the batch."""
    inputs = [_tensor(value) for value in model.graph.input]
    outputs = [_tensor(value, label=value.name == "logits") for value in model.graph.output]
    return (
        f"name: {json.dumps(name)}\n"
        'backend: "onnxruntime"\n'
        f"max_batch_size: {MAX_BATCH}\n"
        f"input [\n{_joined(inputs)}\n]\n"
        f"output [\n{_joined(outputs)}\n]\n"
        "dynamic_batching { }\n"
    )


def _joined(tensors: list[str]) -> str:
    return ",\n".join(tensors)


def _tensor(value: Any, *, label: bool = False) -> str:
    kind = value.type.tensor_type
    dims = [d.dim_value for d in kind.shape.dim[1:]]  # Triton adds the batch
    # a number for each image has no dimension beside the batch, and Triton wants one
    shape = f"dims: {dims}" if dims else "dims: [1], reshape: { shape: [] }"
    labels = f', label_filename: "{LABELS}"' if label else ""
    return f'  {{ name: "{value.name}", data_type: TYPE_{_TYPES[kind.elem_type]}, {shape}{labels} }}'
