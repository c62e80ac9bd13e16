"""The adapters of a simulation as a plugin: its nodes find them by URL, through the hooks that every plugin uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftkit_core.plugins.hookspecs import hookimpl
from raftkit_core.plugins.loaded import LoadedPlugins

if TYPE_CHECKING:
    from raftkit_core.instrument import Instrument
    from raftkit_core.network.interface import RaftNetworkFactory
    from raftkit_core.plugins.registry import NetworkRegistry, StateMachineRegistry, StorageRegistry
    from raftkit_core.state_machine.interface import RaftStateMachine
    from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
    from raftkit_core.types.ids import NodeId

SCHEME = "sim"


class SimPlugin:
    """``sim:ID`` is what belongs to the node of that id: each call of a factory is for a new life of it."""

    def __init__(
        self,
        log: Callable[[NodeId], RaftLogStorage],
        snapshots: Callable[[NodeId], RaftSnapshotStorage],
        network: Callable[[NodeId], RaftNetworkFactory],
        machine: Callable[[NodeId], RaftStateMachine],
        instrument: Callable[[NodeId], Instrument],
    ) -> None:
        self._log = log
        self._snapshots = snapshots
        self._network = network
        self._machine = machine
        self._instrument = instrument

    @hookimpl
    def raftkit_register_storage(self, registry: StorageRegistry) -> None:
        registry.add(
            SCHEME,
            lambda url, context: self._log(context.node_id),
            snapshots=lambda url, context: self._snapshots(context.node_id),
        )

    @hookimpl
    def raftkit_register_network(self, registry: NetworkRegistry) -> None:
        registry.add(SCHEME, lambda url, context: self._network(context.node_id))

    @hookimpl
    def raftkit_register_state_machine(self, registry: StateMachineRegistry) -> None:
        registry.add(SCHEME, lambda url, context: self._machine(context.node_id))

    @hookimpl
    def raftkit_instruments(self, node_id: NodeId) -> list[Instrument]:
        return [self._instrument(node_id)]


def plugins_of(plugin: SimPlugin) -> LoadedPlugins:
    """``plugin`` and no other: what is installed beside raftkit changes nothing in a simulation."""
    loaded = LoadedPlugins([])
    loaded.add_plugin(plugin)
    return loaded
