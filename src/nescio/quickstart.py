"""The main job from nothing: a small classifier trained on the spot, embedded images, the table and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nescio.benchmark import bench
from nescio.data import Transform, open_source
from nescio.data.decode import decode
from nescio.data.embedded import SIDE, write_embedded
from nescio.models import Classifier
from nescio.models.weights import read_weights
from nescio.progress import progress_bar
from nescio.results import Results

TRANSFORM = Transform(crop=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
DETECTORS = (
    "msp",
    "maxlogit",
    "energy",
    "react:q=0.98+energy",
    "fm:p=0.6+energy",
    "ls+energy",
    "cosine",
    "fmls",
)


def network() -> nn.Module:
    """A narrow ResNet-10 for 32 × 32 images (timm's, with a 3 × 3 stem); 128 features, 10 classes."""
    model: nn.Module = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, channels=(16, 32, 64, 128))
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def quickstart(out: Path, *, epochs: int = 10, seed: int = 0, **options: Any) -> Results:
    """Build the images, train (or take up) the network in ``out``, and bench it.

    Raises:
        InputError: the extra ``nescio[quickstart]`` is not installed.
    """
    sets = write_embedded(out / "data", seed)
    model, weights = network(), out / f"model-{epochs}-epochs.safetensors"
    if weights.exists():
        model.load_state_dict(read_weights(weights))
    else:
        train(
            model,
            *load_images(sets["train"]),
            epochs=epochs,
            seed=seed,
            progress=options.get("progress", True),
        )
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    return bench(
        Classifier(model, TRANSFORM, name="quickstart"),
        train=sets["train"],
        id=sets["id"],
        ood={name: sets[name] for name in ("glyphs", "backdrops", "noise")},
        detectors=DETECTORS,
        **options,
    )


def load_images(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a small set as uint8 ``(N, 3, 32, 32)``, and their labels."""
    source = open_source(path)
    images = [TRANSFORM.geometry(decode(source.read(i))) for i in range(len(source))]
    return torch.stack(images), torch.from_numpy(source.labels)


def train(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    seed: int,
    progress: bool = True,
) -> None:
    """Cross entropy with SGD and a one-cycle schedule: enough for a small set that fits in memory."""
    torch.manual_seed(seed)
    model.train().to(memory_format=torch.channels_last)
    order = TensorDataset(torch.arange(len(images)))
    batches = DataLoader(order, batch_size=128, shuffle=True, drop_last=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.2, total_steps=epochs * len(batches))
    with progress_bar(show=progress) as bar:
        task = bar.add_task("training", total=epochs * len(images))
        for _ in range(epochs):
            for (pick,) in batches:
                x = TRANSFORM.normalise(images[pick]).contiguous(memory_format=torch.channels_last)
                loss = nn.functional.cross_entropy(model(x), labels[pick])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                bar.advance(task, len(pick))
    model.eval()
