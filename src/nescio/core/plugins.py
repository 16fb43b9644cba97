"""Stages, objectives, sources and engines by name: those of this package, of installed packages, of a user's file.

A class with a name is known once its file is imported. This module knows which files these are, and imports them when a
name is first looked up.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import pkgutil
import sys
import threading
from pathlib import Path
from types import ModuleType

from nescio.core.errors import InputError

log = logging.getLogger(__name__)

METHODS, SOURCES, ENGINES = "nescio.methods", "nescio.sources", "nescio.engines"
"""Groups of entry points. Each names a module that registers what it adds when it is imported."""
_loaded: set[str] = set()
_files: set[str] = set()
"""Names of the modules that were imported by their path."""
_loading = threading.RLock()


def load_methods() -> None:
    """Import every stage and objective: those of ``nescio.methods``, then those of other packages."""
    load_group(METHODS)


def load_plugin(name: str) -> ModuleType:
    """Import a module by its name, or by the path of a ``.py`` file.

    Raises:
        InputError: there is no such module or file, or importing it fails.
    """
    try:
        return import_code(name)
    except InputError:
        raise
    except Exception as e:  # noqa: BLE001 - importing runs the user's own code
        raise InputError(f"plugin {name} cannot be imported: {type(e).__name__}: {e}{search_hint(e)}") from None


def import_code(name: str) -> ModuleType:
    """A user's module, by its name or by the path of a ``.py`` file; whatever it raises comes through."""
    if name.endswith(".py"):
        return _import_file(Path(name).expanduser())
    if name.partition(".")[0] != "nescio":
        _search(Path.cwd())  # the user's own module stands where they call from
    return importlib.import_module(name)


def files_of_code() -> list[str]:
    """The ``.py`` files that were imported by their path: another process imports them before it unpickles."""
    return [str(module.__file__) for name, module in list(sys.modules.items()) if name in _files]


def search_hint(error: Exception, file: str = "DIR/FILE.py") -> str:
    """Where modules are looked for, if that is why importing one failed, and how a ``file`` is named instead."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    return (
        f"; modules are searched in {Path.cwd()} and on PYTHONPATH: set it (PYTHONPATH=DIR nescio …), or give the "
        f"file ({file})"
    )


def load_group(group: str) -> None:
    """Import what other packages add to one of the groups, once."""
    with _loading:  # the same thread may come here again, from a plugin that looks a name up
        if group in _loaded:
            return
        if group == METHODS:
            _import_families()
        _loaded.add(group)
        for entry in importlib.metadata.entry_points(group=group):
            try:
                entry.load()
            except Exception as e:  # noqa: BLE001 - another package's code
                log.warning(
                    "plugin '%s' (%s) is left out: %s: %s",
                    entry.name,
                    entry.value,
                    type(e).__name__,
                    e,
                )


def _import_families() -> None:
    """Every file in the folders of ``nescio.methods``, so that a method is added by adding its file."""
    package = importlib.import_module("nescio.methods")
    for folder in pkgutil.iter_modules(package.__path__, "nescio.methods."):
        if folder.ispkg:
            family = importlib.import_module(folder.name)
            for file in pkgutil.iter_modules(family.__path__, f"{folder.name}."):
                importlib.import_module(file.name)


def _import_file(path: Path) -> ModuleType:
    """The module in a file, run once; what stands beside it can be imported by it, as when Python runs the file."""
    if not path.is_file():
        raise InputError(f"no such file: {path}" + ("; it is a folder" if path.is_dir() else ""))
    path = path.resolve()
    name = f"{path.stem}@{path.parent}"  # no other module's, whatever the file is called
    if name not in sys.modules:
        _search(path.parent)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise InputError(f"{path} cannot be read as Python: give a .py file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # what dataclasses and pickling ask for
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _files.add(name)
    return sys.modules[name]


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
