"""What a node stands on: opening it, each part within a bound, and whose store it is. ``closing`` is the other end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from raftkit_core.config import Config
from raftkit_core.errors import IdentityError, NeedsRejoin, PluginError
from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.runtime.limits import bounded, within
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.ids import NodeId

T = TypeVar("T")

OPEN_SECONDS = 60.0
CLOSE_SECONDS = 5.0
"""A plugin that does not close within this is left behind."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """What a node is given to stand on."""

    storage: RaftLogStorage
    snapshots: RaftSnapshotStorage
    machine: RaftStateMachine
    network: RaftNetworkFactory
    owns_network: bool

    async def open(
        self, context: AdapterContext, config: Config, entropy: Random, closers: AsyncExitStack
    ) -> StoreIdentity:
        """``closers`` gets what closes again whatever has begun to open: the network too, which opens when it serves.

        Raises: as open_identity; PluginError.
        """

        def closing(close: Callable[[], Awaitable[Any]]) -> None:
            closers.push_async_callback(_close, close, context.node_id)

        if self.owns_network:
            closing(self.network.close)
        closing(self.storage.close)
        identity = await opened(self.storage, open_identity(self.storage, context, config, self.machine, entropy))
        closing(self.snapshots.close)
        await opened(self.snapshots, self.snapshots.open(context))
        closing(self.machine.close)
        await opened(self.machine, self.machine.open(context))
        return identity


async def _close(close: Callable[[], Awaitable[Any]], node_id: NodeId) -> None:
    with suppress(Exception):
        await bounded(close(), CLOSE_SECONDS, f"node {node_id}: what it had opened")


async def opened(plugin: object, opening: Awaitable[T]) -> T:
    """Raises: PluginError for a plugin that does not get ready; what ``opening`` raises."""
    name = type(plugin).__name__
    try:
        return await within(opening, OPEN_SECONDS, f"opening {name}")
    except TimeoutError as error:
        raise PluginError(str(error), hint=f"look at what {name} waits for") from None


async def open_identity(
    storage: RaftLogStorage, context: AdapterContext, config: Config, machine: RaftStateMachine, entropy: Random
) -> StoreIdentity:
    """Open the store and see whose it is; a new one is given to this node.

    Raises: IdentityError, NeedsRejoin, StorageError.
    """
    identity = await storage.open(context)
    if identity is None:
        identity = StoreIdentity(
            node_id=context.node_id,
            store_id=f"{entropy.getrandbits(128):032x}",
            cluster=config.cluster,
            group=context.group,
            single_term_leader=config.single_term_leader,
            machine=machine.name,
        )
        await storage.save_identity(identity)
        return identity
    expected = {
        "node id": (identity.node_id, context.node_id),
        "cluster": (identity.cluster, config.cluster),
        "group": (identity.group, context.group),
        "single_term_leader": (identity.single_term_leader, config.single_term_leader),
        "state machine": (identity.machine, machine.name),
    }
    for what, (stored, wanted) in expected.items():
        if stored != wanted:
            raise IdentityError(
                f"this store has {what} {stored!r}, the node was started with {wanted!r}; nothing was changed",
                hint=f"start it with {what} {stored!r}, or give the node a data folder of its own",
            )
    if identity.retired:
        raise NeedsRejoin(f"this store is retired: {identity.retired}", hint=_way_on(identity.retired, context.node_id))
    return identity


def _moved_to(retired: str) -> str:
    return retired.removeprefix("migrated to ").partition(" at ")[0]


def _way_on(retired: str, node_id: str) -> str:
    """What to do about a store that no node may start on."""
    if retired.startswith("not finished: "):
        return "run the command again that was filling it, to its end"
    if retired.startswith("migrated to "):
        return f"start the node on the store it was moved to: --storage {_moved_to(retired)}"
    return f"start {node_id} with an empty folder, then: raftkit member rejoin {node_id}"
