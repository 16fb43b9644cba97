"""Commands that train a network and look into it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from nescio.cli.base import console
from nescio.cli.options import device_option, max_bad_option, named, out_option, transform_option, workers_option
from nescio.core.errors import InputError
from nescio.core.outputs import check_file

OBJECTIVES = (
    "ce, ssod, logitnorm, godin, mos, vos, bal, conf, supcon, csi, cider, oe or flyp; with options: "
    "ssod:gamma=0.95,alpha=1."
)


@click.command(context_settings={"show_default": True})
@click.option(
    "--arch",
    required=True,
    help="Network to train, as in nescio bench --model: resnet18, timm:NAME, … (not a trained folder).",
)
@click.option(
    "--train", "train_", required=True, help="Labelled training images: a folder, .parquet, … as in nescio bench."
)
@click.option("--val", required=True, help="Labelled ID validation images. Only the best epoch is chosen on them.")
@out_option("Folder for the run; use it as nescio bench --model.", required=True)
@click.option("--objective", default="ssod", help=OBJECTIVES)
@click.option("--outliers", help="Images of none of the classes, for objectives that use them: oe, or ssod:outliers=1.")
@click.option(
    "--recipe",
    default="ssod",
    help="Defaults for the options from --epochs to --precision: ssod, cifar, cosine, vit, flyp.",
)
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--batch-size", type=int, help="Images per step, in all processes together.")
@click.option("--optimizer", help="adamw:lr=1e-4,weight_decay=0.01 or sgd:lr=0.1,momentum=0.9,….")
@click.option("--schedule", help="constant, step:every=30,factor=0.5, milestones:at=50/75 or cosine; warmup=EPOCHS.")
@click.option("--augment", help="none, shift:by=0.125,flip=true or crop:least=0.25,flip=true.")
@click.option("--accumulate", type=int, help="Compute each batch in this many parts, to save memory.")
@click.option("--clip", type=float, help="Clip the gradient to this norm.")
@click.option("--ema", type=float, help="Average the weights with this decay per step, e.g. 0.999.")
@click.option("--precision", type=click.Choice(["32", "bf16"]), help="32, or bf16 for mixed precision.")
@click.option(
    "--init",
    default="scratch",
    help="scratch, pretrained, a file of weights, or a trained folder. The last layer adapts to the classes.",
)
@click.option(
    "--size", type=click.IntRange(1), help="Side of the images for the network, in pixels.  [default: the model's]"
)
@transform_option
@click.option("--seed", type=int, default=0, help="Random seed.")
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint; give the same other options.")
@click.option(
    "--watch", multiple=True, metavar="NAME=SET", help="OOD set to evaluate and log after each epoch. Repeatable."
)
@click.option("--keep", is_flag=True, help="Also store the weights of every epoch.")
@device_option
@click.option(
    "--devices",
    type=click.IntRange(1),
    default=1,
    help="Number of devices, one process each. For several machines use torchrun.",
)
@workers_option
@click.option(
    "--hold/--stream",
    default=None,
    help="Keep decoded images in memory, or decode them in each epoch.  [default: keep them if they fit]",
)
@max_bad_option
@click.pass_obj
def train(obj: dict[str, Any], /, train_: str, watch: tuple[str, ...], recipe: str, **options: Any) -> None:
    """Train a classifier with its own OOD head. It needs labelled ID images only.

    \b
    nescio train --arch resnet18 --train images/train --val images/val \\
        --objective ssod:gamma=0.95,alpha=1,balance=lwb --size 64 --epochs 20 --out runs/ssod
    nescio bench --model runs/ssod --train images/train --id images/val --ood other=… --detector ssod
    """  # noqa: D301 - click reads the backslashes
    from nescio.training import Hardware, Recipe, Sets, Start
    from nescio.training import train as run

    def chosen(*names: str) -> dict[str, Any]:
        return {name: options.pop(name) for name in names}

    out = options.pop("out")
    entries = ("epochs", "batch_size", "optimizer", "schedule", "augment", "accumulate", "clip", "ema", "precision")
    trained = run(
        out,
        model=Start(options.pop("arch"), **chosen("init", "size", "transform")),
        sets=Sets(train_, **chosen("val", "outliers"), watch=named(watch, "--watch")),
        recipe=Recipe.named(recipe, **chosen(*entries, "seed")),
        hardware=Hardware(**chosen("device", "devices", "workers", "hold", "max_bad"), progress=not obj["quiet"]),
        **options,
    )
    if trained.selected and int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0:
        console().print(_kept(trained.selected, out))


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--model",
    required=True,
    multiple=True,
    help="The model, as in nescio bench. Repeatable: models are shown side by side.",
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weights, as in nescio bench; only with one --model.")
@click.option("--untrained", is_flag=True, help="Allow random weights.")
@click.option("--transform", help="Changes to the test transform, as in nescio bench.")
@click.option("--head", help="Last linear layer, as in nescio bench.")
@out_option("Picture to write: .png or .svg. Its arrays are written beside it.", required=True)
@click.option(
    "--gamma",
    default=0.95,
    show_default=True,
    help="A patch shows the class if its confidence is gamma or more, and background if it is below 1 - gamma.",
)
@click.option(
    "--label", help="Class whose confidence is shown.  [default: the true class if known, else the predicted one]"
)
@device_option
def explain(images: tuple[str, ...], model: tuple[str, ...], out: Path, **options: Any) -> None:
    """Draw where a classifier sees its class. Also shown: patches of class or background, the map of an OOD head.

    IMAGES are files, or sets as in nescio bench: SET[:12] for the first 12.
    """
    from nescio.data.source import open_source
    from nescio.explanation.maps import explain as run
    from nescio.models import load_classifier

    check_file(out, (".png", ".svg"))
    keys = ("weights", "untrained", "transform", "head", "device")
    loading = {k: options.pop(k) for k in keys}
    if loading["weights"] and len(model) > 1:
        raise InputError("--weights needs a single --model; to compare models, give trained folders")
    repeated = [name for name in model if model.count(name) > 1]
    if repeated:
        raise InputError(f"--model {repeated[0]} is given twice; give it once")
    classifiers = {name: load_classifier(name, **loading) for name in model}
    arrays = run(classifiers, [open_source(spec) for spec in images], out, **options)
    console().print(f"wrote {out} and {arrays}")


def _kept(selected: dict[str, dict[str, Any]], out: Path) -> str:
    lines = []
    for name, file in (("kept", "model.safetensors"), ("papers_choice", "papers-choice.safetensors")):
        if name in selected:
            s = selected[name]
            lines.append(
                f"{out / file}: epoch {s['epoch']}, ID validation accuracy {s['val_accuracy']:.2%}, AUROC against "
                f"shuffled images {s['val_shuffled_auroc']:.2%}\n  chosen by the {s['by']}"
            )
    return "\n".join(lines)
