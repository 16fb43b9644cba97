"""The user's own code that makes a network, as the command line names it: ``module:factory`` or ``FILE.py:factory``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nescio.core.errors import InputError, nearest
from nescio.core.plugins import import_code, search_hint

_FILES = {
    (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar"): (
        "a file of weights, which does not say how its network is made; give it as --weights, and as --model what "
        "makes the network: a library's name, or FILE.py:FUNCTION"
    ),
    (".nescio",): "a file that nescio fit wrote; nescio score, show, serve and export take it as it is",
    (".onnx",): "an ONNX graph; give the PyTorch network that it was made of",
    (".py",): "a file of code; name the function in it that makes the network: {path}:FUNCTION",
}
"""What a file is that was given as a model, by how its name ends."""


def find_factory(module: str, name: str) -> Callable[..., Any]:
    """The function of this name in a module, or in a file that ends in ``.py``.

    Raises:
        InputError: there is no such module, file or function, or importing it fails.
    """
    told = f"model '{module}:{name}'"
    if not name:
        raise InputError(f"{told} names no function; write {module}:FUNCTION")
    try:
        found = import_code(module)
    except InputError:
        raise
    except Exception as e:  # noqa: BLE001 - importing runs the user's own code
        raise InputError(f"{told} cannot be imported: {type(e).__name__}: {e}{search_hint(e)}") from None
    factory: Callable[..., Any] | None = getattr(found, name, None)
    if not callable(factory):
        functions = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
        why = nearest(name, functions) if functions else ""
        raise InputError(f"{told} cannot be imported: {module} has no function '{name}'{why}")
    return factory


def refuse_a_file(model: str) -> None:
    """Say what was given as a model where it is a file or folder that is none."""
    path = Path(model).expanduser()
    for endings, what in _FILES.items():
        if model.lower().endswith(endings):
            raise InputError(f"--model {model} is {what.format(path=model)}")
    if path.is_dir():
        raise InputError(f"the folder {model} holds no trained network: it has no run.json, which nescio train writes")
    if path.is_file():
        raise InputError(f"--model {model} is a file that makes no network; give a name, or FILE.py:FUNCTION")
