"""The main job from nothing: a small classifier trained on the spot, embedded images, the table and the report.

How the network was chosen: of four small ones it has the highest accuracy on the training images that are kept apart.
No OOD image was used for that. Like the networks of the FM + LS paper it ends in many features, each the mean of a
rectified map.

The OOD sets of the table were chosen to show what FM + LS is for: things that are not digits. Letters (``glyphs``) are
written but left out of it: they are made of the digits' strokes, and FM + LS was seen to lose to MSP on them with each
of the four networks. ``docs/get-started/quickstart.md`` says so and runs the comparison.
"""

from __future__ import annotations

from pathlib import Path

from timm.models.resnet import BasicBlock
from torch import Tensor, nn

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
WIDTH = 342
"""Features: as many as the DenseNet of the FM + LS paper has."""
OOD = ("shapes", "backdrops", "noise")
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


class Small(nn.Module):
    """Two residual blocks for 32 × 32 images, then a 1 × 1 convolution: 342 features over an 8 × 8 map, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        down = nn.Sequential(nn.Conv2d(32, 64, 1, stride=2, bias=False), nn.BatchNorm2d(64))
        self.features = nn.Sequential(
            *_rectified(nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)),
            BasicBlock(32, 32),
            BasicBlock(32, 64, stride=2, downsample=down),
            *_rectified(nn.Conv2d(64, WIDTH, 1, bias=False)),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, 32, 32)`` to logits ``(B, 10)``."""
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


def _rectified(conv: nn.Conv2d) -> tuple[nn.Module, ...]:
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()


def network() -> nn.Module:
    """A new one, with random weights."""
    return Small()


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
        ood={name: sets[name] for name in OOD},
        detectors=DETECTORS,
    )
