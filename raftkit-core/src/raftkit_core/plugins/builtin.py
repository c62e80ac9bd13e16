"""The plugin of raftkit-core: ``memory:``, ``file:`` snapshots, ``kv`` and ``import:``, by the same hooks as any other.

Adapters are imported inside the factories, so that this module costs nothing to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkit_core.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from raftkit_core.network.interface import RaftNetworkFactory
    from raftkit_core.plugins.registry import NetworkRegistry, StateMachineRegistry, StorageRegistry
    from raftkit_core.plugins.url import AdapterUrl
    from raftkit_core.state_machine.interface import RaftStateMachine
    from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
    from raftkit_core.types.adapter import AdapterContext


@hookimpl
def raftkit_register_storage(registry: StorageRegistry) -> None:
    registry.add("memory", _memory_log_storage, snapshots=_memory_snapshot_storage)
    registry.add("import", _imported_log_storage)
    registry.add_snapshots("file", _file_snapshot_storage)
    registry.add_snapshots("import", _imported_snapshot_storage)


@hookimpl
def raftkit_register_network(registry: NetworkRegistry) -> None:
    registry.add("memory", _memory_network)
    registry.add("import", _imported_network)


@hookimpl
def raftkit_register_state_machine(registry: StateMachineRegistry) -> None:
    registry.add("kv", _kv_state_machine)
    registry.add("import", _imported_state_machine)


def _memory_log_storage(url: AdapterUrl, context: AdapterContext) -> RaftLogStorage:
    """``memory:``; what follows the colon is a name for messages, nothing is shared by it."""
    from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage

    url.require_no_options()
    return MemoryLogStorage(MemoryDisk(url.path or context.node_id))


def _memory_snapshot_storage(url: AdapterUrl, context: AdapterContext) -> RaftSnapshotStorage:
    from raftkit_core.storage.memory import MemoryDisk, MemorySnapshotStorage, available_memory

    url.require_no_options()
    return MemorySnapshotStorage(MemoryDisk(url.path or context.node_id), available_memory)


def _file_snapshot_storage(url: AdapterUrl, context: AdapterContext) -> RaftSnapshotStorage:
    """``file:dir`` is under ``data_dir`` (without one: the working directory), ``file:///dir`` where it says."""
    from raftkit_core.storage.file_snapshots import FileSnapshotStorage

    url.require_no_options()
    return FileSnapshotStorage(url.file_path(context.data_dir))


def _memory_network(url: AdapterUrl, context: AdapterContext) -> RaftNetworkFactory:
    """``memory:NAME`` is a hub of the running loop; without a name it is the hub ``default``."""
    from raftkit_core.errors import BadAdapterUrl
    from raftkit_core.network.memory import MemoryNetworkFactory

    url.require_no_options()
    if url.host is not None or "/" in url.path:
        raise BadAdapterUrl(
            f"{url} names no hub", hint="write memory:NAME; a node's address there is memory:NAME/NODE by itself"
        )
    return MemoryNetworkFactory(url.path or "default", context.node_id)


def _kv_state_machine(url: AdapterUrl, context: AdapterContext) -> RaftStateMachine:
    from raftkit_core.state_machine.kv import KvStateMachine

    url.require_no_options()
    return KvStateMachine()


def _imported_log_storage(url: AdapterUrl, context: AdapterContext) -> RaftLogStorage:
    from raftkit_core.plugins.importing import make_imported
    from raftkit_core.storage.interface import RaftLogStorage

    return make_imported(url, context, RaftLogStorage)


def _imported_snapshot_storage(url: AdapterUrl, context: AdapterContext) -> RaftSnapshotStorage:
    from raftkit_core.plugins.importing import make_imported
    from raftkit_core.storage.interface import RaftSnapshotStorage

    return make_imported(url, context, RaftSnapshotStorage)


def _imported_network(url: AdapterUrl, context: AdapterContext) -> RaftNetworkFactory:
    from raftkit_core.network.interface import RaftNetworkFactory
    from raftkit_core.plugins.importing import make_imported

    return make_imported(url, context, RaftNetworkFactory)


def _imported_state_machine(url: AdapterUrl, context: AdapterContext) -> RaftStateMachine:
    from raftkit_core.plugins.importing import make_imported
    from raftkit_core.state_machine.interface import RaftStateMachine

    return make_imported(url, context, RaftStateMachine)
