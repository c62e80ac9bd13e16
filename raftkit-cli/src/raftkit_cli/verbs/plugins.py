"""``raftkit plugins``: what is installed, what it provides, and what is broken about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.options import Invocation, VerbGroup, pass_invocation
from raftkit_cli.plugin_commands import loaded_plugins

if TYPE_CHECKING:
    from raftkit_core.plugins import PluginInfo

_KINDS = ("storage", "snapshots", "network", "clients", "state_machine")


@click.group(cls=VerbGroup, name="plugins", no_args_is_help=True)
def plugins() -> None:
    """What is installed and what it provides."""


@plugins.command("list")
@pass_invocation
def list_plugins(invocation: Invocation) -> None:
    """Every plugin: what it provides, where it comes from, whether it works."""
    loaded = loaded_plugins(invocation)
    loaded.load_all()
    found = loaded.plugins()
    data = {"plugins": [_fields(info) for info in found]}

    def human() -> None:
        rows = [row for info in found for row in _rows(info)]
        invocation.out.table(("NAME", "KIND", "PROVIDES", "FROM", "STATE"), rows)
        for info in found:
            if info.reason:
                invocation.out.line(f"{info.name} is {info.state}: {info.reason}")

    invocation.out.result("plugins.list", data, human)


def _fields(info: PluginInfo) -> dict[str, Any]:
    provides = {kind: list(getattr(info, kind)) for kind in _KINDS}
    return {
        "name": info.name,
        "kinds": [kind for kind in _KINDS if provides[kind]],
        "distribution": info.distribution,
        "version": info.version,
        "module": info.module,
        "state": info.state,
        "reason": info.reason,
        "provides": provides,
        "hooks": list(info.hooks),
    }


def _rows(info: PluginInfo) -> list[tuple[str, ...]]:
    """One row per kind; what belongs to the plugin as a whole stands in its first row only."""
    provided = [(kind.replace("_", " "), " ".join(getattr(info, kind))) for kind in _KINDS if getattr(info, kind)]
    if "raftkit_register_commands" in info.hooks:
        provided.append(("commands", ""))
    origin = f"{info.distribution} {info.version or ''}".strip()
    first, *others = provided or [("-", "-")]
    return [(info.name, *first, origin, info.state), *(("", *other, "", "") for other in others)]
