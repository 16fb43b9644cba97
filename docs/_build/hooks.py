"""What the build of the pages does beside MkDocs: a folder for the code blocks to run in, formulas, generated pages."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRATCH = Path(os.environ.get("NESCIO_DOCS_SCRATCH", ROOT / "build/docs"))
"""Code blocks run here, beside what the quickstart writes."""

sys.path.insert(0, str(HERE))

import maths  # noqa: E402 - beside this file, where MkDocs does not look


def on_config(config: MkDocsConfig) -> None:
    """Formulas are known to every page, those of docstrings too."""
    config.markdown_extensions.append(maths.Maths())  # type: ignore[arg-type]


def on_pre_build(config: MkDocsConfig) -> None:
    """Make the folder, and let code blocks print at a width that fits a page."""
    del config
    SCRATCH.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "COLUMNS": "100",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(SCRATCH / "cache"),
    }
    os.chdir(SCRATCH)
    sys.path.insert(0, str(HERE))  # for code blocks; MkDocs has taken it out again
    if not (SCRATCH / "quickstart/results").exists():
        from nescio.quickstart import quickstart

        quickstart(SCRATCH / "quickstart").save(SCRATCH / "quickstart/results")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    for path, text in _generated().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Go back to where the build was started."""
    del config
    os.chdir(ROOT)


def _generated() -> dict[str, Any]:
    return {}
