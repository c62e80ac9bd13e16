"""A cluster of whole nodes in one program, on memory adapters: what scenario tests are written on.

Nodes are reached through the public :class:`~raftkit_core.raft.Raft` handle. Their disks outlive them, so that they can
be stopped, killed and started again; the hub between them can lose, refuse and delay messages. In a virtual-time loop
nothing is waited for, and equal seeds take equal steps.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from raftkit_core.clock import Clock
from raftkit_core.config import Config
from raftkit_core.errors import RaftError, Stopped, WaitTimeout
from raftkit_core.instrument import Instrument, Instruments
from raftkit_core.network.memory import MemoryHub, MemoryNetworkFactory
from raftkit_core.raft import Raft
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import RaftLogStorage, RaftSnapshotStorage
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import index_of
from raftkit_core.types.membership import Node
from raftkit_core.types.metrics import ServerState

_names = itertools.count(1)


class MemoryCluster:
    """Nodes by id, their disks, and the hub between them.

    ``storage``, ``snapshots``, ``machine`` and ``network`` make a node's adapters; the defaults are the memory ones and
    ``kv``.
    """

    def __init__(
        self,
        *,
        config: Config | None = None,
        seed: int = 1,
        storage: Callable[[MemoryDisk], RaftLogStorage] = MemoryLogStorage,
        machine: Callable[[], RaftStateMachine] = KvStateMachine,
        network: Callable[[str, NodeId], MemoryNetworkFactory] = MemoryNetworkFactory,
        snapshots: Callable[[MemoryDisk], RaftSnapshotStorage] = MemorySnapshotStorage,
        clock: Clock | None = None,
    ) -> None:
        self.config = Config() if config is None else config
        self.name = f"cluster{next(_names)}"
        self.hub = MemoryHub.named(self.name)
        self.disks: dict[NodeId, MemoryDisk] = {}
        self.rafts: dict[NodeId, Raft] = {}
        """The nodes that were started and not taken down since."""
        self._seed = seed
        self._storage = storage
        self._machine = machine
        self._network = network
        self._snapshots = snapshots
        self._clock = VirtualClock() if clock is None else clock
        self._starts = 0

    # --- nodes ------------------------------------------------------------------------------------------------------

    def address(self, node_id: NodeId) -> Node:
        return Node(f"memory:{self.name}/{node_id}")

    def members(self, *node_ids: NodeId) -> dict[NodeId, Node]:
        return {node_id: self.address(node_id) for node_id in node_ids}

    def disk(self, node_id: NodeId) -> MemoryDisk:
        """The node's disk, made when it is first asked for."""
        return self.disks.setdefault(node_id, MemoryDisk(node_id))

    def log(self, node_id: NodeId) -> list[Entry]:
        """What is durable there."""
        return list(self.disk(node_id).entries)

    async def start(
        self, node_id: NodeId, *, config: Config | None = None, instruments: Iterable[Instrument] = ()
    ) -> Raft:
        """Start ``node_id`` on its disk."""
        assert node_id not in self.rafts, f"{node_id} runs already"
        self._starts += 1
        disk = self.disk(node_id)
        raft = await Raft.start(
            node_id,
            storage=self._storage(disk),
            snapshots=self._snapshots(disk),
            state_machine=self._machine(),
            network=self._network(self.name, node_id),
            config=self.config if config is None else config,
            clock=self._clock,
            entropy=Random(f"{self._seed}/{node_id}/{self._starts}"),
            instruments=Instruments(instruments),
        )
        self.rafts[node_id] = raft
        return raft

    async def stop(self, node_id: NodeId) -> None:
        """Shut ``node_id`` down in an orderly way."""
        await self.rafts.pop(node_id).shutdown()

    async def kill(self, node_id: NodeId) -> None:
        """End ``node_id`` where it is: no hand-over, nothing more written, no answer to anybody."""
        raft = self.rafts.pop(node_id)
        raft.fail(Stopped(f"{node_id} was killed by its test"))
        await raft.shutdown()
        self.disk(node_id).crash()

    async def restart(self, node_id: NodeId) -> Raft:
        """Kill ``node_id`` if it runs, and start it on what its disk holds."""
        if node_id in self.rafts:
            await self.kill(node_id)
        return await self.start(node_id)

    def wipe(self, node_id: NodeId) -> None:
        """Give the stopped ``node_id`` an empty disk."""
        assert node_id not in self.rafts, f"{node_id} still runs"
        self.disks[node_id] = MemoryDisk(node_id)

    def raft(self, node_id: NodeId) -> Raft:
        return self.rafts[node_id]

    async def close(self) -> None:
        """Take everything down at once."""
        for node_id in sorted(self.rafts):
            self.rafts[node_id].fail(Stopped("the test is over"))
        for node_id in sorted(self.rafts):
            await self.rafts.pop(node_id).shutdown()

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def leader(self, *among: NodeId, timeout: float = 20.0) -> Raft:
        """The node that leads and that every other running one (or those ``among``) knows as its leader.

        Raises: WaitTimeout.
        """

        def agreed() -> Raft | None:
            nodes = [self.rafts[node_id] for node_id in (among or self.rafts)]
            metrics = {node.id: node.metrics().value for node in nodes}
            leaders = {m.current_leader for m in metrics.values()}
            if len(leaders) != 1:
                return None
            leader = leaders.pop()
            return (
                self.rafts[leader]
                if leader in metrics and metrics[leader].state is ServerState.LEADER and leader is not None
                else None
            )

        found: Raft = await self.eventually(agreed, "one leader everybody knows", timeout)
        return found

    async def eventually(self, look: Callable[[], Any], what: str, timeout: float = 20.0) -> Any:
        """What ``look`` gives, as soon as that is true. Raises: WaitTimeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not (found := look()):
            if loop.time() >= deadline:
                said = "; ".join(f"{node.id}: {node.metrics().value}" for node in self.rafts.values())
                raise WaitTimeout(f"{what} did not come within {timeout} s: {said}")
            await asyncio.sleep(0.005)
        return found

    async def applied(self, index: int, *node_ids: NodeId, timeout: float = 20.0) -> None:
        """Return when the nodes (default: all that run) have applied ``index``."""
        for node_id in node_ids or sorted(self.rafts):
            await self.rafts[node_id].wait(timeout).applied_index_at_least(index)


@asynccontextmanager
async def memory_cluster(
    voters: int | Iterable[NodeId] = 3,
    learners: Iterable[NodeId] = (),
    *,
    initialize: bool = True,
    **options: Any,
) -> AsyncIterator[MemoryCluster]:
    """A running cluster of ``voters`` (a number: n1, n2, …) with a leader, and ``learners`` added to it.

    ``initialize=False`` starts the nodes and leaves them pristine; ``options`` go to :class:`MemoryCluster`.
    """
    voter_ids = [f"n{number}" for number in range(1, voters + 1)] if isinstance(voters, int) else list(voters)
    learner_ids = list(learners)
    cluster = MemoryCluster(**options)
    try:
        for node_id in [*voter_ids, *learner_ids]:
            await cluster.start(node_id)
        if initialize and voter_ids:
            await cluster.raft(voter_ids[0]).initialize(cluster.members(*voter_ids))
            leader = await cluster.leader(*voter_ids)
            await leader.wait(10).metrics(lambda m: index_of(m.committed) >= 1, "a first commit")
            for node_id in learner_ids:
                await leader.add_learner(node_id, cluster.address(node_id))
        yield cluster
    finally:
        await cluster.close()


async def outcome(call: Any) -> Any:
    """What ``call`` gives, or the ``RaftError`` it raises: for tests that look at many of them."""
    try:
        return await call
    except RaftError as error:
        return error
