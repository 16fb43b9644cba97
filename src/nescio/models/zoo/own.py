"""The user's own code that makes a network, as the command line names it: ``module:factory`` or ``FILE.py:factory``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from nescio.core.errors import InputError, nearest
from nescio.data.transform import Transform
from nescio.models.zoo.architecture import Architecture, as_they_are, literals, never, no_bare_names

resolved, knows, bare_names = as_they_are, never, no_bare_names
QUICKSTART = "nescio.quickstart:network"
"""The one function that a stranger's file may name."""
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


def architecture(text: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says: ``module:factory`` or ``FILE.py:factory``, with options behind another colon."""
    del names
    module, _, rest = text.partition(":")
    name, _, written = rest.partition(":")
    options = literals(written, text)
    factory = find_factory(module, name)
    return made_by(functools.partial(factory, **options) if options else factory, text)


def untrusted(text: str) -> str | None:
    """As ``Library`` says."""
    return None if text == QUICKSTART else "this is code from outside nescio, and a file must not say which code is run"


def made_by(factory: nn.Module | Callable[[], Any], name: str | None = None) -> Architecture:
    """How to make the network that a function of the user's makes."""
    title = name or str(getattr(factory, "__name__", type(factory).__name__))

    def build(classes: int | None, pretrained: bool) -> nn.Module:
        del classes, pretrained
        try:
            network = factory if isinstance(factory, nn.Module) else factory()
        except Exception as e:  # noqa: BLE001 - the user's own code
            raise InputError(f"{title}() failed: {type(e).__name__}: {e}") from None
        if not isinstance(network, nn.Module):
            raise InputError(f"{title} returned {type(network).__name__}, not an nn.Module")
        return network

    return Architecture(title, build, _transform, is_users=not isinstance(factory, nn.Module))


def _transform(network: nn.Module) -> Transform | None:
    from nescio.models.zoo.timm import transform_of  # timm takes a second to import

    return transform_of(network) if hasattr(network, "pretrained_cfg") else None


def find_factory(module: str, name: str) -> Callable[..., Any]:
    """The function of this name in a module, or in a file that ends in ``.py``.

    Raises:
        InputError: there is no such module, file or function, or importing it fails.
    """
    what = f"model '{module}:{name}'"
    if not name:
        raise InputError(f"{what} names no function; write {module}:FUNCTION")
    try:
        found = _of_file(Path(module).expanduser()) if module.endswith(".py") else _of_name(module)
    except InputError:
        raise
    except Exception as e:  # noqa: BLE001 - importing runs the user's own code
        hint = (
            f"; modules are looked for in {Path.cwd()} and on PYTHONPATH: set it (PYTHONPATH=DIR nescio …), or name "
            "the file (DIR/FILE.py:FUNCTION)"
        )
        hint = hint if isinstance(e, ModuleNotFoundError) else ""
        raise InputError(f"{what} cannot be imported: {type(e).__name__}: {e}{hint}") from None
    factory: Callable[..., Any] | None = getattr(found, name, None)
    if not callable(factory):
        functions = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
        why = nearest(name, functions) if functions else ""
        raise InputError(f"{what} cannot be imported: {module} has no function '{name}'{why}")
    return factory


def _of_name(module: str) -> ModuleType:
    if module.partition(".")[0] != "nescio":
        _look_in(Path.cwd())  # the user's own module stands where they call from
    return importlib.import_module(module)


def _of_file(path: Path) -> ModuleType:
    """The module in a file, run once; what stands beside it can be imported by it, as when Python runs the file."""
    if not path.is_file():
        raise InputError(f"no file {path}" + ("; it is a folder" if path.is_dir() else ""))
    path = path.resolve()
    name = f"{path.stem}@{path.parent}"  # no other module's, whatever the file is called
    if name not in sys.modules:
        _look_in(path.parent)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise InputError(f"{path} cannot be read as Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # what dataclasses and pickling ask for
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def refuse_a_file(model: str) -> None:
    """Say what was given as a model where it is a file or folder that is none."""
    path = Path(model).expanduser()
    for endings, kind in _FILES.items():
        if model.lower().endswith(endings):
            raise InputError(f"--model {model} is {kind.format(path=model)}")
    if path.is_dir():
        raise InputError(f"the folder {model} holds no trained network: it has no run.json, which nescio train writes")
    if path.is_file():
        raise InputError(f"--model {model} is a file that makes no network; give a name, or FILE.py:FUNCTION")
