"""The command line. Each command is a few lines that call one library function; heavy imports wait inside them."""

from __future__ import annotations

import importlib
import itertools
import keyword
import os

import click

import nescio
from nescio.cli.base import FIRST, Group, console
from nescio.core.text import Line

COMMANDS = {
    **dict.fromkeys(("bench", "quickstart"), "bench"),
    **dict.fromkeys(("compare", "report"), "results"),
    **dict.fromkeys(("export", "fit", "show"), "deploy"),
    **dict.fromkeys(("explain", "train"), "train"),
    **dict.fromkeys(("recommend", "tune"), "tune"),
    "data": "data",
    "push": "hub",
    **dict.fromkeys(("score", "serve"), "score"),
    "try": "trial",
}
"""The module that each command is in."""


class Main(Group):
    """All commands; a command's module is imported when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of this name."""
        if name in COMMANDS:
            attribute = f"{name}_" if keyword.iskeyword(name) else name
            found: click.Command = getattr(importlib.import_module(f"nescio.cli.{COMMANDS[name]}"), attribute)
            return found
        return super().get_command(ctx, name)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What it is for, then where to begin."""
        super().format_help_text(ctx, formatter)
        with formatter.section("Begin with your own model and images"):
            for what, command in FIRST:
                formatter.write(f"{'':{formatter.current_indent}}{what}:\n")
                formatter.write(f"{'':{formatter.current_indent}}    {command}\n")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``--plugin`` may stand anywhere: a name that it adds has to be known before the command is read."""
        end = args.index("--") if "--" in args else len(args)
        plugins: list[str] = []
        others: list[str] = []
        words = iter(args[:end])
        for word in words:
            if word == "--plugin":
                plugins += [word, *itertools.islice(words, 1)]
            else:
                (plugins if word.startswith("--plugin=") else others).append(word)
        return super().parse_args(ctx, [*plugins, *others, *args[end:]])


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(nescio.__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="Print only the result.")
@click.option(
    "--plugin",
    multiple=True,
    metavar="MODULE|FILE.py",
    help="Your own code with stages, objectives, sources or engines; the command then knows their names. Repeatable.",
)
@click.pass_context
def main(ctx: click.Context, *, debug: bool, quiet: bool, plugin: tuple[str, ...]) -> None:
    """Detect images that a classifier was not trained for (out-of-distribution detection)."""
    import logging

    # threads that wait must not spin: beside decoding workers or another program that costs many times the work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ctx.obj = {"quiet": quiet}
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(Line("nescio: %(message)s"))
    logger = logging.getLogger("nescio")
    logger.setLevel(level)
    logger.handlers = [handler]
    logger.propagate = False
    if plugin:
        from nescio.core.plugins import load_plugin

        for name in plugin:
            load_plugin(name)


@main.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the stages, presets and objectives, or describe one.

    The costs were measured on 2 cores with features of length 342: seconds to fit on 50,000 of them and microseconds
    (µs) to score an image, both without the network. passes: the cost of the network in plain passes per image; empty
    where the one plain pass is enough. ONNX: whether nescio export supports it.
    """
    from nescio.methods import catalogue, printed

    if name is not None:
        click.echo(printed.describe(name))
        return
    terminal = console()
    for table in catalogue.tables(terminal.width):
        terminal.print(table)
    click.echo(catalogue.LEFT_OUT if terminal.width >= catalogue.WIDE else catalogue.NARROW)
