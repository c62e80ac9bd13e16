"""The one hook the command line adds: plugins bring commands of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

hookspec = pluggy.HookspecMarker("raftkit")


@hookspec
def raftkit_register_commands(cli: click.Group) -> None:
    """Add commands with ``cli.add_command(command)``. Called when a verb is typed that is not built in.

    Implement it with ``hookimpl(optionalhook=True)``, so that the plugin also loads where this package is absent.
    """
