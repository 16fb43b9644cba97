"""What holds for the package's files as a whole: who imports whom, what functions take, what starting costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nescio

ROOT = Path(nescio.__file__).parent
FILES = {
    ".".join(("nescio", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}
MOST_PARAMETERS = 8


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All that can run, also inside functions; what stands there for type checkers alone is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from running(node)


def imported(tree: ast.Module) -> Iterator[str]:
    """The package's own files that a file imports from, by module."""
    for node in running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else str(node.module)


def test_no_file_imports_itself_by_way_of_others() -> None:
    """The ``__init__`` of a folder only hands on what its files have, so an import from it is no import of it."""
    folders = {module for module, path in FILES.items() if path.name == "__init__.py"}
    graph = {module: set(imported(tree)) & FILES.keys() - folders - {module} for module, tree in TREES.items()}
    assert sum(map(len, graph.values())) > 500
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail("these import each other: " + " <- ".join(e.args[1]))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def test_no_function_has_more_parameters_than_anyone_remembers() -> None:
    """A stage or an objective has the options that it has; everything else groups what belongs together."""
    many = []
    for module, function in functions():
        a = function.args
        named = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in ("self", "cls")]
        declares_options = function.name == "__init__" and module.startswith("nescio.methods.")
        if len(named) > MOST_PARAMETERS and not declares_options:
            many.append(f"{module}.{function.name} has {len(named)}")
    assert not many


def test_every_public_name_is_there_for_editors_and_at_run_time() -> None:
    """They are imported on first use, so they stand twice: in the table, and where a type checker looks."""
    (checked,) = (n for n in TREES["nescio"].body if isinstance(n, ast.If))
    seen = {
        alias.asname or alias.name: str(node.module)
        for node in ast.walk(checked)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == nescio.__all__
    for name, module in seen.items():
        assert getattr(nescio, name) is getattr(importlib.import_module(module), name)
    assert set(nescio.__all__) <= set(dir(nescio))
    with pytest.raises(AttributeError, match="module 'nescio' has no attribute 'nothing'"):
        _ = nescio.nothing


@pytest.mark.parametrize("words", ["", "--help", "--version", "bench --help", "train --help", "serve --help"])
def test_nothing_heavy_is_imported_before_it_is_needed(words: str) -> None:
    """PyTorch alone takes over a second, and the terminal's library as long as all of ``--help`` without it."""
    code = f"import nescio.cli; nescio.cli.main({words.split()}, standalone_mode=False)" if words else "import nescio"
    code = f"{code}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "nescio" in roots
    assert not roots & {"torch", "numpy", "rich", "filelock", "PIL", "pyarrow", "jinja2", "fastapi"}
