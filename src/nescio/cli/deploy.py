"""Commands that make a detector ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nescio.cli.base import console
from nescio.cli.options import (
    extraction_options,
    file_argument,
    model_options,
    named,
    network_options,
    ood_option,
    open_classifier,
    out_option,
    session_of,
    use_cache,
    workers_option,
)
from nescio.core.errors import InputError
from nescio.core.files import make_folder
from nescio.core.outputs import check_file

if TYPE_CHECKING:
    from rich.table import Table

    from nescio.deploy import Lowered


@click.command()
@click.option("--model", required=True, help="The model, as in nescio bench.")
@model_options
@click.option("--train", help="The classifier's training images. Most detectors need them.")
@click.option("--calibrate", required=True, help="Held-out ID images; no labels needed.")
@click.option("--detector", default="fmls", show_default=True, metavar="SPEC", help="A detector, as in nescio bench.")
@click.option("--accept", default=0.95, show_default=True, help="Share of new ID images to accept.")
@click.option(
    "--confidence",
    type=float,
    help="Reach --accept with this confidence over the draw of the calibration images, e.g. 0.9."
    "  [default: reach it on average]",
)
@click.option("--per-class", is_flag=True, help="A separate threshold for each predicted class with enough images.")
@click.option(
    "--proxy", help="Also fit P(ID | image), with these stand-ins for OOD images: noise, pixels, tiles, blur or corner."
)
@click.option("--prior", default=0.5, show_default=True, help="Prior P(ID) for --proxy.")
@click.option("--no-weights", is_flag=True, help="Store only the hash of the network's weights in the file.")
@out_option("File to write.", required=True)
@extraction_options
@click.pass_obj
def fit(obj: dict[str, Any], /, out: Path, *, no_weights: bool, **options: Any) -> None:
    """Fit a detector and write one file to deploy. Its threshold is calibrated on held-out ID images.

    \b
    nescio fit --model … --train images/train --calibrate images/held-out --detector fmls --accept 0.95 -o my.nescio
    """  # noqa: D301 - click reads the backslashes
    check_file(out)
    use_cache(options["cache"])
    from nescio.deploy import describe
    from nescio.deploy import fit as run

    classifier = open_classifier(options["model"], options, (options["calibrate"], options["train"]))
    if no_weights and classifier.awaits_probe:
        raise InputError("a head that is fitted here is in no file of weights: drop --no-weights")
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
@file_argument
@out_option("FILE.onnx, FILE.xml (OpenVINO) or a folder (Triton).", required=True)
@click.option(
    "--preprocess",
    type=click.Choice(["nchw", "nhwc"]),
    help="The graph takes uint8 pixels of resized images in this layout and normalises them."
    "  [default: normalised float32 images]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision of the network; fp16 and int8 need --calibrate.",
)
@click.option(
    "--calibrate",
    help="For fp16 or int8: held-out ID images. The threshold is calibrated on them again; int8 uses up to a fifth "
    "of them for its ranges instead.",
)
@ood_option("For fp16 or int8: OOD images to measure the loss of AUROC.  [default: stand-ins made from --calibrate]")
@network_options
@workers_option
@click.pass_obj
def export(obj: dict[str, Any], /, file: Path, out: Path, **options: Any) -> None:
    """Export a FILE that fit wrote as one graph. Images go in; logits, score, p_value and accepted come out.

    \b
    nescio export my.nescio -o my.onnx        ONNX; the threshold is an optional input
    nescio export my.nescio -o my.xml         OpenVINO IR: my.xml and my.bin
    nescio export my.nescio -o models/my      a folder: the model "my" of a Triton model repository
    nescio export my.nescio -o small.onnx --precision int8 --calibrate images/held-out --ood other=images/other

    A network in fp16 or int8 gives different scores: its threshold is calibrated again, and the loss is printed.
    """  # noqa: D301 - click reads the backslashes
    from nescio.deploy import Deployed
    from nescio.deploy import export as run
    from nescio.deploy.forms import total_size, writer_of

    writer_of(out)  # refuses before the work

    deployed = Deployed.load(file, model=options.pop("model"), weights=options.pop("weights"), device="cpu")
    options["ood"] = named(options["ood"])
    lowered = run(deployed, out, **options, progress=not obj["quiet"])
    if lowered is not None:
        _show_lowered(lowered)
    console().print(f"wrote {out} ({total_size(out) / 1e6:,.1f} MB)")


@click.command()
@file_argument
@click.option("--card", is_flag=True, help="Print the model card that nescio push uploads.")
def show(file: Path, *, card: bool) -> None:
    """Describe a FILE that fit wrote. Shown are network, detector, threshold and what it promises.

    FILE may also be hf:user/name, a detector on the Hugging Face Hub.
    """
    from nescio.core.artifact import kind_of
    from nescio.core.detector import Detector
    from nescio.deploy import describe

    if card:
        from nescio.deploy.card import card_of

        click.echo(card_of(file, str(file)))
        return
    if kind_of(file) == "detector":
        detector = Detector.load(file)
        said = f"a detector alone, without network or threshold: {detector}, {detector.size / 1e6:,.1f} MB"
        console().print(said, soft_wrap=True, markup=False, highlight=False)
        return
    _show(describe(file))


def _show_lowered(lowered: Lowered) -> None:
    from nescio.evaluation.tables import table_of

    numbers = ["images", "AUROC fp32", f"AUROC {lowered.precision}", "points lost"]
    table = table_of(["stand-in for OOD" if lowered.stand_ins else "OOD images"], numbers)
    for loss in lowered.losses:
        table.add_row(
            loss.name,
            f"{loss.images:,}",
            f"{loss.before:.2%}",
            f"{loss.after:.2%}",
            f"{round(100 * (loss.before - loss.after), 2) + 0.0:.2f}",  # no negative zero
        )
    before, after = (size / 1e6 for size in lowered.sizes)
    lines = [
        f"{lowered.same_label:.2%} of {lowered.calibration.n:,} held-out images have the same label as in fp32",
        f"{after:,.1f} MB instead of {before:,.1f} MB",
        f"promise, of this graph: {lowered.calibration.promise()}",
    ]
    if lowered.ranges:
        lines.insert(0, f"ranges from {lowered.ranges:,} images of --calibrate, which the calibration leaves out")
    if lowered.stand_ins:
        lines.insert(
            0, "no OOD images were given (--ood NAME=SET): these stand-ins are made from the calibration images"
        )
    screen = console()
    screen.print(table)
    for line in lines:
        screen.print(line)


def _add_accuracy(table: Table, found: Any) -> None:
    """Rows on what the classifier knows, which the promise does not say."""
    from rich.text import Text

    from nescio.evaluation.accuracy import Accuracy

    try:
        accuracy = Accuracy(**found)
        table.add_row("accuracy", Text(f"right for {accuracy}"))
    except (TypeError, ValueError):  # no image was labelled, or an earlier version wrote it
        table.add_row("accuracy", "unknown: no labelled images")
        return
    if accuracy.warning:
        warning = f"{accuracy.warning}; the promise is about the share of rejected images, not about accuracy"
        table.add_row("WARNING", Text(warning, "bold red"))


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
    engine = about.get("engine", {"spec": "torch", "precision": "float32"})  # not in the first files
    table.add_row("engine", f"{engine['spec']}, {engine['precision']}")
    table.add_row("detector", about["detector"]["spec"])
    groups = calibration["groups"]
    if groups[0]["classes"] is None:
        table.add_row("accepts", f"scores of {groups[0]['threshold']:.6g} and above")
    else:
        table.add_row("accepts", f"by predicted class: {len(groups)} thresholds")
        for group in groups:
            names = [model["classes"][c] if model["classes"] else str(c) for c in group["classes"]]
            together = f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
            shared = f" (one threshold for {len(names)} classes with few images)" if len(names) > 1 else ""
            table.add_row("", f"{together}{shared}: {group['threshold']:.6g} and above, from {group['n']:,} images")
    if about.get("untrained") is True:
        table.add_row("WARNING", Text("the weights are random: the network is untrained", "bold red"))
    _add_accuracy(table, about.get("accuracy"))
    table.add_row("promise", calibration["promise"])
    if calibrator:
        source = f"logistic in the score, against the proxy '{calibrator['proxy']}', prior {calibrator['prior']:g}"
        table.add_row("P(ID | image)", source)
    elif "ood" in model["heads"]:
        table.add_row("P(ID | image)", "from the network's own OOD head")
    else:
        table.add_row("P(ID | image)", "none (fit one with --proxy)")
    console().print(table)
