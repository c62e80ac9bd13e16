"""Nodes of a simulation come and go: how each is started on its disk, killed, and judged for how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from raftkit_core.errors import NeedsRejoin, Stopped, StorageError
from raftkit_core.instrument import Instrument
from raftkit_core.raft import Raft
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.testing.simulation.sim_disk import SimDisk, SimSnapshotStorage
from raftkit_core.testing.simulation.sim_machine import WatchedMachine
from raftkit_core.testing.simulation.sim_network import SimNetworkFactory
from raftkit_core.testing.simulation.sim_plugin import SCHEME, SimPlugin, plugins_of
from raftkit_core.testing.virtual_time import OWNER
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.ids import NodeId
from raftkit_core.types.membership import StoredMembership

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.simulation import Simulation


class Life(Instrument):
    """One life of one node: what it is made of, and how it ends."""

    def __init__(self, sim: Simulation, node: NodeId, network: SimNetworkFactory, machine: WatchedMachine) -> None:
        self.sim = sim
        self.node = node
        self.network = network
        self.machine = machine
        self.raft: Raft | None = None
        self.starting: asyncio.Task[Raft] | None = None

    @property
    def is_up(self) -> bool:
        return self.raft is not None and self.raft.fatal is None

    def on_server_state(self, state: Any) -> None:
        self.sim.trace.event("role", self.node, state.value)

    def on_fatal(self, error: BaseException) -> None:
        self.sim.lives.ended(self, error)


class SimLives:
    """Who lives, by node; and who is being buried."""

    def __init__(
        self,
        sim: Simulation,
        *,
        storage: Callable[[SimDisk], RaftLogStorage],
        machine: Callable[[SimDisk], RaftStateMachine],
    ) -> None:
        self.sim = sim
        self._machine = machine
        self._watched: dict[NodeId, WatchedMachine] = {}
        self._plugins = plugins_of(
            SimPlugin(
                log=lambda node_id: storage(sim.disk(node_id)),
                snapshots=lambda node_id: SimSnapshotStorage(sim.disk(node_id)),
                network=lambda node_id: SimNetworkFactory(sim.hub, node_id),
                machine=self._make_machine,
                instrument=lambda node_id: self._by_node[node_id],
            )
        )
        self._contexts: dict[NodeId, Context] = {}
        self._by_node: dict[NodeId, Life] = {}
        self._burials: list[asyncio.Task[None]] = []
        self._starts = 0

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._by_node

    def __getitem__(self, node_id: NodeId) -> Life:
        return self._by_node[node_id]

    def get(self, node_id: NodeId) -> Life | None:
        return self._by_node.get(node_id)

    def items(self) -> list[tuple[NodeId, Life]]:
        return list(self._by_node.items())

    def context(self, node_id: NodeId) -> Context:
        context = self._contexts.get(node_id)
        if context is None:
            context = self._contexts[node_id] = copy_context()
            context.run(OWNER.set, node_id)
        return context

    async def start(self, node_id: NodeId) -> Raft:
        """Start ``node_id`` on what its disk holds. Raises: what :meth:`Raft.start` does."""
        assert node_id not in self._by_node, f"{node_id} runs already"
        self._starts += 1
        self.sim.loop.thaw(node_id)
        disk = self.sim.disk(node_id)
        clock = self.sim.clock_of(node_id)
        url, given = f"{SCHEME}:{node_id}", AdapterContext(node_id, clock=clock, cluster=self.sim.config.cluster)
        network = self._plugins.network(url, given)
        assert isinstance(network, SimNetworkFactory)
        machine = self._plugins.state_machine(url, given)
        snapshots = self._plugins.paired_snapshot_storage(url, given)
        assert snapshots is not None, "the plugin gives both"
        life = self._by_node[node_id] = Life(self.sim, node_id, network, self._watched[node_id])
        self.sim.trace.event("start", node_id)
        starting = Raft.start(
            node_id,
            storage=self._plugins.log_storage(url, given),
            snapshots=snapshots,
            state_machine=machine,
            network=network,
            config=self.sim.config,
            clock=clock,
            entropy=self.sim.stream(f"node/{node_id}/{self._starts}"),
            instruments=self._plugins.instruments(node_id, self.sim.config),
        )
        context = self.context(node_id).copy()
        life.starting = self.sim.loop.create_task(starting, name=f"start {node_id}", context=context)
        try:
            raft = await life.starting
        except asyncio.CancelledError:
            if self._by_node.get(node_id) is life:  # whoever starts it is called off, and it goes with that
                self.end(node_id)
                raise
            raise StorageError(f"{node_id} was killed while it started") from None
        except BaseException as error:
            self.sim.trace.event("failed", node_id, type(error).__name__)
            self._judge_fatal(life, error)
            if self._by_node.get(node_id) is life:
                del self._by_node[node_id]
                network.crash(reset=True)
                disk.crash()
            raise
        if self._by_node.get(node_id) is not life:  # killed in its last moment
            self._bury(raft)
            raise StorageError(f"{node_id} was killed while it started")
        life.raft = raft
        return raft

    def ended(self, life: Life, error: BaseException) -> None:
        if self._by_node.get(life.node) is life:
            self.sim.trace.event("fatal", life.node, type(error).__name__)
            self._judge_fatal(life, error)
            self.sim.on_end(life.node)

    def _judge_fatal(self, life: Life, error: BaseException) -> None:
        """A node may end because of its disk, or because it has lost that; of anything else it must not."""
        disk = self.sim.disk(life.node)
        while isinstance(error.__cause__, StorageError):
            error = error.__cause__
        name = type(error).__name__
        if (
            (isinstance(error, StorageError) and (disk.failed or disk.rotten or disk.rotten_vote))
            or isinstance(error, Stopped)
            or (isinstance(error, NeedsRejoin) and life.node in self.sim.wiped)
        ):
            self.sim.trace.seen(f"fatal.{name}")
        else:
            self.sim.oracle.breach("assert", life.node, f"ended by {name}: {error}")

    def end(self, node_id: NodeId, *, reset: bool = True) -> None:
        life = self._by_node.pop(node_id)
        self.sim.loop.thaw(node_id)
        life.network.crash(reset=reset)
        if life.raft is not None:
            life.raft.fail(Stopped(f"{node_id} crashed"))
            self._bury(life.raft)
        elif life.starting is not None:
            life.starting.cancel()
        self.sim.disk(node_id).crash()

    def _bury(self, raft: Raft) -> None:
        self._burials = [task for task in self._burials if not task.done()]
        self._burials.append(self.sim.loop.create_task(raft.shutdown(), name=f"bury {raft.id}"))

    async def end_all(self) -> None:
        """Kill whoever lives, and wait until nothing is left of anybody."""
        for node_id in sorted(self._by_node):
            self.end(node_id)
        while self._burials:
            await asyncio.wait([self._burials.pop()])

    def _make_machine(self, node_id: NodeId) -> RaftStateMachine:
        machine = self._machine(self.sim.disk(node_id))
        watched = self._watched[node_id] = WatchedMachine(node_id, machine, self.sim.oracle)
        return watched.machine

    def effective(self, node_id: NodeId) -> StoredMembership:
        """The membership a node goes by, as it says itself."""
        life = self._by_node.get(node_id)
        if life is not None and life.raft is not None:
            return life.raft._core.engine.state.membership.effective
        return StoredMembership()
