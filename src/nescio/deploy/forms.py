"""The forms in which a graph is written. The ending of the name chooses one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nescio.core.errors import InputError
from nescio.core.files import make_folder, whole
from nescio.core.outputs import check_file, check_folder
from nescio.deploy.graph import THRESHOLD
from nescio.deploy.openvino import BIN, check_openvino, write_ir
from nescio.deploy.triton import CONFIG, LABELS, MODEL, VERSION, write_model

Writer = Callable[[Any, Path], None]


def writer_of(path: str | Path) -> Writer:
    """What writes a graph to this name.

    Raises:
        InputError: the ending is none that is known, nothing can be written there, or a package is missing.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".onnx":
        check_file(path)
        return write_onnx
    if ending == ".xml":
        check_file(path)
        check_file(path.with_suffix(BIN))
        check_openvino()
        return lambda model, file: write_ir(without_option(model), file)
    if not ending:
        check_folder(path, files=(CONFIG, LABELS), folders=(VERSION,))
        check_folder(path / VERSION, files=(MODEL,))
        return lambda model, folder: write_model(without_option(model), folder)
    raise InputError(
        f"{path} has an unknown ending; name a file that ends in .onnx or .xml (OpenVINO), or a folder without an "
        "ending (a model for Triton)"
    )


def write_onnx(model: Any, path: Path) -> None:
    """Write a graph (ONNX) as one file."""
    make_folder(path.parent)
    with whole(path) as partial:
        partial.write_bytes(model.SerializeToString())


def without_option(model: Any) -> Any:
    """The graph (ONNX) with the calibrated threshold as a constant: OpenVINO and Triton know no optional inputs."""
    made = type(model)()
    made.CopyFrom(model)
    kept = [value for value in made.graph.input if value.name != THRESHOLD]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    for entry in made.metadata_props:
        if entry.key == "inputs":
            described = json.loads(entry.value)
            entry.value = json.dumps({name: text for name, text in described.items() if name != THRESHOLD})
    return made


def total_size(path: Path) -> int:
    """Bytes of what was written."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    beside = path.with_suffix(BIN)
    return path.stat().st_size + (beside.stat().st_size if path.suffix.lower() == ".xml" else 0)
