from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from nescio.core.feature_set import FeatureSet
from nescio.core.features import Columns, Features
from nescio.data import Transform
from nescio.models import Classifier
from nescio.testing.made import made_up

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the test processes share the cores


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Banks and hashes of the tests go to a folder of their own."""
    os.environ["NESCIO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the reference images and weights: $NESCIO_SHARED, or next to the checkout."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("NESCIO_SHARED", root.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs the reference images and weights; set NESCIO_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def unrecorded() -> Iterator[None]:
    """PyTorch writes down all that it traces for whoever listens, as pytest does; that would take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torch", "torch.__trace"):
            patch.setattr(logging.getLogger(name), "propagate", False)
        yield


@pytest.fixture(scope="module")  # while it is open, nothing else in this thread can run an event loop
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: Chromium (Debian's package chromium) or Chrome")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command sets the logger up for a terminal."""
    yield
    logger = logging.getLogger("nescio")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nobody can write to, root neither: it is mounted over itself, for reading alone.

    Where that is not allowed, and permissions bind us, these do it.
    """
    bound = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode == 0
    try:
        if bound:
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        elif os.geteuid():
            _set_modes(folder, 0o555, 0o444)
        else:
            pytest.skip("root may write everywhere, and nothing can be mounted here")
        yield
    finally:
        if bound:
            subprocess.run(["umount", "--lazy", folder], check=True)
        else:
            _set_modes(folder, 0o755, 0o644)


def _set_modes(folder: Path, folders: int, files: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(folders if path.is_dir() else files)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A folder with room for ``size`` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that commands are run in: weights, the user's own module ``mine``, and a cache."""
    save_file(tiny_net().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "mine.py").write_text("from conftest import tiny_net as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("NESCIO_CACHE", str(tmp_path / "cache"))
    return tmp_path


class TinyNet(nn.Module):
    """Convolution, batch norm, global pooling and a linear head: 3 × 8 × 8 images to 4 classes."""

    def __init__(self, classes: int = 4, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(self.pool(x).flatten(1))


def tiny_net(classes: int = 4, *, bias: bool = True) -> TinyNet:
    torch.manual_seed(0)
    net = TinyNet(classes, bias=bias)
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return net.eval()


TINY_TRANSFORM = Transform(crop=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(tiny_net(), TINY_TRANSFORM, name="tiny")


def random_features(
    n: int = 200, width: int = 12, classes: int = 5, seed: int = 0, *, negative: bool = False
) -> Features:
    """Class-clustered features with labels, as a network with ReLU (or without) would give them; and made-up probes."""
    f = made_up(n=n, width=width, classes=classes, seed=seed, negative=negative)
    h, head = f.h, f.head
    aux = {
        "rankfeat.0": h.roll(1, dims=1) * 0.7,
        "ood.0": h[:, :9] - 0.5,
        "godin.0": torch.stack([head.linear(h).amax(1), h.mean(1).sigmoid()], dim=1),
        "vos.0": head.linear(h).logsumexp(dim=1, keepdim=True) / 9 - 1,
        "mos.0": h[:, :3].log_softmax(1),
        "bal.0": h[:, :1] - 1,
        "neglabel.0": h[:, :3] + 1,
        "csi.0": head.linear(h) * 0.9,
        "mcdropout.0": (head.linear(h) / 2).log_softmax(1),
        **{f"mean.{i}": h[:, : 3 + i] + i for i in range(2)},
        **{
            f"gram{orders}.{i}": torch.cat([h[:, : 2 + i].abs() ** (1 / (1 + p)) for p in range(orders)], dim=1)
            for orders in (10, 3)
            for i in range(2)
        },
    }
    return f.with_fields(aux=Columns.of(aux))


def training(f: Features, chunk: int = 64) -> FeatureSet:
    def chunks():
        for start in range(0, len(f), chunk):
            at = slice(start, start + chunk)
            yield f.rows(torch.arange(len(f))[at])

    return FeatureSet.stream(chunks, f.head)


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Pictures:
    """A source in memory whose images can be bad, slow, or counted."""

    def __init__(self, n: int, bad: dict[int, bytes] | None = None, delay: float = 0) -> None:
        self.n, self.bad, self.delay = n, bad or {}, delay
        self.labels = np.arange(n) % 4
        self.classes = None
        self.identity = self.stamp = f"{n}-{sorted(self.bad)}"

    def __len__(self) -> int:
        return self.n

    def name(self, i: int) -> str:
        return f"picture {i}"

    def read(self, i: int) -> bytes:
        time.sleep(self.delay)
        return self.bad.get(i) if i in self.bad else encoded(picture(i))


def coloured(root: Path, name: str, per_class: int, classes: int = 3, seed: int = 0, side: int = 16) -> Path:
    """A bright square of the class's colour on noise."""
    rng = np.random.default_rng(seed)
    for c in range(classes):
        (root / name / f"class{c}").mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
            x, y = rng.integers(0, side // 2, 2)
            pixels[y : y + side // 2, x : x + side // 2, c % 3] = 250 - 60 * (c // 3)
            Image.fromarray(pixels).save(root / name / f"class{c}" / f"{i:03}.png")
    return root / name


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of class folders: ``make_folder("name", per_class=3, classes=("a", "b"))``."""

    def make(name: str, per_class: int = 3, classes: tuple[str, ...] = ("a", "b"), seed: int = 0) -> Path:
        root = tmp_path / name
        for c, label in enumerate(classes):
            (root / label).mkdir(parents=True)
            for i in range(per_class):
                picture(seed + 100 * c + i).save(root / label / f"{i}.png")
        return root

    return make


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random network of open_clip's, known as ``small-clip``, and its weights."""
    open_clip = pytest.importorskip("open_clip", reason="needs the extra nescio[clip]")
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    }
    (folder / "small-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    save_file(open_clip.create_model("small-clip").state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"
