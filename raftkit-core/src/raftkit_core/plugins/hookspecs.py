"""Every hook of raftkit-core. Imports pluggy alone, so that ``from raftkit_core import hookimpl`` costs nothing.

Hooks are synchronous, take keyword arguments, are called at start-up only and do no IO; what they register are
factories. A new argument may be added later (a plugin that does not name it is called without it), none is removed. A
plugin whose hook raises is listed as broken and stops nothing, unless it is the one asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from raftkit_core.config import Config
    from raftkit_core.instrument import Instrument
    from raftkit_core.plugins.doctor import DoctorCheck
    from raftkit_core.plugins.registry import (
        ClientRegistry,
        NetworkRegistry,
        StateMachineRegistry,
        StorageRegistry,
    )
    from raftkit_core.types.ids import NodeId

PROJECT = "raftkit"
"""pluggy project name, entry-point group and prefix of every hook."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def raftkit_register_storage(registry: StorageRegistry) -> None:
    """Add log storages: ``registry.add("lmdb", factory)``, where ``factory(url, context)`` makes a ``RaftLogStorage``.

    ``snapshots=`` gives a ``RaftSnapshotStorage`` that belongs to it; without one the node keeps snapshots as files.
    Called once per loaded set of plugins, the first time this plugin is needed.
    """


@hookspec
def raftkit_register_network(registry: NetworkRegistry) -> None:
    """Add transports: ``registry.add("tcp", factory)``, where ``factory(url, context)`` makes a ``RaftNetworkFactory``.

    The url says where to listen, and what to advertise. Called like ``raftkit_register_storage``.
    """


@hookspec
def raftkit_register_clients(registry: ClientRegistry) -> None:
    """Add clients: ``registry.add("tcp", factory)``, where ``factory(endpoints, options)`` makes a ``ClusterClient``.

    The scheme is that of the endpoints. Called like ``raftkit_register_storage``.
    """


@hookspec
def raftkit_register_state_machine(registry: StateMachineRegistry) -> None:
    """Add state machines by name: ``registry.add("bank", factory)``.

    ``factory(url, context)``, or just ``factory(context)``, makes a ``RaftStateMachine``; the url is what the user
    wrote (``bank`` or ``bank:///path?option=1``). Called like ``raftkit_register_storage``.
    """


@hookspec
def raftkit_instruments(node_id: NodeId, config: Config) -> Instrument | Sequence[Instrument] | None:
    """Give observers for a node that is about to start. Called once per node; every answer is kept.

    If it raises, the node starts without this plugin's instruments and says so in its log.
    """
    return None


@hookspec
def raftkit_doctor_checks() -> Iterable[DoctorCheck]:
    """Give checks for ``raftkit doctor``. Called once per run of that command; the checks may do IO, the hook not."""
    return ()
