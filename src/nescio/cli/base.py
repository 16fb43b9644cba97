"""What the commands share: how errors end, where results go, and options that several of them take."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nescio.core.errors import InputError, check_at_least, nearest
from nescio.core.files import OF_THE_DISK
from nescio.core.outputs import check_out, is_table
from nescio.core.text import printable

if TYPE_CHECKING:
    from nescio.core.progress import Clock, Screen
    from nescio.evaluation.results import Results
    from nescio.models import Classifier
    from nescio.run.session import Session

EXIT_BAD_INPUT = 2


class Group(click.Group):
    """Turns what the user got wrong into one line and exit code 2, unless ``--debug`` asks for the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and end in a line and an exit code where that fails."""
        try:
            return super().invoke(ctx)
        except InputError as e:
            if ctx.params.get("debug"):
                raise
            reason = printable(str(e), keep="\n")
            click.echo(f"nescio: {reason}", err=True)
            ctx.exit(EXIT_BAD_INPUT)
        except OSError as e:  # a full disk or a forbidden folder, wherever that is met
            if ctx.params.get("debug") or e.errno not in OF_THE_DISK:
                raise
            what = f"{e.filename} cannot be used" if e.filename else "a file cannot be read or written"
            click.echo(f"nescio: {printable(what)}: {e.strerror} (--debug shows where)", err=True)
            ctx.exit(EXIT_BAD_INPUT)
        except KeyboardInterrupt as e:
            resumes = getattr(e, "way_out", "the same command goes on where it stopped")
            click.echo(f"nescio: interrupted; {resumes}", err=True)
            ctx.exit(128 + getattr(e, "signal", signal.SIGINT))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or say which one may be meant."""
        if args and not args[0].startswith("-") and args[0] not in (known := self.list_commands(ctx)):
            raise click.UsageError(f"no command '{args[0]}'{nearest(args[0], known)}", ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            _refuse_repeated(command, click.Context(command, ctx, name), rest)
        return name, command, rest


_ONE_OF_SEVERAL = {"--detector", "--model", "--suite", "--train", "--val", "--id", "--calibrate", "--held-out"}
"""Options of which somebody may expect that each one given counts, as ``--ood`` does."""


def _refuse_repeated(command: click.Command, ctx: click.Context, args: list[str]) -> None:
    """Refuse a detector, model or set that is given twice where one is taken: click takes the last without a word."""
    with suppress(click.UsageError):  # said when the command itself reads them
        _, _, order = command.make_parser(ctx).parse_args(list(args))
        single = [p.opts[0] for p in order if isinstance(p, click.Option) and not p.multiple]
        twice = next((name for name in single if name in _ONE_OF_SEVERAL and single.count(name) > 1), None)
        if twice:
            raise InputError(f"{twice} is given more than once; {ctx.info_name} takes one")


def taking(*options: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that gives a command several options at once, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_NAMES = "nescio.classes"
"""Where a command's context keeps the file that its class names are from."""


def _classes(ctx: click.Context, _option: click.Parameter, text: str | None) -> int | list[str] | None:
    """A number, or the names in a file, a line each."""
    if text is None:
        return None
    if text.lstrip("-").isdecimal():
        return check_at_least("--classes", int(text), 1)
    file = Path(text).expanduser()
    if not file.is_file():
        raise InputError(f"--classes {text} is no number, and no file of class names, one a line")
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{file} cannot be read as text: {e}") from None
    if not all(names) or not names:
        where = f"line {names.index('') + 1} of {file} is empty" if names else f"{file} is empty"
        raise InputError(f"{where}; write a class name on each line, in the order of the labels")
    ctx.meta[_NAMES] = text
    return names


MODEL_HELP = (
    "A trained folder, densenet-bc-100-12, resnet18-cifar, timm:NAME, torchvision:NAME, hf:ID, clip:NAME, or code of "
    "yours: module:factory or FILE.py:factory, with options as timm:NAME:option=value has them."
)
transform_option = click.option(
    "--transform",
    help="Replaces parts of the model's test transform: resize=256,crop=224,mean=0.485,0.456,0.406,std=0.5. "
    "mean=NAME sets mean and std: imagenet, cifar10, cifar100, clip or half.",
)
model_options = taking(
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        help="safetensors file or checkpoint; with clip:NAME also a tag, e.g. openai.  [default: the library's; of a "
        "trained folder its own; of module:factory what the factory gives, if not random]",
    ),
    click.option("--untrained", is_flag=True, help="Random weights are meant. Without it they are refused."),
    click.option(
        "--classes",
        callback=_classes,
        metavar="N|FILE",
        help="Number of classes, or a file of their names, one a line.  [default: that of the weights]",
    ),
    click.option("--head", help="Name of the last linear layer, where it cannot be found."),
    transform_option,
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …"),
)
MODEL = ("weights", "untrained", "classes", "head", "transform", "device")
"""What ``model_options`` gives, as ``load_classifier`` takes it."""


def open_classifier(model: str, options: Mapping[str, Any], sets: Iterable[str | None]) -> Classifier:
    """The classifier that the options say. One made of class names takes them from the first of these sets with any."""
    from nescio.models import load_classifier

    loading = {k: options[k] for k in MODEL}
    if model.startswith("clip:") and loading["classes"] is None:
        from nescio.data.source import open_source

        loading["classes"] = next((names for spec in sets if spec and (names := open_source(spec).classes)), None)
    classifier = load_classifier(model, **loading)
    if file := click.get_current_context().meta.get(_NAMES):
        classifier.opened["classes"] = file
    return classifier


extraction_options = taking(
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
)


def session_of(classifier: Classifier | None, options: Mapping[str, Any], clock: Clock | None = None) -> Session:
    """The classifier, run as the options of ``extraction_options`` say."""
    from nescio.run.session import Session

    same = {name: options[name] for name in ("batch_size", "workers", "max_bad")}
    return Session(
        classifier, **same, dtype=options["bank_dtype"], progress=not options["quiet"], clock=clock or Clock()
    )


def present(results: Results, out: Path | None, *, report: bool, clock: Clock | None = None) -> None:
    """Print the tables, write the files to ``out``, and say where the time went."""
    from nescio.core.progress import Clock
    from nescio.evaluation import tables

    screen, clock, results = console(), clock or Clock(), results.as_kept()
    for table in tables.terminal(results, screen.width):
        screen.print(table)
    if told := tables.accuracy(results):
        screen.print(told)
    for warning in results.manifest.get("warnings", []):  # once more: the log is far above by now
        screen.print(f"WARNING: {warning}", style="bold red")
    if out is not None and is_table(out):
        results.save_table(out)
        screen.print(f"wrote {out}")
    elif out is not None:
        results.save(out)
        tables.save_tables(results, out)
        written = ["results.csv", "results.json", "results.md", "results.tex"]
        if report:
            write_report_to(results, out, clock)
            written.append("report.html")
        elif results.manifest.get("ranges"):
            from nescio.report.ranges import range_plates

            for plate in range_plates(results):
                plate.save(out / "figures")
        if (out / "figures").is_dir():
            written.append("figures")
        screen.print(f"wrote {', '.join(written)} to {out}/")
    logging.getLogger("nescio").info("%s", clock)


def write_report_to(results: Results, folder: Path, clock: Clock) -> None:
    """Write the report page and its figures beside the results."""
    from nescio.report import write_report

    with clock("report"):
        write_report(results, folder / "report.html")


def use_cache(folder: Path | None) -> None:
    """Banks and remembered hashes go to ``folder`` instead of the user's cache."""
    if folder is not None:
        os.environ["NESCIO_CACHE"] = str(folder.expanduser())


def out_option(text: str, **more: Any) -> Callable[..., Any]:
    """``-o``, ``--out``: where results go. The command checks it before its work (``nescio.core.outputs``)."""
    return click.option("-o", "--out", type=click.Path(path_type=Path), help=text, **more)


def check_results(out: Path | None, *, report: bool = False) -> None:
    """Refuse where ``present`` could not write, before the work is done."""
    if is_table(out) and report:
        raise InputError(f"--report is a folder's: its page stands beside its figures, and {out} is one file")
    if out is not None:
        files = [f"results.{kind}" for kind in ("csv", "json", "md", "tex")] + ["skipped.csv", "report.html"]
        check_out(out, [*files, "scores.safetensors", "features.safetensors"], ["figures"])


def console() -> Screen:
    """Where results are printed."""
    from nescio.core.progress import Screen

    # a file or pipe gets the whole table; a terminal its own width
    return Screen() if sys.stdout.isatty() else Screen(width=200)


def detector_specs(given: tuple[str, ...], file: Path | None) -> list[str]:
    """The detectors that are named by option and in a file, a line each."""
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


def named(sets: tuple[str, ...], option: str = "--ood") -> dict[str, str]:
    """``NAME=SET`` of each, by name."""
    found: dict[str, str] = {}
    for text in sets:
        name, equals, spec = text.partition("=")
        if not (equals and name and spec):
            raise InputError(f"{option} {text} has no name; write {option} {Path(text).stem or 'name'}={text}")
        if name in found:
            raise InputError(f"two OOD sets are called '{name}'; give each its own name")
        found[name] = spec
    return found
