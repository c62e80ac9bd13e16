"""Commands that plugins bring (hook ``raftkit_register_commands``), and the one way the command line loads plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raftkit_cli import hookspecs
from raftkit_cli.options import Invocation

if TYPE_CHECKING:
    from raftkit_core.plugins import LoadedPlugins
    from raftkit_core.plugins.registry import Kind


def loaded_plugins(invocation: Invocation) -> LoadedPlugins:
    """The installed plugins, and those this invocation was given; ``[plugins]`` of the raftkit.toml in force chooses.

    Raises: ConfigError for a file that cannot be read.
    """
    from raftkit_core import load_plugins

    allow, disable = chosen_plugins(invocation)
    return load_plugins(invocation.plugins, hookspecs=[hookspecs], allow=allow, disable=disable)


def chosen_plugins(invocation: Invocation) -> tuple[list[str] | None, list[str]]:
    """The lists to allow and to disable, of ``-c`` or ``./raftkit.toml``; the environment's are added by the loader."""
    from raftkit_cli.endpoints import DEFAULT_CONFIG_FILE

    path = invocation.config_path or DEFAULT_CONFIG_FILE
    if invocation.config_path is None and not path.is_file():
        return None, []
    from raftkit_core.config_file import load_node_file

    file = load_node_file(path)
    return file.plugins_allow, file.plugins_disable


def register_plugin_commands(root: click.Group, invocation: Invocation) -> None:
    """Let every plugin add its commands to ``root``. One that fails is left out; ``raftkit plugins list`` says why."""
    loaded_plugins(invocation).call_each("raftkit_register_commands", cli=root)


def check_schemes(invocation: Invocation, *, storage: str, network: str) -> bool:
    """That nodes with these adapters can be started and talked to, before any process is.

    Gives whether the transport serves clients too. One that does not is told by ``?client=http://…`` where the client
    API is wanted, and lets raftkit-http serve it.

    Raises:
        PluginError: nobody provides one of the schemes; it says what to install.
    """
    from raftkit_core.errors import ConfigError
    from raftkit_core.plugins import AdapterUrl

    plugins = loaded_plugins(invocation)
    transport = AdapterUrl.parse(network).scheme
    wanted: dict[Kind, str] = {"storage": AdapterUrl.parse(storage.replace("{id}", "n1")).scheme, "network": transport}
    _find_all(plugins, wanted)
    if transport == "memory":
        raise ConfigError(
            "the memory network does not reach other processes", hint="leave --network out, or take --network http:"
        )
    if plugins.try_find("clients", transport) is not None:
        return True
    plugins.find("clients", "http")
    return False


def _find_all(plugins: LoadedPlugins, wanted: dict[Kind, str]) -> None:
    """Raises: PluginError; UnknownScheme that names all that is missing, so that one command installs it."""
    from raftkit_core.errors import UnknownScheme

    missing = []
    for kind, scheme in wanted.items():
        try:
            plugins.find(kind, scheme)
        except UnknownScheme as error:
            missing.append(error)
    if not missing:
        return
    install = "pip install "
    if len(missing) == 1 or not all((error.hint or "").startswith(install) for error in missing):
        raise missing[0]
    names = " ".join((error.hint or "").removeprefix(install) for error in missing)
    raise UnknownScheme("; ".join(error.message for error in missing), hint=install + names)
