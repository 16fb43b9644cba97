"""The Python of the pages, run as it stands there on small stand-ins, and the examples in docstrings."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import nescio

PAGES = Path(__file__).parents[2]
TOGETHER = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.body(x))


def images(n, seed, level=0.0):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) + level


torch.manual_seed(0)
net = Tiny()
backbone = net.body
W, b = net.fc.weight.detach().numpy(), net.fc.bias.detach().numpy()
y = y_train = np.arange(200) % 10
train_loader = DataLoader(TensorDataset(images(200, 0), torch.from_numpy(y)), batch_size=50)
test_loader = DataLoader(TensorDataset(images(60, 1), torch.arange(60) % 10), batch_size=50)
svhn_loader = DataLoader(TensorDataset(images(40, 2, 3.0)), batch_size=50)
with torch.no_grad():
    h = h_train = backbone(images(200, 0)).numpy()
    h_test = backbone(images(60, 1)).numpy()
z = h_test @ W.T + b
"""
TOUR = """
from pathlib import Path

from PIL import Image

mixed = TensorDataset(torch.cat([images(60, 1), images(40, 2, 3.0)]), torch.arange(100) < 60)
mixed_loader = DataLoader(mixed, batch_size=30)
for n, name in enumerate(["images/train", "images/test", "images/dtd"]):
    for i in range(40):
        folder = Path(name, "" if n == 2 else f"class{i % 10}")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(100 * n + i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
"""
IN_TOUR = """
kept = nescio.load("detector.nescio")
by_hand = detector(h_test)
np.testing.assert_array_equal(kept(h_test), by_hand)
np.testing.assert_array_equal(same(h_test), by_hand)
np.testing.assert_array_equal(nescio.Detector("msp")(logits=z), nescio.msp(z))

knn = nescio.Detector("knn").fit(h_train)  # the row of the table, by the array functions
svhn = backbone(images(40, 2, 3.0)).detach().numpy()
expected = nescio.evaluation.metrics.auroc(knn(h_test), knn(svhn))
np.testing.assert_allclose(results.row("fmls", "dtd").auroc, nescio.load("results").row("fmls", "dtd").auroc)
table = nescio.evaluate("knn", train=train, id=test, ood=ood)
np.testing.assert_allclose(table.row("knn", "svhn").auroc, expected)
np.testing.assert_allclose(float(metrics.compute()["auroc"]), nescio.evaluation.metrics.auroc(by_hand, detector(svhn)))
assert head.weight.shape == (10, 16)
assert {"msp", "energy", "fmls"} <= {r.detector for r in results.rows}
"""
IN_README = """
knn = nescio.Detector("knn").fit(h_train)
svhn = backbone(images(40, 2, 3.0)).detach().numpy()
expected = nescio.evaluation.metrics.auroc(knn(h_test), knn(svhn))
np.testing.assert_allclose(results.row("knn", "svhn").auroc, expected)
"""
IN_DESIGN = """
np.testing.assert_allclose(session.scores([detector], test_loader)[repr(detector)], detector(h_test), rtol=1e-5)
np.testing.assert_array_equal(scores, nescio.msp(z))
assert {r.detector for r in table.rows} == {repr(detector), "knn", "energy"}
"""

DOCTESTS = """
import doctest
import importlib
import sys

import nescio
from nescio.methods import FM, Energy

given = {**globals(), "nescio": nescio}
for name in sys.argv[1:]:
    done = doctest.testmod(importlib.import_module(name), extraglobs=given)
    assert done.attempted and not done.failed, name
"""


def blocks(page: str, heading: str = "") -> list[str]:
    """The Python of a page or of one of its sections, block by block."""
    section = (PAGES / page).read_text(encoding="utf-8")
    if heading:
        section = section.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run(folder: Path, *parts: str, words: Sequence[str] = ()) -> None:
    """As a user would, in a process and a folder of its own: a class with a name is known to a whole process."""
    (folder / "page.py").write_text("\n".join(map(textwrap.dedent, parts)), encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (alone, network) = blocks("README.md")
    run(tmp_path, alone)
    run(tmp_path, "import nescio", TOGETHER, network, IN_README)


def test_the_tours_python_runs(tmp_path: Path) -> None:
    parts = blocks("docs/get-started/python.md")
    assert len(parts) >= 6
    run(tmp_path, TOGETHER, TOUR, *parts, IN_TOUR)


def test_the_designs_python_runs(tmp_path: Path) -> None:
    run(tmp_path, TOGETHER, *blocks("docs/design.md", "The types"), IN_DESIGN)


def test_the_examples_in_docstrings_run(tmp_path: Path) -> None:
    root = Path(nescio.__file__).parent
    files = [path for path in sorted(root.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    assert len(files) >= 7
    names = [".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__") for path in files]
    run(tmp_path, TOGETHER, DOCTESTS, words=names)


def test_the_picture_of_the_layout_shows_what_is_there() -> None:
    root = Path(nescio.__file__).parent
    picture = (PAGES / "docs/design.md").read_text(encoding="utf-8").split("```\nsrc/nescio/\n")[1].split("```")[0]
    rooms = {path.name for path in root.iterdir() if any(path.glob("*.py"))}
    named = set(re.findall(r"[a-z_]+(?=/)", picture))
    assert rooms <= named
    there = {path.name for path in root.rglob("*") if path.suffix in (".py", ".toml", ".csv")}
    assert set(re.findall(r"[a-z_0-9]+\.(?:py|toml|csv)", picture)) <= there
