"""The entry point: names what is here, and loads the driver only when something of it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkit_core.plugins import hookimpl

if TYPE_CHECKING:
    from raftkit_core.plugins import AdapterUrl, StateMachineRegistry, StorageRegistry
    from raftkit_core.state_machine.interface import RaftStateMachine
    from raftkit_core.storage.interface import RaftLogStorage
    from raftkit_core.types.adapter import AdapterContext


@hookimpl
def raftkit_register_storage(registry: StorageRegistry) -> None:
    registry.add("sqlite", _log_storage)


@hookimpl
def raftkit_register_state_machine(registry: StateMachineRegistry) -> None:
    registry.add("sqlite-kv", _kv_state_machine)


def _log_storage(url: AdapterUrl, context: AdapterContext) -> RaftLogStorage:
    """``sqlite:n1.db`` is under ``data_dir`` (without one: the working directory), ``sqlite:///n1.db`` is absolute."""
    from raftkit_sqlite.log_storage import SqliteLogStorage
    from raftkit_sqlite.options import SqliteOptions

    return SqliteLogStorage(url.file_path(), url.options_as(SqliteOptions))


def _kv_state_machine(url: AdapterUrl, context: AdapterContext) -> RaftStateMachine:
    """``sqlite-kv`` alone is ``kv.db`` under ``data_dir``; ``sqlite-kv:PATH`` as in :func:`_log_storage`."""
    from raftkit_core.errors import BadAdapterUrl
    from raftkit_sqlite.kv_machine import SqliteKvStateMachine
    from raftkit_sqlite.kv_session import SqliteKvOptions

    options = url.options_as(SqliteKvOptions)
    if url.path or url.host is not None:
        return SqliteKvStateMachine(url.file_path(), options)
    if context.data_dir is None:
        raise BadAdapterUrl(f"{url} names no file, and the node has no data_dir", hint="write sqlite-kv:kv.db")
    return SqliteKvStateMachine("kv.db", options)
