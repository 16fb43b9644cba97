"""The command line as mkdocs-click reads it: every command loaded, and no default where there is none."""

from __future__ import annotations

import copy
import inspect
import re

import click

from nescio.cli import main

_AS_IT_STANDS = re.compile(r"^\x08\n((?:.+\n?)+)", re.MULTILINE)
"""A paragraph of a help text that click does not wrap: commands to type."""


def _plain(command: click.Command) -> click.Command:
    """A copy whose options without a default say None; click marks them in a way of its own."""
    twin = copy.copy(command)
    twin.params = [copy.copy(parameter) for parameter in command.params]
    for parameter in twin.params:
        if repr(parameter.default).startswith("Sentinel") or parameter.default is False:
            parameter.default = None
    twin.add_help_option = False
    twin.help = _AS_IT_STANDS.sub(r"```\n\1\n```\n", inspect.cleandoc(command.help or ""))
    if isinstance(twin, click.Group):
        context = click.Context(command)
        names = twin.list_commands(context)
        twin.commands = {name: _plain(found) for name in names if (found := twin.get_command(context, name))}
    return twin


nescio = _plain(main)
