"""Commands that make a detector ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nescio.cli.base import MODEL, check_writable, console, extraction_options, model_options, use_cache
from nescio.errors import InputError


@click.command()
@click.option("--model", required=True, help="As for bench.")
@model_options
@click.option("--train", help="The classifier's training images, for detectors that are fitted on them.")
@click.option("--calibrate", required=True, help="ID images that were held out; they need no labels.")
@click.option("--detector", default="fmls", show_default=True, metavar="SPEC", help="As for bench.")
@click.option("--accept", default=0.95, show_default=True, help="Share of new ID images to accept.")
@click.option(
    "--confidence",
    type=float,
    help="Accept that share for this share of the calibration sets that could have been drawn, e.g. 0.9."
    "  [default: on average over them]",
)
@click.option("--per-class", is_flag=True, help="A threshold for each predicted class with enough images.")
@click.option("--proxy", help="Fit P(ID | image) against noise, pixels, tiles, blur or corner.")
@click.option("--prior", default=0.5, show_default=True, help="P(ID) that is assumed with it.")
@click.option("--no-weights", is_flag=True, help="Keep the network's weights out of the file: their hash alone.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@extraction_options
@click.pass_obj
def fit(obj: dict[str, Any], /, out: Path, *, no_weights: bool, **options: Any) -> None:
    """Fit a detector and calibrate its threshold on held-out ID images, into one file to deploy.

    \b
    nescio fit --model … --train images/train --calibrate images/held-out --detector fmls --accept 0.95 -o my.nescio
    """  # noqa: D301 - click reads the backslashes
    check_writable(out.parent)
    use_cache(options["cache"])
    from nescio.deploy import describe
    from nescio.deploy import fit as run
    from nescio.models import load_classifier

    deployed = run(
        load_classifier(options["model"], **{k: options[k] for k in MODEL}),
        options["detector"],
        **{k: options[k] for k in ("train", "calibrate", "accept", "confidence", "per_class", "proxy", "prior")},
        batch_size=options["batch_size"],
        workers=options["workers"],
        dtype=options["bank_dtype"],
        max_bad=options["max_bad"],
        progress=not obj["quiet"],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        deployed.save(out, weights=not no_weights)
    except OSError as e:
        raise InputError(f"{out} cannot be written: {e}") from None
    _show(describe(out))
    console().print(f"wrote {out} ({out.stat().st_size / 1e6:,.1f} MB)", highlight=False, markup=False)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option(
    "--preprocess",
    type=click.Choice(["nchw", "nhwc"]),
    help="Take uint8 pixels of resized images in this order and normalise them in the graph."
    "  [default: normalised float32 images]",
)
@click.option("--model", help="What makes the network, where no library knows it by name.")
@click.option("--weights", type=click.Path(path_type=Path), help="The network's, where FILE does not hold them.")
def export(file: Path, out: Path, **options: Any) -> None:
    """Write a FILE that fit wrote as one ONNX graph: images in; logits, score, p_value and accepted out.

    \b
    nescio export my.nescio -o my.onnx
    """  # noqa: D301 - click reads the backslashes
    check_writable(out.parent)
    from nescio.deploy import export as run
    from nescio.deploy import load

    deployed = load(file, model=options["model"], weights=options["weights"], device="cpu")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        run(deployed, out, preprocess=options["preprocess"])
    except OSError as e:
        raise InputError(f"{out} cannot be written: {e}") from None
    console().print(f"wrote {out} ({out.stat().st_size / 1e6:,.1f} MB)", highlight=False, markup=False)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def show(file: Path) -> None:
    """Say what is in a FILE that fit wrote: network, detector, threshold and what it promises."""
    from nescio.deploy import describe

    _show(describe(file))


def _show(about: dict[str, Any]) -> None:
    from rich.table import Table

    model, calibration, calibrator = about["model"], about["calibration"], about["calibrator"]
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    held = "" if model["embedded"] else " (not in the file)"
    table.add_row("network", f"{model['name']}, {model['n_classes']} classes, weights {model['weights']}{held}")
    table.add_row("transform", model["transform"])
    table.add_row("detector", about["detector"]["spec"])
    groups = calibration["groups"]
    if groups[0]["classes"] is None:
        table.add_row("accepts", f"scores of {groups[0]['threshold']:.6g} and above")
    else:
        table.add_row("accepts", f"by predicted class: {len(groups)} thresholds")
        for group in groups:
            names = [model["classes"][c] if model["classes"] else str(c) for c in group["classes"]]
            together = f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
            shared = f" (together: {len(names)} classes with few images)" if len(names) > 1 else ""
            table.add_row("", f"{together}{shared}: {group['threshold']:.6g} and above, from {group['n']:,} images")
    table.add_row("promise", calibration["promise"])
    if calibrator:
        told = f"logistic in the score, against the proxy '{calibrator['proxy']}', prior {calibrator['prior']:g}"
        table.add_row("P(ID | image)", told)
    elif "ood" in model["heads"]:
        table.add_row("P(ID | image)", "from the network's own OOD head")
    else:
        table.add_row("P(ID | image)", "none (--proxy fits one)")
    screen = console()
    for column in table.columns:
        column.highlight = False
    screen.print(table)
