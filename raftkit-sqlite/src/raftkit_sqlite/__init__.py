"""raftkit-sqlite: a Raft log and a key-value machine that survive power loss, each in one SQLite file.

Names are resolved when they are first used, so that finding the plugin loads no database driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkit_sqlite.kv_machine import SqliteKvStateMachine
    from raftkit_sqlite.kv_session import SqliteKvOptions
    from raftkit_sqlite.log_storage import SqliteLogStorage
    from raftkit_sqlite.options import SqliteOptions

__all__ = ["SqliteKvOptions", "SqliteKvStateMachine", "SqliteLogStorage", "SqliteOptions"]

_HOMES = {
    "SqliteKvOptions": "kv_session",
    "SqliteKvStateMachine": "kv_machine",
    "SqliteLogStorage": "log_storage",
    "SqliteOptions": "options",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
