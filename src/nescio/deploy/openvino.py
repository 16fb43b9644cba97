"""A graph as OpenVINO IR: the network in an ``.xml`` file, its weights beside it in a ``.bin``."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from nescio.core.errors import InputError
from nescio.core.files import make_folder, writing
from nescio.run.engines.openvino import core

BIN = ".bin"
INFO = "nescio"
"""The section of the IR's ``rt_info`` that holds the graph's metadata."""


def check_openvino() -> None:
    """Raise InputError where OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise InputError("OpenVINO IR needs the package openvino: pip install 'nescio[onnx,openvino]'")


def write_ir(model: Any, path: Path) -> None:
    """Write a graph (ONNX) as OpenVINO IR, with weights in the precision that they have.

    Args:
        model: without optional inputs, which OpenVINO does not know.
        path: the ``.xml`` file; the ``.bin`` file is written beside it.

    Raises:
        InputError: the files cannot be written.
    """
    import openvino

    make_folder(path.parent)
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        plain, made = Path(folder, "model.onnx"), Path(folder, "model.xml")
        plain.write_bytes(model.SerializeToString())
        converted = core().read_model(plain)  # openvino.convert_model would report its use to Intel
        for entry in model.metadata_props:
            converted.set_rt_info(entry.value, [INFO, entry.key])
        openvino.save_model(converted, made, compress_to_fp16=False)
        made.with_suffix(BIN).replace(path.with_suffix(BIN))
        made.replace(path)
