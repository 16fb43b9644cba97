"""Commands that make a detector ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nescio.cli.base import (
    console,
    extraction_options,
    model_options,
    named,
    open_classifier,
    out_option,
    session_of,
    taking,
    use_cache,
)
from nescio.core.errors import InputError
from nescio.core.files import make_folder
from nescio.core.outputs import check_file, check_out, is_table

if TYPE_CHECKING:
    from rich.table import Table

    from nescio.deploy import Deployed, Lowered

network_options = taking(
    click.option("--model", help="As for bench, where no library knows the network of FILE."),
    click.option("--weights", type=click.Path(path_type=Path), help="The network's, where FILE does not hold them."),
)
MOST_PRINTED = 100
"""Verdicts that go onto a screen; more belong into files."""


@click.command()
@click.option("--model", required=True, help="As for bench.")
@model_options
@click.option("--train", help="The classifier's training images, for detectors that are fitted on them.")
@click.option("--calibrate", required=True, help="ID images that were held out; they need no labels.")
@click.option("--detector", default="fmls", show_default=True, metavar="SPEC", help="As for bench, but one.")
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
@out_option("File to write.", required=True)
@extraction_options
@click.pass_obj
def fit(obj: dict[str, Any], /, out: Path, *, no_weights: bool, **options: Any) -> None:
    """Fit a detector and calibrate its threshold on held-out ID images, into one file to deploy.

    \b
    nescio fit --model … --train images/train --calibrate images/held-out --detector fmls --accept 0.95 -o my.nescio
    """  # noqa: D301 - click reads the backslashes
    check_file(out)
    use_cache(options["cache"])
    from nescio.deploy import describe
    from nescio.deploy import fit as run

    classifier = open_classifier(options["model"], options, (options["calibrate"], options["train"]))
    deployed = run(
        session_of(classifier, options | obj),
        options["detector"],
        **{k: options[k] for k in ("train", "calibrate", "accept", "confidence", "per_class")},
        proxy=options["proxy"] and f"{options['proxy']}:prior={options['prior']}",
    )
    make_folder(out.parent)
    deployed.save(out, weights=not no_weights)
    _show(describe(out))
    console().print(f"wrote {out} ({out.stat().st_size / 1e6:,.1f} MB)")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@out_option("File to write.", required=True)
@click.option(
    "--preprocess",
    type=click.Choice(["nchw", "nhwc"]),
    help="Take uint8 pixels of resized images in this order and normalise them in the graph."
    "  [default: normalised float32 images]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the network; fp16 and int8 need --calibrate.",
)
@click.option(
    "--calibrate",
    help="With fp16 or int8: ID images that were held out. The threshold is set anew on them; int8 takes up to a fifth "
    "of them for its ranges instead.",
)
@click.option(
    "--ood",
    multiple=True,
    metavar="NAME=SET",
    help="With fp16 or int8: OOD images, to measure the AUROC lost on.  [default: stand-ins made of --calibrate]",
)
@network_options
@click.option("--workers", type=click.IntRange(0), help="Decoding processes.  [default: one per core]")
@click.pass_obj
def export(obj: dict[str, Any], /, file: Path, out: Path, **options: Any) -> None:
    """Write a FILE that fit wrote as one ONNX graph: images in; logits, score, p_value and accepted out.

    \b
    nescio export my.nescio -o my.onnx
    nescio export my.nescio -o small.onnx --precision int8 --calibrate images/held-out --ood other=images/other

    A network in fp16 or int8 gives other scores: its threshold is calibrated anew, and what it loses is printed.
    """  # noqa: D301 - click reads the backslashes
    check_file(out)
    from nescio.deploy import Deployed
    from nescio.deploy import export as run

    deployed = Deployed.load(file, model=options.pop("model"), weights=options.pop("weights"), device="cpu")
    options["ood"] = named(options["ood"])
    make_folder(out.parent)
    said = run(deployed, out, **options, progress=not obj["quiet"])
    if said is not None:
        _show_lowered(said)
    console().print(f"wrote {out} ({out.stat().st_size / 1e6:,.1f} MB)")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def show(file: Path) -> None:
    """Say what is in a FILE that fit wrote: network, detector, threshold and what it promises."""
    from nescio.deploy import describe

    _show(describe(file))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("images", nargs=-1, required=True)
@out_option("Folder for the scores, or FILE.csv, .json or .parquet for one file.  [default: print them]")
@network_options
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--engine", default="local", show_default=True, help="local, or ray: on a Ray cluster (nescio[ray]).")
@click.option("--part-size", type=click.IntRange(1), help="Images per parquet file.  [default: 10,000]")
@click.option("--batch-size", type=click.IntRange(1), help="Images per step.  [default: 32; on a GPU 256]")
@click.option("--workers", type=click.IntRange(0), help="Decoding processes.  [default: one per core; with ray none]")
@click.pass_context
def score(ctx: click.Context, /, file: Path, images: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Say of IMAGES whether the detector in FILE accepts them.

    \b
    nescio score my.nescio photo.jpg                   prints the verdict
    nescio score my.nescio IMAGES… -o scores/          writes parquet files, a row for each image
    nescio score my.nescio IMAGES… -o scores.csv       writes one file (or .json, .parquet), for up to 100,000 images

    IMAGES are files, folders, globs, zip, tar or parquet files, here or behind a URL (s3://, gs://, https://). The same
    command goes on with a job that was killed, where it writes to a folder. Ends with 1 if an image that was named as a
    file cannot be read; those in folders and archives are listed with the reason.
    """  # noqa: D301 - click reads the backslashes
    if out is not None:
        check_out(out)
    from nescio.deploy import Deployed, score_images

    deployed = Deployed.load(file, **{k: options.pop(k) for k in ("model", "weights", "device")})
    if out is None:
        if _print_verdicts(deployed, images, options["batch_size"], options["workers"]):
            ctx.exit(1)
        return
    done = score_images(deployed, images, out, **options, progress=not ctx.obj["quiet"])
    tally = done.tally
    one = is_table(out)
    listed = f" (listed in {out if one else out / '_errors.csv'})" if tally.unreadable else ""
    rate = f"; {done.images / done.seconds:,.0f} images/s" if done.images else ""
    console().print(
        f"{tally.images:,} images: {tally.accepted:,} accepted, {tally.rejected:,} rejected, "
        f"{tally.unreadable:,} unreadable{listed}{rate}\n"
        + (f"wrote {out}" if one else f"wrote {tally.parts:,} parts to {out}/")
    )
    if tally.named:
        ctx.exit(1)


def _show_lowered(said: Lowered) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("stand-in for OOD" if said.stand_ins else "OOD images")
    for title in ("images", "AUROC fp32", f"AUROC {said.precision}", "points lost"):
        table.add_column(title, justify="right")
    for loss in said.losses:
        table.add_row(
            loss.name,
            f"{loss.images:,}",
            f"{loss.before:.2%}",
            f"{loss.after:.2%}",
            f"{round(100 * (loss.before - loss.after), 2) + 0.0:.2f}",  # no negative zero
        )
    before, after = (size / 1e6 for size in said.sizes)
    lines = [
        f"{said.same_label:.2%} of {said.calibration.n:,} held-out images have the same label as in fp32",
        f"{after:,.1f} MB instead of {before:,.1f} MB",
        f"promise, of this graph: {said.calibration.promise()}",
    ]
    if said.ranges:
        lines.insert(0, f"ranges from {said.ranges:,} images of --calibrate, which calibrate nothing")
    if said.stand_ins:
        lines.insert(0, "no OOD images were given (--ood NAME=SET): these are made of the calibration images")
    screen = console()
    screen.print(table)
    for line in lines:
        screen.print(line)


def _print_verdicts(deployed: Deployed, images: tuple[str, ...], batch_size: int | None, workers: int | None) -> int:
    """A table; returned is how many images that were named one by one cannot be read."""
    from rich.table import Table
    from rich.text import Text

    from nescio.data.loader import spans
    from nescio.data.source import open_sources
    from nescio.deploy.rows import verdict_rows
    from nescio.deploy.scoring import named_files

    source = open_sources(images)
    if len(source) > MOST_PRINTED:
        raise InputError(f"{len(source):,} images are too many to print; name a folder for their scores (-o scores/)")
    batches = spans(0, len(source), batch_size or deployed.session.batch)
    found = verdict_rows(deployed, source, batches, 0 if workers is None else workers)
    rows = [row for batch in found for row in batch.to_pylist()]
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("verdict")
    numbers = {"p_value": "p-value"} | ({"p_id": "P(ID | image)"} if deployed.gives_p_id else {})
    for title in numbers.values():
        table.add_column(title, justify="right")
    for row in rows:
        if row["error"] is not None:
            table.add_row(row["path"], "", "", Text(f"unreadable: {row['error']}", "yellow"))
            continue
        said = Text("ACCEPTED", "green") if row["accepted"] else Text("I do not know", "red")
        values = [f"{row[name]:.3f}" for name in numbers]
        table.add_row(row["path"], row["label"], f"{row['probability']:.1%}", said, *values)
    console().print(table)
    return sum(row["error"] is not None and row["path"] in named_files(images) for row in rows)


def _add_accuracy(table: Table, found: Any) -> None:
    """Rows on what the classifier knows, which the promise does not say."""
    from rich.text import Text

    from nescio.evaluation.accuracy import Accuracy

    try:
        accuracy = Accuracy(**found)
        table.add_row("accuracy", Text(f"right for {accuracy}"))
    except (TypeError, ValueError):  # no image was labelled, or an earlier version wrote it
        table.add_row("accuracy", "not known: no labelled images")
        return
    if accuracy.warning:
        said = f"{accuracy.warning}; the promise is about how many are rejected, not about what the network knows"
        table.add_row("WARNING", Text(said, "bold red"))


def _show(about: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

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
    if about.get("untrained") is True:
        table.add_row("WARNING", Text("the weights are random: the network knows nothing", "bold red"))
    _add_accuracy(table, about.get("accuracy"))
    table.add_row("promise", calibration["promise"])
    if calibrator:
        told = f"logistic in the score, against the proxy '{calibrator['proxy']}', prior {calibrator['prior']:g}"
        table.add_row("P(ID | image)", told)
    elif "ood" in model["heads"]:
        table.add_row("P(ID | image)", "from the network's own OOD head")
    else:
        table.add_row("P(ID | image)", "none (--proxy fits one)")
    console().print(table)
