"""What the build of the pages does beside MkDocs: a folder for the code blocks to run in, formulas, generated pages."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRATCH = Path(os.environ.get("NESCIO_DOCS_SCRATCH", ROOT / "build/docs"))
"""Code blocks run here, beside what the quickstart writes."""

sys.path.insert(0, str(HERE))

import cards  # noqa: E402 - beside this file, where MkDocs does not look
import commands  # noqa: E402, F401 - mkdocs-click imports it by its name
import doctests  # noqa: E402
import maths  # noqa: E402


def on_config(config: MkDocsConfig) -> None:
    """Formulas and examples are known to every page, docstrings too; the methods' cards stand in the navigation."""
    config.markdown_extensions += [maths.Maths(), doctests.Doctests()]  # type: ignore[list-item]
    for entry in config.nav or ():
        if "Methods" in entry:
            entry["Methods"] = cards.navigation()


def on_pre_build(config: MkDocsConfig) -> None:
    """Make the folder, and let code blocks print at a width that fits a page."""
    del config
    SCRATCH.mkdir(parents=True, exist_ok=True)
    for left in SCRATCH.iterdir():  # by the last build; the trained network and what was read with it are kept
        if left.name not in ("quickstart", "cache"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    os.environ |= {
        "COLUMNS": "100",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(SCRATCH / "cache"),
    }
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each command of a page would compile PyTorch anew
    os.chdir(SCRATCH)
    sys.path.insert(0, str(HERE))  # for code blocks; MkDocs has taken it out again
    _quickstart(SCRATCH / "quickstart")


def _quickstart(folder: Path) -> None:
    """What ``nescio quickstart`` writes, made anew where its code has changed."""
    from nescio import quickstart
    from nescio.data import embedded

    code = hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in (quickstart, embedded)))
    mark = folder / "made-by.txt"
    if not mark.exists() or mark.read_text(encoding="utf-8") != code.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        quickstart.quickstart(folder).save(folder / "results")
        mark.write_text(code.hexdigest(), encoding="utf-8")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    for path, content in cards.pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Go back to where the build was started."""
    del config
    os.chdir(ROOT)
