"""raftkit-core: a Raft engine, its asyncio runtime, plugin hooks and a test kit.

The names below are the public surface. They are resolved on first use (PEP 562), so that a plugin module which only
needs ``hookimpl`` costs pluggy and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkit_core import errors, recipes, testing
    from raftkit_core.assembly import open_raft
    from raftkit_core.config import Config, ReadPolicy, SnapshotPolicy
    from raftkit_core.plugins.hookspecs import hookimpl
    from raftkit_core.plugins.loaded import load_plugins
    from raftkit_core.raft import Raft
    from raftkit_core.types.log_id import LogId
    from raftkit_core.types.membership import (
        AddNodes,
        AddVoterIds,
        AddVoters,
        ChangeMembers,
        Membership,
        Node,
        RemoveNodes,
        RemoveVoters,
        ReplaceAllNodes,
        ReplaceAllVoters,
        SetNodes,
    )
    from raftkit_core.types.metrics import ServerState
    from raftkit_core.types.vote import Vote

    __version__: str

__all__ = [
    "AddNodes",
    "AddVoterIds",
    "AddVoters",
    "ChangeMembers",
    "Config",
    "LogId",
    "Membership",
    "Node",
    "Raft",
    "ReadPolicy",
    "RemoveNodes",
    "RemoveVoters",
    "ReplaceAllNodes",
    "ReplaceAllVoters",
    "ServerState",
    "SetNodes",
    "SnapshotPolicy",
    "Vote",
    "__version__",
    "errors",
    "hookimpl",
    "load_plugins",
    "open_raft",
    "recipes",
    "testing",
]

_HOMES = {
    "AddNodes": "types.membership",
    "AddVoterIds": "types.membership",
    "AddVoters": "types.membership",
    "ChangeMembers": "types.membership",
    "Config": "config",
    "LogId": "types.log_id",
    "Membership": "types.membership",
    "Node": "types.membership",
    "Raft": "raft",
    "ReadPolicy": "config",
    "RemoveNodes": "types.membership",
    "RemoveVoters": "types.membership",
    "ReplaceAllNodes": "types.membership",
    "ReplaceAllVoters": "types.membership",
    "ServerState": "types.metrics",
    "SetNodes": "types.membership",
    "SnapshotPolicy": "config",
    "Vote": "types.vote",
    "hookimpl": "plugins.hookspecs",
    "load_plugins": "plugins.loaded",
    "open_raft": "assembly",
}

_MODULES = ("errors", "recipes", "testing")


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("raftkit-core")
    elif name in _MODULES:
        return import_module(f"{__name__}.{name}")  # the import system sets the attribute
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
