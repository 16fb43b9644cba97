"""Training a classifier into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError
from nescio.core.outputs import check_folder
from nescio.data.hashing import combine, hash_files
from nescio.data.source import AnySource, Source, as_source, by_name
from nescio.methods.objective import Objective, parse_objective
from nescio.models import Classifier
from nescio.models.load import new_network
from nescio.models.runs import STATE, WEIGHTS, Run
from nescio.training.checks import check_objective, check_same_run, check_sources, fingerprint, made_with
from nescio.training.hardware import Hardware, make_fabric
from nescio.training.images import RunImages
from nescio.training.loop import Loop
from nescio.training.recipe import Recipe
from nescio.training.state import State


@dataclass(frozen=True)
class Start:
    """The network that training begins with.

    Attributes:
        model: the architecture, as for ``load_classifier``.
        init: ``scratch``, ``pretrained``, a file of weights or a trained folder; a last layer of another size is made
            anew.
        size: side of the images that the network sees, in pixels; the model's own by default.
        transform: replaces parts of the model's test transform.
    """

    model: str
    init: str = "scratch"
    size: int | None = None
    transform: str | None = None

    @property
    def identity(self) -> str:
        """What the initial weights are: a word, or a hash of their file."""
        if self.init in ("scratch", "pretrained"):
            return self.init
        path = Path(self.init).expanduser()
        path = path / WEIGHTS if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"no such weights file: {path}")
        return combine(*hash_files([path]))


@dataclass(frozen=True)
class Sets:
    """The images of a run.

    Attributes:
        train: labelled training images.
        val: labelled ID validation images with the same classes, by name where both have names.
        outliers: images of no class, for an objective that learns from some (``oe``, ``ssod:outliers=1``).
        watch: OOD sets to be logged after each epoch. They select nothing, but the epoch that does best on them is kept
            apart as ``papers-choice.safetensors``: the SSOD paper chooses so, which looks at the test.
    """

    train: AnySource
    val: AnySource
    outliers: AnySource | None = None
    watch: Mapping[str, AnySource] = field(default_factory=dict)

    def opened(self) -> tuple[dict[str, Source], dict[str, Source]]:
        """The images that training reads, by what they are for; and those that are watched, by their names."""
        sources = {"train": as_source(self.train), "val": as_source(self.val)}
        if self.outliers is not None:
            sources["outliers"] = as_source(self.outliers)
        return sources, {name: as_source(source) for name, source in by_name(self.watch, "watch").items()}


def train(
    out: str | Path,
    *,
    model: str | Start,
    sets: Sets,
    objective: str = "ssod",
    recipe: Recipe | None = None,
    hardware: Hardware | None = None,
    resume: bool = False,
    keep: bool = False,
) -> Run:
    """Train a classifier, with the heads of its objective, into a folder that ``load_classifier`` opens.

    Of the epochs whose ID validation accuracy is within one standard error of the best so far, the weights are kept of
    the one whose score has the highest AUROC against the validation images with their tiles shuffled. No OOD image
    takes part in the choice.

    Args:
        out: the folder.
        model: the architecture, as for ``load_classifier``; a ``Start`` also says where its weights come from.
        sets: the images.
        objective: what is minimised, a spec string: ``ce``, ``ssod:gamma=0.95,alpha=1,balance=lwb``.
        recipe: everything else that the weights follow from; by default ``ssod``, the paper's.
        hardware: devices, processes, memory.
        resume: go on from the last checkpoint in ``out``.
        keep: store the weights of every epoch, too, as ``epoch-N.safetensors``.

    Raises:
        InputError: the images, the model, the objective or the folder do not serve; or the loss is no longer finite.
        Interrupted: on SIGINT or SIGTERM, after a checkpoint.
    """
    out, hardware, recipe = Path(out).expanduser(), hardware or Hardware(), recipe or Recipe.named("ssod")
    start = Start(model) if isinstance(model, str) else model
    check_folder(out)
    sources, watched = sets.opened()
    n_classes, sources["val"] = check_sources(sources["train"], sources["val"], recipe.batch_size)
    goal = parse_objective(objective)
    check_objective(goal, sources, recipe.epochs)
    fabric = make_fabric(hardware, recipe)
    torch.manual_seed(recipe.seed)
    classes = sources["train"].classes
    made = new_network(
        start.model, n_classes, classes=classes, init=start.init, transform=start.transform, size=start.size
    )
    follows_from = recipe.settings() | {"init": start.identity} | {n: s.identity for n, s in sources.items()}
    follows_from["watch"] = {name: source.identity for name, source in watched.items()}
    device = fabric.device
    run = Run(made.name, n_classes, classes, str(made.transform), repr(goal), follows_from, made_with=made_with(device))
    run = check_same_run(out, run, resume=resume)
    network = made.network.to(device).to(memory_format=torch.channels_last)
    classifier = Classifier(network, made.transform, name=made.name, classes=run.classes)
    torch.manual_seed(recipe.seed + 1)
    classifier.heads.update(_heads(goal, classifier, made.heads))
    goal.after_step(classifier)
    state = State(network, classifier, goal, recipe.ema, fingerprint(run))
    images = RunImages.read(sources, watched, made.transform, device=device, hardware=hardware)
    loop = Loop(fabric, run, out, state, goal, recipe, images, keep=keep)
    loop.run_epochs(resume=resume and (out / STATE).exists(), progress=hardware.progress)
    return run


def _heads(goal: Objective, classifier: Classifier, initial: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The objective's heads, with the weights that the initial file brings for them."""
    heads = goal.heads(classifier)
    for name, head in heads.items():
        if name in initial and _fits(head, initial[name].state_dict()):
            head.load_state_dict(initial[name].state_dict())
    return heads


def _fits(head: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a head is of the same kind and size: its whole numbers say what it is (its similarity, its groups)."""
    own = {k: t for k, t in head.state_dict().items() if not k.endswith("num_batches_tracked")}
    return all(k in state and state[k].shape == t.shape for k, t in own.items()) and all(
        t.is_floating_point() or bool((state[k].to(t.device) == t).all()) for k, t in own.items()
    )
