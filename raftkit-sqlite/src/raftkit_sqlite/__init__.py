"""raftkit-sqlite: a Raft log that survives power loss, in one SQLite file.

Names are resolved when they are first used, so that finding the plugin loads no database driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkit_sqlite.log_storage import SqliteLogStorage
    from raftkit_sqlite.options import SqliteOptions

__all__ = ["SqliteLogStorage", "SqliteOptions"]


def __getattr__(name: str) -> object:
    if name == "SqliteLogStorage":
        from raftkit_sqlite.log_storage import SqliteLogStorage

        return SqliteLogStorage
    if name == "SqliteOptions":
        from raftkit_sqlite.options import SqliteOptions

        return SqliteOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
