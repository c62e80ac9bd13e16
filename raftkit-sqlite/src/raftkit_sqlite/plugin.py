"""The entry point: names the scheme ``sqlite``, and loads the driver only when such a store is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkit_core.plugins import hookimpl

if TYPE_CHECKING:
    from raftkit_core.plugins import AdapterUrl, StorageRegistry
    from raftkit_core.storage.interface import RaftLogStorage
    from raftkit_core.types.adapter import AdapterContext


@hookimpl
def raftkit_register_storage(registry: StorageRegistry) -> None:
    registry.add("sqlite", _log_storage)


def _log_storage(url: AdapterUrl, context: AdapterContext) -> RaftLogStorage:
    """``sqlite:n1.db`` is under ``data_dir`` (without one: the working directory), ``sqlite:///n1.db`` is absolute."""
    from raftkit_sqlite.log_storage import SqliteLogStorage
    from raftkit_sqlite.options import SqliteOptions

    return SqliteLogStorage(url.file_path(), url.options_as(SqliteOptions))
