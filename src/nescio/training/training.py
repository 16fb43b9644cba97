"""Training a classifier into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nescio.core.errors import InputError, check_at_least
from nescio.core.outputs import check_folder
from nescio.data.hashing import combine, hash_files
from nescio.data.source import AnySource, Source, as_source, by_name
from nescio.data.transform import Transform
from nescio.methods.objective import Objective, parse_objective
from nescio.models import Classifier
from nescio.models.load import new_network
from nescio.models.runs import STATE, WEIGHTS, Run
from nescio.training.checks import check_objective, check_same_run, check_sources, fingerprint, made_with
from nescio.training.hardware import Hardware, make_fabric
from nescio.training.images import Images, held_side
from nescio.training.loop import Loop
from nescio.training.recipe import Recipe
from nescio.training.state import State


def train(
    out: str | Path,
    *,
    model: str,
    train: AnySource,
    val: AnySource,
    objective: str = "ssod",
    outliers: AnySource | None = None,
    recipe: Recipe | None = None,
    init: str = "scratch",
    size: int | None = None,
    transform: str | None = None,
    seed: int = 0,
    resume: bool = False,
    watch: Mapping[str, AnySource] | None = None,
    keep: bool = False,
    hardware: Hardware | None = None,
    progress: bool = True,
) -> Run:
    """Train a classifier, with the heads of its objective, into a folder that ``load_classifier`` opens.

    Of the epochs whose ID validation accuracy is within one standard error of the best so far, the weights are kept of
    the one whose score has the highest AUROC against the validation images with their tiles shuffled. No OOD image
    takes part in the choice.

    Args:
        out: the folder.
        model: the architecture, as for ``load_classifier``.
        train: labelled training images.
        val: labelled ID validation images with the same classes by name where both have names.
        objective: what is minimised, a spec string: ``ce``, ``ssod:gamma=0.95,alpha=1,balance=lwb``.
        outliers: images of no class, for an objective that learns from some (``oe``, ``ssod:outliers=1``).
        recipe: everything else about the optimisation; by default ``ssod``, the paper's.
        init: ``scratch``, ``pretrained`` or a file of weights; a last layer of another size is made anew.
        size: side of the images that the network sees, in pixels; the model's own by default.
        transform: replaces parts of the model's test transform.
        seed: of everything drawn.
        resume: go on from the last checkpoint in ``out``.
        watch: OOD sets to be logged after each epoch. They select nothing, but the epoch that does best on them is kept
            apart as ``papers-choice.safetensors``: Pei, ICLR 2024, chooses so, which looks at the test.
        keep: store the weights of every epoch, too, as ``epoch-N.safetensors``.
        hardware: devices, processes, memory.
        progress: show a bar on a terminal.

    Raises:
        InputError: the images, the model, the objective or the folder do not serve; or the loss is no longer finite.
        Interrupted: on SIGINT or SIGTERM, after a checkpoint.
    """
    out, hardware, recipe = Path(out).expanduser(), hardware or Hardware(), recipe or Recipe.named("ssod")
    check_folder(out)
    sources = {"train": as_source(train), "val": as_source(val)}
    n_classes, sources["val"] = check_sources(sources["train"], sources["val"], recipe.batch_size)
    watched = {name: as_source(source) for name, source in by_name(watch or {}, "watch").items()}
    goal = parse_objective(objective)
    if outliers is not None:
        sources["outliers"] = as_source(outliers)
    check_objective(goal, sources, recipe.epochs)
    if not check_at_least("seed", seed, 0) < 1 << 62:
        raise InputError(f"seed={seed} must be below 2^62")
    fabric = make_fabric(hardware, recipe)
    torch.manual_seed(seed)
    classes = sources["train"].classes
    made = new_network(model, n_classes, classes=classes, init=init, transform=transform, size=size)
    weights = _identity(init)
    follows_from = recipe.settings() | {"seed": seed, "init": weights} | {n: s.identity for n, s in sources.items()}
    follows_from["watch"] = {name: source.identity for name, source in watched.items()}
    device = fabric.device
    run = Run(made.name, n_classes, classes, str(made.transform), repr(goal), follows_from, made_with=made_with(device))
    run = check_same_run(out, run, resume=resume)
    network = made.network.to(device).to(memory_format=torch.channels_last)
    classifier = Classifier(network, made.transform, name=made.name, classes=run.classes)
    torch.manual_seed(seed + 1)
    classifier.heads.update(_heads(goal, classifier, made.heads))
    goal.after_step(classifier)
    side = held_side(sources["train"], made.transform, hardware.workers)
    square = Transform(crop=side, interpolation=made.transform.interpolation)

    def images(source: Source, seen: Transform, title: str) -> Images:
        return Images(source, seen, device=device, hardware=hardware, title=f"{title} images", progress=progress)

    loop = Loop(
        fabric,
        run,
        out,
        State(network, classifier, goal, recipe.ema, fingerprint(run)),
        goal,
        recipe,
        images(sources["train"], square, "training"),
        images(sources["val"], made.transform, "validation"),
        {n: images(s, made.transform, n) for n, s in watched.items()},
        outliers=images(sources["outliers"], square, "outliers") if "outliers" in sources else None,
        keep=keep,
    )
    loop.run_epochs(resume=resume and (out / STATE).exists(), progress=progress)
    return run


def _heads(goal: Objective, classifier: Classifier, given: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The objective's heads, with the weights that the initial file brings for them."""
    heads = goal.heads(classifier)
    for name, head in heads.items():
        if name in given and _fits(head, given[name].state_dict()):
            head.load_state_dict(given[name].state_dict())
    return heads


def _fits(head: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a head is of the same kind and size: its whole numbers say what it is (its similarity, its groups)."""
    own = {k: t for k, t in head.state_dict().items() if not k.endswith("num_batches_tracked")}
    return all(k in state and state[k].shape == t.shape for k, t in own.items()) and all(
        t.is_floating_point() or bool((state[k].to(t.device) == t).all()) for k, t in own.items()
    )


def _identity(init: str) -> str:
    """What initial weights are: a word, or a hash of their file."""
    if init in ("scratch", "pretrained"):
        return init
    path = Path(init).expanduser()
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"no weights file {path}")
    return combine(*hash_files([path]))
