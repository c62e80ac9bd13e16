"""Plugins: hooks (``hookspecs``), adapter URLs (``url``), what plugins add (``registry``), finding and loading them
(``plugin``, ``manager``), making adapters (``loaded``), and the plugin core brings itself (``builtin``, ``importing``).

Names are resolved on first use (PEP 562): ``hookimpl`` must not cost more than pluggy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkit_core.plugins.doctor import DoctorCheck, DoctorFinding
    from raftkit_core.plugins.hookspecs import hookimpl, hookspec
    from raftkit_core.plugins.loaded import LoadedPlugins, load_plugins
    from raftkit_core.plugins.plugin import PluginInfo
    from raftkit_core.plugins.registry import (
        ClientRegistry,
        NetworkRegistry,
        StateMachineRegistry,
        StorageRegistry,
    )
    from raftkit_core.plugins.url import AdapterUrl, convert_options

__all__ = [
    "AdapterUrl",
    "ClientRegistry",
    "DoctorCheck",
    "DoctorFinding",
    "LoadedPlugins",
    "NetworkRegistry",
    "PluginInfo",
    "StateMachineRegistry",
    "StorageRegistry",
    "convert_options",
    "hookimpl",
    "hookspec",
    "load_plugins",
]

_HOMES = {
    "AdapterUrl": "url",
    "ClientRegistry": "registry",
    "DoctorCheck": "doctor",
    "DoctorFinding": "doctor",
    "LoadedPlugins": "loaded",
    "NetworkRegistry": "registry",
    "PluginInfo": "plugin",
    "StateMachineRegistry": "registry",
    "StorageRegistry": "registry",
    "convert_options": "url",
    "hookimpl": "hookspecs",
    "hookspec": "hookspecs",
    "load_plugins": "loaded",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
