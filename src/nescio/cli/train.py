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
    "ce, ssod, logitnorm, godin, mos, vos, bal, conf, supcon, csi, cider, oe or flyp; options: ssod:gamma=0.95,alpha=1."
)


@click.command(context_settings={"show_default": True})
@click.option(
    "--arch", required=True, help="A name as for bench --model, but no trained folder: resnet18, timm:NAME, …"
)
@click.option("--train", "train_", required=True, help="Labelled training images: a folder, .parquet, … as for bench.")
@click.option("--val", required=True, help="Labelled ID validation images; nothing is fitted to them but the choice.")
@out_option("Folder of the run; bench --model takes it.", required=True)
@click.option("--objective", default="ssod", help=OBJECTIVES)
@click.option("--outliers", help="Images of no class, for objectives that learn from some: oe, or ssod:outliers=1.")
@click.option(
    "--recipe",
    default="ssod",
    help="Named settings for all that follows up to --precision: ssod, cifar, cosine, vit, flyp.",
)
@click.option("--epochs", type=int, help="Passes over the images.")
@click.option("--batch-size", type=int, help="Images per step, over all processes.")
@click.option("--optimizer", help="adamw:lr=1e-4,weight_decay=0.01 or sgd:lr=0.1,momentum=0.9,….")
@click.option("--schedule", help="constant, step:every=30,factor=0.5, milestones:at=50/75 or cosine; warmup=EPOCHS.")
@click.option("--augment", help="none, shift:by=0.125,flip=true or crop:least=0.25,flip=true.")
@click.option("--accumulate", type=int, help="Parts that a batch is computed in, for less memory.")
@click.option("--clip", type=float, help="Largest norm of the gradient.")
@click.option("--ema", type=float, help="Decay per step of averaged weights, e.g. 0.999.")
@click.option("--precision", type=click.Choice(["32", "bf16"]), help="bf16: mixed precision.")
@click.option(
    "--init",
    default="scratch",
    help="scratch, pretrained, a file of weights, or a trained folder. The last layer fits itself.",
)
@click.option(
    "--size", type=click.IntRange(1), help="Side of the images that the network sees.  [default: the model's]"
)
@transform_option
@click.option("--seed", type=int, default=0, help="Of all that is drawn.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint; the other options stay as they were.")
@click.option("--watch", multiple=True, metavar="NAME=SET", help="OOD set to log after each epoch. It chooses nothing.")
@click.option("--keep", is_flag=True, help="Store the weights of every epoch, too.")
@device_option
@click.option(
    "--devices", type=click.IntRange(1), default=1, help="Processes, one per device. Several hosts: torchrun."
)
@workers_option
@click.option("--hold/--stream", default=None, help="Keep decoded images in memory, or not.  [default: where they fit]")
@max_bad_option
@click.pass_obj
def train(obj: dict[str, Any], /, train_: str, watch: tuple[str, ...], recipe: str, **options: Any) -> None:
    """Train a classifier that carries its own OOD head, from labelled ID images alone.

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
@click.option("--model", required=True, multiple=True, help="As for bench. Repeatable: models stand side by side.")
@click.option("--weights", type=click.Path(path_type=Path), help="As for bench, with one model.")
@click.option("--untrained", is_flag=True, help="As for bench.")
@click.option("--transform", help="As for bench.")
@click.option("--head", help="As for bench.")
@out_option("Picture: .png or .svg; arrays go beside it.", required=True)
@click.option(
    "--gamma",
    default=0.95,
    show_default=True,
    help="Confidence at which a patch shows the class; below 1 - gamma: none.",
)
@click.option(
    "--label", help="Class whose confidence is shown.  [default: the true one, where known; else the predicted]"
)
@device_option
def explain(images: tuple[str, ...], model: tuple[str, ...], out: Path, **options: Any) -> None:
    """Draw where a classifier sees its class, which patches are sure of it or of background, and what an OOD head says.

    IMAGES are files, or sets as for bench: SET[:12] for its first 12.
    """
    from nescio.data.source import open_source
    from nescio.explanation.maps import explain as run
    from nescio.models import load_classifier

    check_file(out, (".png", ".svg"))
    keys = ("weights", "untrained", "transform", "head", "device")
    loading = {k: options.pop(k) for k in keys}
    if loading["weights"] and len(model) > 1:
        raise InputError("--weights goes with one --model; give trained folders to compare models")
    repeated = [name for name in model if model.count(name) > 1]
    if repeated:
        raise InputError(f"--model {repeated[0]} is given twice")
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
