"""The user's own code that makes a network, as the command line names it: ``module:factory`` or ``FILE.py:factory``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nescio.core.errors import InputError, nearest
from nescio.core.plugins import import_code, search_hint
from nescio.data.transform import Transform
from nescio.models.zoo.architecture import Architecture, as_they_are, literals, never, no_bare_names

resolved, knows, bare_names = as_they_are, never, no_bare_names
QUICKSTART = "nescio.quickstart:network"
"""The one function that a stranger's file may name."""
_FILES = {
    (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar"): (
        "a file of weights, without the network; give it as weights= (--weights), and as model= (--model) the "
        "network: a library's name, or FILE.py:FUNCTION"
    ),
    (".nescio",): "a file that nescio fit wrote; use it with nescio score, show, serve or export",
    (".onnx",): "an ONNX graph; give the PyTorch network that it was exported from",
    (".py",): "a file of code; name the function in it that returns the network: {path}:FUNCTION",
}
"""What a file is that was given as a model, by how its name ends."""


def architecture(text: str, names: Sequence[str] | None = None) -> Architecture:
    """As ``Library`` says: ``module:factory`` or ``FILE.py:factory``, with options behind another colon."""
    module, _, rest = text.partition(":")
    name, _, written = rest.partition(":")
    options = literals(written, text)
    factory = find_factory(module, name)
    return made_by(functools.partial(factory, **options) if options else factory, text)


def untrusted(text: str) -> str | None:
    """As ``Library`` says."""
    return None if text == QUICKSTART else "this is code from outside nescio, which a file must not run"


def made_by(factory: nn.Module | Callable[[], Any], name: str | None = None) -> Architecture:
    """How to make the network that a function of the user's makes."""
    title = name or str(getattr(factory, "__name__", type(factory).__name__))

    def build(classes: int | None, pretrained: bool) -> nn.Module:
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
        raise InputError(f"{what} does not name a function; write {module}:FUNCTION")
    try:
        found = import_code(module)
    except InputError:
        raise
    except Exception as e:  # noqa: BLE001 - importing runs the user's own code
        hint = search_hint(e, "DIR/FILE.py:FUNCTION")
        raise InputError(f"{what} cannot be imported: {type(e).__name__}: {e}{hint}") from None
    factory: Callable[..., Any] | None = getattr(found, name, None)
    if not callable(factory):
        functions = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
        why = nearest(name, functions) if functions else ""
        raise InputError(f"{what} cannot be imported: {module} has no function '{name}'{why}")
    return factory


def refuse_a_file(model: str) -> None:
    """Say what was given as a model where it is a file or folder that is none."""
    path = Path(model).expanduser()
    for endings, kind in _FILES.items():
        if model.lower().endswith(endings):
            raise InputError(f"{model} is not a model, but {kind.format(path=model)}")
    if path.is_dir():
        raise InputError(f"the folder {model} is not a trained network: it has no run.json, which nescio train writes")
    if path.is_file():
        raise InputError(f"{model} is a file, not a model; give a model's name, or FILE.py:FUNCTION")
