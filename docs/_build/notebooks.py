"""Run the notebooks of the guides, and write them with their outputs.

    python docs/_build/notebooks.py OUT [NAME …]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jupytext
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def main(out: str, *names: str) -> None:
    """Write ``OUT/NAME.ipynb`` for each name, or for all notebooks."""
    Path(out).mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.py")):
        if names and path.stem not in names:
            continue
        notebook = jupytext.read(path)
        with tempfile.TemporaryDirectory() as folder:  # what a notebook writes is not kept
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        jupytext.write(notebook, Path(out, f"{path.stem}.ipynb"))


if __name__ == "__main__":
    main(*sys.argv[1:])
