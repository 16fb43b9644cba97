"""How commands end in errors, and where they print."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from nescio.core.errors import InputError, nearest
from nescio.core.files import OF_THE_DISK
from nescio.core.text import printable

if TYPE_CHECKING:
    from nescio.core.progress import Screen

EXIT_BAD_INPUT = 2
FIRST = (
    ("look at some pictures", "nescio try MODEL IMAGES"),
    (
        "compare detectors",
        "nescio bench --model MODEL --train TRAIN --id TEST --ood NAME=OOD --out results --report",
    ),
    ("make a detector to deploy", "nescio fit --model MODEL --train TRAIN --calibrate HELD_OUT -o my.nescio"),
)
"""What to run first with a model and images of one's own, and what for."""


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
            click.echo(f"nescio: {printable(what)}: {e.strerror} (--debug shows the traceback)", err=True)
            ctx.exit(EXIT_BAD_INPUT)
        except RuntimeError as e:
            if ctx.params.get("debug") or type(e).__name__ != "OutOfMemoryError":  # PyTorch's, not imported here
                raise
            click.echo(
                "nescio: CUDA out of memory: the network and a batch of images do not fit on the GPU; give a smaller "
                "--batch-size, end other programs that use the GPU, or take --device cpu (--debug shows where)",
                err=True,
            )
            ctx.exit(EXIT_BAD_INPUT)
        except KeyboardInterrupt as e:
            resumes = getattr(e, "hint", "run the same command again: it continues where it stopped")
            click.echo(f"nescio: interrupted; {resumes}", err=True)
            ctx.exit(128 + getattr(e, "signal", signal.SIGINT))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or say which one may be meant."""
        if args and not args[0].startswith("-") and args[0] not in (known := self.list_commands(ctx)):
            raise click.UsageError(f"unknown command '{args[0]}'{nearest(args[0], known)}", ctx)
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
            raise InputError(f"{twice} is given more than once; give it once to {ctx.info_name}")


def console() -> Screen:
    """Where results are printed."""
    from nescio.core.progress import Screen

    # a file or pipe gets the whole table; a terminal its own width
    return Screen() if sys.stdout.isatty() else Screen(width=200)
