"""The command line. Each command is a few lines that call one library function; heavy imports wait inside them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import nescio
from nescio.errors import InputError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from nescio.results import Results

EXIT_BAD_INPUT = 2


class _Group(click.Group):
    """Turns what the user got wrong into one line and exit code 2, unless ``--debug`` asks for the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as e:
            if ctx.params.get("debug"):
                raise
            click.echo(f"nescio: {e}", err=True)
            ctx.exit(EXIT_BAD_INPUT)
        except KeyboardInterrupt as e:
            resumes = getattr(e, "way_out", "the same command goes on where it stopped")
            click.echo(f"nescio: interrupted; {resumes}", err=True)
            ctx.exit(128 + getattr(e, "signal", signal.SIGINT))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(f"no command '{args[0]}'{nearest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(nescio.__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="Print the result alone.")
@click.pass_context
def main(ctx: click.Context, *, debug: bool, quiet: bool) -> None:
    """Tell whether an image is something a classifier was trained for (out-of-distribution detection)."""
    import logging

    # threads that wait must not spin: beside decoding workers or another program that costs many times the work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ctx.obj = {"quiet": quiet}
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("nescio: %(message)s"))
    logger = logging.getLogger("nescio")
    logger.setLevel(level)
    logger.handlers = [handler]
    logger.propagate = False


def _extraction_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--cache", type=click.Path(path_type=Path), help="Folder of banks.  [default: the user's cache]"),
        click.option(
            "--bank-dtype",
            default="float32",
            show_default=True,
            help="float32, or float16 for half the disk.",
        ),
        click.option("--batch-size", type=click.IntRange(1), help="Images per step.  [default: 32; on a GPU 256]"),
        click.option("--workers", type=click.IntRange(0), help="Decoding processes.  [default: one per core]"),
        click.option("--max-bad", default=0.01, show_default=True, help="Share of images that may be unreadable."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.option(
    "--model",
    required=True,
    help="A trained folder, densenet-bc-100-12, resnet18-cifar, timm:NAME, torchvision:NAME, hf:ID, or module:factory.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="safetensors file or checkpoint.  [default: the library's]",
)
@click.option("--classes", type=click.IntRange(1), help="Number of classes.  [default: that of the weights]")
@click.option("--head", help="Name of the last linear layer, where it cannot be found.")
@click.option("--transform", help="Replaces parts of the model's test transform: resize=256,crop=224,mean=0.5,std=0.5.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option(
    "--train",
    help="The classifier's training images: a folder, .zip, .tar, .parquet, glob or torchvision:NAME/SPLIT.",
)
@click.option(
    "--calibrate", help="ID images apart from the others, for ensembles.  [default: a fifth of the training images]"
)
@click.option(
    "--id", "id_", required=True, help="ID test images. SET[:1000] takes the first 1,000, here and elsewhere."
)
@click.option("--ood", multiple=True, required=True, metavar="NAME=SET", help="An OOD set. Repeatable.")
@click.option(
    "--detector",
    multiple=True,
    metavar="SPEC",
    help="e.g. energy, fmls, fm:p=0.6+react:clip=1.6+ls+energy, 'mean(fmls,knn)'; or all. Repeatable.",
)
@click.option("--detectors", type=click.Path(path_type=Path), help="File with one detector a line; # starts a comment.")
@click.option(
    "--intervals",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Bootstrap 95 % intervals from N resamples.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for results.csv and results.json."
)
@click.option("--report", is_flag=True, help="Write report.html there too: histograms, ROC curves, examples.")
@_extraction_options
@click.pass_obj
def bench(obj: dict[str, Any], /, **options: Any) -> None:
    """Judge detectors on ID against OOD images, from one pass of the network over each.

    \b
    nescio bench --model densenet-bc-100-12 --weights cifar10.safetensors \\
        --train cifar10/train --id cifar10/test --ood textures=dtd/ \\
        --detector msp --detector energy --detector fmls --out results
    """  # noqa: D301 - click reads the backslashes
    if options["report"] and not options["out"]:
        raise InputError("--report needs a folder to be written to; add --out DIR")
    _check_writable(options["out"])
    _use_cache(options.pop("cache"))
    specs = _detector_specs(options["detector"], options["detectors"])
    oods = _named(options["ood"])

    from nescio.benchmark import DEFAULT_DETECTORS
    from nescio.benchmark import bench as run
    from nescio.models import load_classifier

    keys = ("weights", "classes", "head", "transform", "device")
    classifier = load_classifier(options["model"], **{k: options[k] for k in keys})
    results = run(
        classifier,
        id=options["id_"],
        ood=oods,
        detectors=specs or DEFAULT_DETECTORS,
        train=options["train"],
        calibrate=options["calibrate"],
        resamples=options["intervals"],
        batch_size=options["batch_size"],
        workers=options["workers"],
        dtype=options["bank_dtype"],
        max_bad=options["max_bad"],
        progress=not obj["quiet"],
    )
    _present(results, options["out"], report=options["report"])


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="quickstart", show_default=True)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="How long to train the small network.",
)
@_extraction_options
@click.pass_obj
def quickstart(obj: dict[str, Any], /, out: Path, epochs: int, bank_dtype: str, **options: Any) -> None:
    """Run the main job on embedded images: train a small classifier, compare detectors, write a report."""
    _check_writable(out)
    _use_cache(options.pop("cache"))
    from nescio.quickstart import quickstart as run

    _present(run(out, epochs=epochs, dtype=bank_dtype, progress=not obj["quiet"], **options), out, report=True)


@main.command(context_settings={"show_default": True})
@click.option(
    "--arch", required=True, help="A name as for bench --model, but no trained folder: resnet18, timm:NAME, …"
)
@click.option("--train", "train_", required=True, help="Labelled training images: a folder, .parquet, … as for bench.")
@click.option("--val", required=True, help="Labelled ID validation images; nothing is fitted to them but the choice.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the run; bench --model takes it."
)
@click.option("--objective", default="ssod", help="ce, or ssod:gamma=0.95,alpha=1,balance=lwb,start=0.")
@click.option(
    "--recipe", default="ssod", help="Named settings for all that follows up to --precision: ssod, cifar, cosine."
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
@click.option("--transform", help="Replaces parts of the model's test transform: resize=256,crop=224,mean=0.5,std=0.5.")
@click.option("--seed", type=int, default=0, help="Of all that is drawn.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint; the other options stay as they were.")
@click.option("--watch", multiple=True, metavar="NAME=SET", help="OOD set to log after each epoch. It chooses nothing.")
@click.option("--keep", is_flag=True, help="Store the weights of every epoch, too.")
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, …")
@click.option(
    "--devices", type=click.IntRange(1), default=1, help="Processes, one per device. Several hosts: torchrun."
)
@click.option("--workers", type=click.IntRange(0), help="Decoding processes.  [default: one per core]")
@click.option("--hold/--stream", default=None, help="Keep decoded images in memory, or not.  [default: where they fit]")
@click.option("--max-bad", default=0.01, help="Share of images that may be unreadable.")
@click.pass_obj
def train(obj: dict[str, Any], /, train_: str, watch: tuple[str, ...], recipe: str, **options: Any) -> None:
    """Train a classifier that carries its own OOD head, from labelled ID images alone.

    \b
    nescio train --arch resnet18 --train images/train --val images/val \\
        --objective ssod:gamma=0.95,alpha=1,balance=lwb --size 64 --epochs 20 --out runs/ssod
    nescio bench --model runs/ssod --train images/train --id images/val --ood other=… --detector ssod
    """  # noqa: D301 - click reads the backslashes
    from nescio.training import Hardware, Recipe
    from nescio.training import train as run

    entries = ("epochs", "batch_size", "optimizer", "schedule", "augment", "accumulate", "clip", "ema", "precision")
    chosen = Recipe.named(recipe, **{name: options.pop(name) for name in entries})
    hardware = Hardware(**{name: options.pop(name) for name in ("device", "devices", "workers", "hold", "max_bad")})
    out = options.pop("out")
    trained = run(
        out,
        model=options.pop("arch"),
        train=train_,
        watch=_named(watch, "--watch"),
        recipe=chosen,
        hardware=hardware,
        progress=not obj["quiet"],
        **options,
    )
    if trained.selected and int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0:
        _console().print(_told(trained.selected, out), highlight=False, markup=False)


@main.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--model", required=True, multiple=True, help="As for bench. Repeatable: models stand side by side.")
@click.option("--weights", type=click.Path(path_type=Path), help="As for bench, with one model.")
@click.option("--transform", help="As for bench.")
@click.option("--head", help="As for bench.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Picture: .png or .svg; arrays go beside it."
)
@click.option("--gamma", default=0.95, show_default=True, help="Threshold of SSOD's sampler.")
@click.option(
    "--label", help="Class whose confidence is shown.  [default: the true one, where known; else the predicted]"
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
def explain(images: tuple[str, ...], model: tuple[str, ...], out: Path, **options: Any) -> None:
    """Draw where a classifier sees its class, which patches SSOD samples, and what an OOD head says of each.

    IMAGES are files, or sets as for bench: SET[:12] for its first 12.
    """
    from nescio.data.sources import open_source
    from nescio.explanation import explain as run
    from nescio.models import load_classifier

    keys = ("weights", "transform", "head", "device")
    loading = {k: options.pop(k) for k in keys}
    if loading["weights"] and len(model) > 1:
        raise InputError("--weights goes with one --model; give trained folders to compare models")
    repeated = [name for name in model if model.count(name) > 1]
    if repeated:
        raise InputError(f"--model {repeated[0]} is given twice")
    classifiers = {name: load_classifier(name, **loading) for name in model}
    arrays = run(classifiers, [open_source(spec) for spec in images], out, **options)
    _console().print(f"wrote {out} and {arrays}", highlight=False, markup=False)


def _told(selected: dict[str, dict[str, Any]], out: Path) -> str:
    lines = []
    for name, file in (("kept", "model.safetensors"), ("papers_choice", "papers-choice.safetensors")):
        if name in selected:
            s = selected[name]
            lines.append(
                f"{out / file}: epoch {s['epoch']}, ID validation accuracy {s['val_accuracy']:.2%}, AUROC against "
                f"shuffled images {s['val_shuffled_auroc']:.2%}\n  chosen by the {s['by']}"
            )
    return "\n".join(lines)


@main.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the stages and presets, or print all about one.

    The costs were measured on 2 cores with features of 342: seconds to fit on 50,000 of them, microseconds (µs) to
    score an image, and the network's time per image in plain passes where it is not one.
    """
    from nescio import catalogue

    if name is not None:
        click.echo(catalogue.describe(name))
        return
    console = _console()
    for table in catalogue.tables():
        console.print(table)


def _present(results: Results, out: Path | None, *, report: bool) -> None:
    console = _console()
    for table in results.tables(console.width):
        console.print(table)
    rows = results.rows
    if rows[0].id_accuracy == rows[0].id_accuracy:  # not NaN
        console.print(f"ID accuracy {rows[0].id_accuracy:.2%} on {rows[0].n_id:,} images")
    if out is not None:
        results.save(out)
        written = ["results.csv", "results.json"]
        if report:
            from nescio.report import write_report

            write_report(results, out / "report.html")
            written.append("report.html")
        console.print(f"wrote {', '.join(written)} to {out}/", highlight=False, markup=False)


def _use_cache(folder: Path | None) -> None:
    """Banks and remembered hashes go to ``folder`` instead of the user's cache."""
    if folder is not None:
        os.environ["NESCIO_CACHE"] = str(folder.expanduser())


def _check_writable(folder: Path | None) -> None:
    """Refuse a folder that results could not be written to, before the work is done."""
    if folder is None:
        return
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    taken = [n for n in ("results.csv", "results.json", "skipped.csv", "report.html") if (folder / n).is_dir()]
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK) or taken:
        raise InputError(
            f"results cannot be written to {folder}: {existing} is in the way or not writable; name another"
        )


def _console() -> Console:
    from rich.console import Console

    # a file or pipe gets the whole table; a terminal its own width
    return Console() if sys.stdout.isatty() else Console(width=200)


def _detector_specs(given: tuple[str, ...], file: Path | None) -> list[str]:
    specs = list(given)
    if file is not None:
        if not file.is_file():
            raise InputError(f"no file {file}; it should hold one detector a line")
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"{file} cannot be read as text: {e}") from None
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        found = [line for line in lines if line]
        if not found:
            raise InputError(f"{file} names no detector; write one a line, e.g. energy")
        specs += found
    return specs


def _named(sets: tuple[str, ...], option: str = "--ood") -> dict[str, str]:
    named: dict[str, str] = {}
    for text in sets:
        name, equals, spec = text.partition("=")
        if not (equals and name and spec):
            raise InputError(f"{option} {text} has no name; write {option} {Path(text).stem or 'name'}={text}")
        if name in named:
            raise InputError(f"two OOD sets are called '{name}'; give each its own name")
        named[name] = spec
    return named
