"""The main job from nothing: a small classifier trained on the spot, embedded images, the table and the report."""

from __future__ import annotations

from pathlib import Path

from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from nescio.data import Transform, open_source
from nescio.data.embedded import SIDE, write_embedded
from nescio.data.source import Rows
from nescio.evaluation.bench import bench
from nescio.evaluation.results import Results
from nescio.models import load_classifier
from nescio.models.runs import RUN
from nescio.run.session import Session
from nescio.training import Hardware, Recipe, Sets, Start, train

TRANSFORM = Transform(crop=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
FITTED = 11_000
"""Of the training images, how many the network is trained on; the others choose the epoch."""
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


def quickstart(out: Path, *, epochs: int = 10, seed: int = 0, running: Session | None = None) -> Results:
    """Build the images, train (or take up) the network in ``out``, and bench it, run as ``running`` says.

    Raises:
        InputError: the extra ``nescio[quickstart]`` is not installed.
    """
    running = running or Session(None)
    sets = write_embedded(out / "data", seed)
    run, images = out / f"model-{epochs}-epochs", open_source(sets["train"])
    recipe = Recipe(
        epochs=epochs,
        batch_size=128,
        optimizer="sgd:lr=0.2,weight_decay=5e-4,nesterov=true",
        schedule=f"cosine:warmup={0.3 * epochs:g}",
        augment="none",
        seed=seed,
    )
    train(
        run,
        model=Start("nescio.quickstart:network", transform=str(TRANSFORM)),
        sets=Sets(Rows(images, range(FITTED)), Rows(images, range(FITTED, len(images)))),
        objective="ce",
        recipe=recipe,
        hardware=Hardware(workers=running.workers, progress=running.progress),
        resume=(run / RUN).exists(),
    )
    classifier = load_classifier(str(run))
    classifier.name = "quickstart"  # for the report's title
    return bench(
        running.of(classifier),
        train=sets["train"],
        id=sets["id"],
        ood={name: sets[name] for name in ("glyphs", "backdrops", "noise")},
        detectors=DETECTORS,
    )
