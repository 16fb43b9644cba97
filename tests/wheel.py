"""What `make dist` checks: what is in the sdist and the wheel, and the README's first Python in an empty environment.

python tests/wheel.py PYTHON    # PYTHON: that of the environment which the wheel alone is installed in
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNWANTED = ("tests/", "studies/", "benchmarks/", "docs/", "requirements/", ".ci/")


def checked(kind: str, names: list[str], needed: tuple[str, ...]) -> None:
    """End with a message where something is missing or does not belong there."""
    missing = [n for n in needed if n not in names]
    extra = [n for n in names if n.startswith(UNWANTED)]
    if missing or extra:
        sys.exit(f"{kind}: missing {missing}, not wanted {extra[:5]}")
    sys.stdout.write(f"{kind}: {len(names)} files\n")


def main(python: str) -> None:
    """Check both files, then run the README's first block of Python where nothing of the checkout is in sight."""
    (wheel,), (sdist,) = (ROOT / "dist").glob("*.whl"), (ROOT / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as z:
        needed = ("nescio/py.typed", "nescio/report/page.html.j2", "nescio/methods/costs.csv")
        checked("wheel", z.namelist(), needed)
    with tarfile.open(sdist) as t:
        names = [n.partition("/")[2] for n in t.getnames()]
        checked("sdist", names, ("src/nescio/py.typed", "LICENSE", "README.md", "pyproject.toml"))
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    with tempfile.TemporaryDirectory() as empty:
        for command in (["-I", "-c", block[1]], ["-I", "-m", "nescio", "--version"]):
            subprocess.run([python, *command], cwd=empty, check=True)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).absolute()))
