"""The command line. Each command is a few lines that call one library function; heavy imports wait inside them."""

from __future__ import annotations

import os

import click

import nescio
from nescio.cli.base import Group, console
from nescio.cli.bench import bench, compare, quickstart, report
from nescio.cli.data import data
from nescio.cli.deploy import export, fit, score, show
from nescio.cli.serve import serve
from nescio.cli.train import explain, train
from nescio.cli.tune import recommend, tune
from nescio.core.progress import Line


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
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
    handler.setFormatter(Line("nescio: %(message)s"))
    logger = logging.getLogger("nescio")
    logger.setLevel(level)
    logger.handlers = [handler]
    logger.propagate = False


@main.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the stages, presets and objectives, or print all about one.

    The costs were measured on 2 cores with features of 342: seconds to fit on 50,000 of them, microseconds (µs) to
    score an image, and the network's time per image in plain passes where it is not one: what a detector with a pass of
    its own costs beside its seconds and µs. ONNX: whether nescio export takes it.
    """
    from nescio.methods import catalogue

    if name is not None:
        click.echo(catalogue.describe(name))
        return
    for table in catalogue.tables():
        console().print(table)
    click.echo(catalogue.LEFT_OUT)


COMMANDS = (bench, compare, data, explain, export, fit, quickstart, recommend, report, score, serve, show, train, tune)
for command in COMMANDS:
    main.add_command(command)
