"""The command for a first look at a network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from nescio.cli.base import console
from nescio.cli.options import (
    batch_size_option,
    model_options,
    open_classifier,
    out_option,
    session_of,
    use_cache,
    workers_option,
)
from nescio.core.files import make_folder
from nescio.core.outputs import check_file


@click.command("try")
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@model_options
@click.option(
    "--detector",
    multiple=True,
    metavar="SPEC",
    help="One that needs no training images. Repeatable; the first gives the verdicts.  [default: msp, gen and energy]",
)
@out_option("Page to write.", default="try.html", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of banks.  [default: the user's cache]")
@batch_size_option
@workers_option
@click.pass_obj
def try_(obj: dict[str, Any], /, model: str, images: tuple[str, ...], out: Path, **options: Any) -> None:
    """Look at what MODEL says of IMAGES: verdicts, nearest classes, and the detectors that it can serve.

    \b
    nescio try torchvision:resnet50 holiday/*.jpg
    nescio try my_model.py:make --weights my.safetensors --transform crop=224 photo.jpg

    No training images and no OOD images are needed, so the verdicts come with no promise: they compare a picture with
    noise and shuffled pictures. MODEL is as bench takes it, IMAGES as score does.
    """  # noqa: D301 - click reads the backslashes
    check_file(out, (".html", ".htm"))
    use_cache(options["cache"])
    from nescio.evaluation.trial import DETECTORS, trial
    from nescio.report.trial import write_trial

    classifier = open_classifier(model, options, ())
    usual = {"engine": "auto", "precision": "float32", "bank_dtype": "float32", "max_bad": 1.0}
    found = trial(session_of(classifier, options | obj | usual), images, detectors=options["detector"] or DETECTORS)
    opened = [word for name, value in classifier.opened.items() for word in (f"--{name}", value)]
    opened += ["--transform", options["transform"]] if options["transform"] else []
    command = f"nescio fit {shlex.join(opened)} --train TRAIN --calibrate HELD_OUT -o my.nescio"
    make_folder(out.parent)
    write_trial(found, out, command)
    screen = console()
    screen.print(found.table())
    screen.print(found.basis)
    for need, specs in found.serving.items():
        screen.print(f"detectors that need {need}: {', '.join(specs) or 'none'}")
    screen.print(f"wrote {out}; for verdicts with a promise:\n  {command}", soft_wrap=True)
