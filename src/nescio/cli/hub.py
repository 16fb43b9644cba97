"""The command that uploads a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nescio.cli.options import file_argument


@click.command()
@file_argument
@click.argument("to", metavar="hf:USER/NAME")
@click.option("--private/--public", default=None, help="Who may see a new repository.  [default: as set at the hub]")
@click.option("--license", help="Licence of the upload, as the hub abbreviates it: apache-2.0, cc-by-4.0, …")
@click.option("--no-card", is_flag=True, help="Keep the repository's README as it is.")
@click.option("--message", help="Message of the commit.")
def push(file: Path, to: str, *, no_card: bool, **options: Any) -> None:
    """Upload a FILE that fit wrote to the Hugging Face Hub. A model card is made from it.

    \b
    hf auth login
    nescio push my.nescio hf:user/name
    nescio show hf:user/name

    hf:user/name@REVISION names a branch. Every command and nescio.load also take this name instead of a FILE.
    nescio show FILE --card prints the card.
    """  # noqa: D301 - click reads the backslashes
    from nescio.deploy import push as run

    click.echo(f"uploaded {run(file, to, card=not no_card, **options)}")
