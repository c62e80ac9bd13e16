"""A cluster of real nodes in one seeded program: ``Simulation``.

The nodes are whole: ``Raft``, its loop, the codec, the state machine. What is simulated is what lies outside of them:
time, the network, the disks, and who gets killed. Runs on a :class:`~raftkit_core.testing.VirtualTimeLoop`; one seed is
one run, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from functools import wraps
from random import Random
from typing import Any
from zlib import crc32

import msgspec

from raftkit_core.config import Config
from raftkit_core.errors import RaftError, Stopped, StorageError, WaitTimeout
from raftkit_core.instrument import Instrument
from raftkit_core.raft import Raft
from raftkit_core.runtime.raft_core import MAX_QUEUED
from raftkit_core.runtime.state_machine_worker import JOBS_KEPT
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.testing.linearizability import DurableWrite, Finding, History, Report, judge
from raftkit_core.testing.linearizability.history import Header, text_of
from raftkit_core.testing.simulation.oracle import Oracle
from raftkit_core.testing.simulation.sim_client import SimClient
from raftkit_core.testing.simulation.sim_disk import SimDisk, SimLogStorage, SimSnapshotStorage
from raftkit_core.testing.simulation.sim_machine import WatchedMachine
from raftkit_core.testing.simulation.sim_network import SimHub, SimNetworkFactory
from raftkit_core.testing.simulation.sim_plugin import SCHEME, SimPlugin, plugins_of
from raftkit_core.testing.simulation.sim_session import SimSession
from raftkit_core.testing.simulation.trace import Trace
from raftkit_core.testing.virtual_time import OWNER, WALL_START, VirtualTimeLoop
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import decode_envelope
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import KV_MACHINE, Delete
from raftkit_core.types.log_id import index_of
from raftkit_core.types.membership import Membership, Node
from raftkit_core.types.session import DEFAULT_TTL_MS

logger = logging.getLogger("raftkit.simulation")

SEARCH_BUDGET = 400_000
"""Steps of the linearizability search for one key."""
POLL_SECONDS = 0.02
"""How often a condition is looked at, in virtual seconds."""


SAMPLE_SECONDS = 0.05
OVERDUE_SECONDS = 1.0
"""V10: how long after its deadline a call may still wait."""
JOBS_BESIDES = 16
"""Jobs of a machine that are no callers': builds and restores."""


class InvariantBroken(AssertionError):
    """A rule did not hold: names it, the node, the time and the values."""


class SimClock:
    """A node's own clock: it began somewhere, and runs a little fast or slow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: float, offset: float) -> None:
        self._loop = loop
        self.rate = rate
        self.offset = offset

    def monotonic(self) -> float:
        return self._loop.time() * self.rate + self.offset

    def wall(self) -> float:
        return WALL_START + self._loop.time()


class _Life(Instrument):
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
        self.sim._fatal(self, error)


class Simulation:
    """``nodes`` is a number (n1, n2, …) or ids; all are voters unless ``initialize`` is False: then nothing is done.

    ``storage`` makes a log storage on a :class:`SimDisk`, ``machine`` a state machine, ``machine_on`` a durable one on
    a :class:`SimDisk`. ``faults`` is called with the simulation before anything starts, to set weather and disks. Every
    source of chance has its own stream.
    """

    def __init__(
        self,
        seed: int = 0,
        nodes: int | Iterable[NodeId] = 3,
        *,
        config: Config | None = None,
        storage: Callable[[SimDisk], RaftLogStorage] = SimLogStorage,
        machine: Callable[[], RaftStateMachine] = KvStateMachine,
        machine_on: Callable[[SimDisk], RaftStateMachine] | None = None,
        faults: Callable[[Simulation], None] | None = None,
        voters: int | None = None,
        initialize: bool = True,
    ) -> None:
        self.seed = seed
        self.ids = [f"n{number}" for number in range(1, nodes + 1)] if isinstance(nodes, int) else list(nodes)
        self.voters = self.ids[: len(self.ids) if voters is None else voters]
        self.config = Config() if config is None else config
        self.history = History(header=Header(seed=seed))
        """What clients asked and were told."""
        self.trace = Trace(lambda: 0.0 if self._loop is None else self._loop.time())
        self.disks: dict[NodeId, SimDisk] = {}
        self.oracle = Oracle(
            self.disks, self.trace, single_term_leader=self.config.single_term_leader, effective=self._effective
        )
        self._storage = storage
        self._machine = (lambda disk: machine()) if machine_on is None else machine_on
        self._watched: dict[NodeId, WatchedMachine] = {}
        self._plugins = plugins_of(
            SimPlugin(
                log=lambda node_id: self._storage(self.disk(node_id)),
                snapshots=lambda node_id: SimSnapshotStorage(self.disk(node_id)),
                network=lambda node_id: SimNetworkFactory(self.hub, node_id),
                machine=self._make_machine,
                instrument=lambda node_id: self._lives[node_id],
            )
        )
        self._faults = faults
        self._initialize = initialize
        self._loop: VirtualTimeLoop | None = None
        self._hub: SimHub | None = None
        self._contexts: dict[NodeId, Context] = {}
        self._clocks: dict[NodeId, SimClock] = {}
        self._lives: dict[NodeId, _Life] = {}
        self._burials: list[asyncio.Task[None]] = []
        self._paused_at: dict[NodeId, float] = {}
        """When a node was last seen to stand still."""
        self._starts = 0
        self._is_closed = False
        self._starting: asyncio.Task[None] | None = None
        self._clients: dict[str, SimClient] = {}
        self.session_ttl_ms = DEFAULT_TTL_MS
        """Of sessions that clients open from now on."""
        self.sessions: dict[str, SimSession] = {}
        """By name: under what clients write now."""
        self.sessions_left: list[SimSession] = []
        """All that were opened."""
        self.under_way: list[asyncio.Task[None]] = []
        """Copies of requests that arrive late."""
        self.on_end: Callable[[NodeId], None] = lambda node_id: None
        """Is told of a node that ended by itself."""
        for node_id in self.ids:
            self.disk(node_id)

    def stream(self, name: str) -> Random:
        """A source of chance of its own: nothing drawn elsewhere changes it."""
        return Random(f"{self.seed}/{name}")

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def loop(self) -> VirtualTimeLoop:
        if self._loop is None:
            loop = asyncio.get_running_loop()
            if not isinstance(loop, VirtualTimeLoop):
                raise RuntimeError("a Simulation runs in virtual time: use run_virtual(), or the marker virtual_time")
            self._loop = loop
        return self._loop

    @property
    def hub(self) -> SimHub:
        """The network between the nodes."""
        if self._hub is None:
            assert self.loop is not None
            self._hub = SimHub(f"sim{self.seed}", self.stream("net"), self.trace, self.oracle, self._context)
        return self._hub

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.loop.time()

    def clock_of(self, owner: str) -> SimClock:
        """The clock of a node, or of somebody else by name."""
        clock = self._clocks.get(owner)
        if clock is None:
            random = self.stream(f"clock/{owner}")
            drift = self.config.max_clock_drift / 2.5
            clock = self._clocks[owner] = SimClock(
                self.loop, 1 + random.uniform(-drift, drift), random.uniform(0, 10_000)
            )
        return clock

    def _context(self, node_id: NodeId) -> Context:
        context = self._contexts.get(node_id)
        if context is None:
            context = self._contexts[node_id] = copy_context()
            context.run(OWNER.set, node_id)
        return context

    async def __aenter__(self) -> Simulation:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start every node and make the cluster. Called by whatever needs it; once."""
        if self._starting is None:
            self._starting = self.loop.create_task(self._start_all(), name="start the simulation")
        await asyncio.shield(self._starting)

    async def _start_all(self) -> None:
        if self._faults is not None:
            self._faults(self)
        for node_id in self.ids:
            await self._start(node_id)
        self.loop.call_later(SAMPLE_SECONDS, self._sample)
        if self._initialize:
            first = self.voters[0]
            raft = self.raft(first)
            members = {node_id: self.address(node_id) for node_id in self.voters}
            await self.loop.create_task(raft.initialize(members), context=self._context(first).copy())

    def guarding(self, test: Callable[..., Any]) -> Callable[..., Any]:
        """``test`` with this simulation closed at its end, and checked if nothing else failed."""

        @wraps(test)
        async def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                await test(*args, **kwargs)
                self.check()
            finally:
                await self.close()

        return guarded

    def _sample(self) -> None:
        """What has to hold at every moment, looked at now and then: S22, S29, S31."""
        if self._is_closed:
            return
        self.loop.call_later(SAMPLE_SECONDS, self._sample)
        holders = []
        for node_id, life in self._lives.items():
            if life.raft is None:
                continue
            core = life.raft._core
            now = self._clocks[node_id].monotonic()
            if core.fatal is None and core.engine.is_leader and now < core.engine.read_lease_until(now):
                holders.append(node_id)
            self.oracle.sessions.look_at(core.worker.applied_index, core.worker.system.sessions.__contains__)
            if len(core._inbox) > MAX_QUEUED or len(core.worker._jobs) > JOBS_KEPT + JOBS_BESIDES:
                self.oracle.breach("S29", node_id, "a queue is longer than its bound")
            if self.is_paused(node_id):
                self._paused_at[node_id] = self.now
            elif core.fatal is None and self._paused_at.get(node_id, -1.0) < self.now - OVERDUE_SECONDS:
                late = core.waiting.overdue(now - OVERDUE_SECONDS)
                if late:
                    self.oracle.breach("V10", node_id, f"{late} calls still wait, long after their deadlines")
        self.oracle.leases(holders)

    async def close(self) -> None:
        """Take everything down, and wait until nothing is left of it."""
        self._is_closed = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self.forget_late_copies()
        while self.sessions_left:
            await self.sessions_left.pop().abandon()
        for node_id in sorted(self._lives):
            self._end(node_id)
        while self._burials:
            await asyncio.wait([self._burials.pop()])

    async def forget_late_copies(self) -> None:
        """What is under way from clients does not arrive any more."""
        tasks, self.under_way = [task for task in self.under_way if not task.done()], []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def address(self, node_id: NodeId) -> Node:
        return Node(f"memory:{self.hub.name}/{node_id}")

    def disk(self, node_id: NodeId) -> SimDisk:
        found = self.disks.get(node_id)
        if found is None:
            found = self.disks[node_id] = SimDisk(node_id, self.stream(f"disk/{node_id}"), self.oracle)
        return found

    def raft(self, node_id: NodeId) -> Raft:
        """The handle of a running node. Raises: KeyError if it is down."""
        raft = self._lives[node_id].raft
        if raft is None:
            raise KeyError(node_id)
        return raft

    def machine(self, node_id: NodeId) -> RaftStateMachine:
        return self._lives[node_id].machine.machine

    @property
    def running(self) -> list[NodeId]:
        """Nodes that are up, paused ones included."""
        return [node_id for node_id in self.ids if (life := self._lives.get(node_id)) is not None and life.is_up]

    def is_paused(self, node_id: NodeId) -> bool:
        return self.loop.is_frozen(node_id)

    def _make_machine(self, node_id: NodeId) -> RaftStateMachine:
        watched = self._watched[node_id] = WatchedMachine(node_id, self._machine(self.disk(node_id)), self.oracle)
        return watched.machine

    async def _start(self, node_id: NodeId) -> Raft:
        """Start ``node_id`` on what its disk holds. Raises: what :meth:`Raft.start` does."""
        assert node_id not in self._lives, f"{node_id} runs already"
        self._starts += 1
        self.loop.thaw(node_id)
        disk = self.disk(node_id)
        clock = self.clock_of(node_id)
        url, context = f"{SCHEME}:{node_id}", AdapterContext(node_id, clock=clock, cluster=self.config.cluster)
        network = self._plugins.network(url, context)
        assert isinstance(network, SimNetworkFactory)
        machine = self._plugins.state_machine(url, context)
        snapshots = self._plugins.paired_snapshot_storage(url, context)
        assert snapshots is not None, "the plugin gives both"
        life = self._lives[node_id] = _Life(self, node_id, network, self._watched[node_id])
        self.trace.event("start", node_id)
        starting = Raft.start(
            node_id,
            storage=self._plugins.log_storage(url, context),
            snapshots=snapshots,
            state_machine=machine,
            network=network,
            config=self.config,
            clock=clock,
            entropy=self.stream(f"node/{node_id}/{self._starts}"),
            instruments=self._plugins.instruments(node_id, self.config),
        )
        life.starting = self.loop.create_task(starting, name=f"start {node_id}", context=self._context(node_id).copy())
        try:
            raft = await life.starting
        except asyncio.CancelledError:
            raise StorageError(f"{node_id} was killed while it started") from None
        except BaseException as error:
            self.trace.event("failed", node_id, type(error).__name__)
            self._judge_fatal(life, error)
            if self._lives.get(node_id) is life:
                del self._lives[node_id]
                network.crash(reset=True)
                disk.crash()
            raise
        if self._lives.get(node_id) is not life:  # killed in its last moment
            self._bury(raft)
            raise StorageError(f"{node_id} was killed while it started")
        life.raft = raft
        return raft

    def _fatal(self, life: _Life, error: BaseException) -> None:
        if self._lives.get(life.node) is life:
            self.trace.event("fatal", life.node, type(error).__name__)
            self._judge_fatal(life, error)
            self.on_end(life.node)

    def _judge_fatal(self, life: _Life, error: BaseException) -> None:
        """A node may end because of its disk; of anything else it must not."""
        disk = self.disk(life.node)
        while isinstance(error.__cause__, StorageError):
            error = error.__cause__
        name = type(error).__name__
        if (isinstance(error, StorageError) and (disk.failed or disk.rotten or disk.rotten_vote)) or (
            isinstance(error, RaftError) and name in _EXPECTED
        ):
            self.trace.seen(f"fatal.{name}")
        else:
            self.oracle.breach("assert", life.node, f"ended by {name}: {error}")

    def _effective(self, node_id: NodeId) -> Membership:
        """The membership in force at a node, as its own log has it."""
        life = self._lives.get(node_id)
        if life is not None and life.raft is not None:
            return life.raft._core.engine.effective
        disk = self.disk(node_id)
        return disk.memberships[-1][1] if disk.memberships else Membership()

    # --- faults -----------------------------------------------------------------------------------------------------

    def partition(self, *sides: Iterable[NodeId], silent: bool = True) -> None:
        """Lose what goes from one side to another; not ``silent``: calls fail at once."""
        groups = [set(side) for side in sides]
        self.trace.event("fault", "", ("partition", [sorted(side) for side in groups]))
        self.hub.partition(*groups, silent=silent)

    def isolate(self, node_id: NodeId, *, silent: bool = True) -> None:
        self.trace.event("fault", node_id, "isolate")
        self.hub.isolate(node_id, silent=silent)

    def cut(self, src: NodeId, dst: NodeId, *, silent: bool = True) -> None:
        """Lose what ``src`` sends to ``dst``, one way."""
        self.trace.event("fault", src, ("cut", dst))
        self.hub.cut(src, dst, silent=silent)

    def hold(self, src: NodeId, dst: NodeId) -> None:
        """Keep what ``src`` sends to ``dst``, answers included, until :meth:`heal`: then it arrives, late."""
        self.trace.event("fault", src, ("hold", dst))
        self.hub.hold(src, dst)

    def heal(self) -> None:
        """Undo every cut and isolation; what was held arrives."""
        self.trace.event("fault", "", "heal")
        self.hub.heal()
        self.hub.release()

    def crash(self, node_id: NodeId, *, reset: bool = True) -> None:
        """Kill ``node_id``: what it had not synced is lost. Not ``reset``: its peers hear nothing, as when the power
        goes."""
        self.trace.event("fault", node_id, "crash")
        lost = self.disk(node_id).lost_parts
        self._end(node_id, reset=reset)
        if self.disk(node_id).lost_parts > lost:
            self.trace.seen("disk.unsynced_lost")

    def _end(self, node_id: NodeId, *, reset: bool = True) -> None:
        life = self._lives.pop(node_id)
        self.loop.thaw(node_id)
        life.network.crash(reset=reset)
        if life.raft is not None:
            life.raft.fail(Stopped(f"{node_id} crashed"))
            self._bury(life.raft)
        elif life.starting is not None:
            life.starting.cancel()
        self.disk(node_id).crash()

    def _bury(self, raft: Raft) -> None:
        self._burials = [task for task in self._burials if not task.done()]
        self._burials.append(self.loop.create_task(raft.shutdown(), name=f"bury {raft.id}"))

    async def restart(self, node_id: NodeId) -> Raft:
        """Start ``node_id`` on what its disk holds; a running one is killed first."""
        if node_id in self._lives:
            self.crash(node_id)
        self.trace.event("fault", node_id, "restart")
        return await self._start(node_id)

    def wipe(self, node_id: NodeId) -> None:
        """Give ``node_id`` an empty disk; a running one is killed first."""
        if node_id in self._lives:
            self.crash(node_id)
        self.trace.event("fault", node_id, "wipe")
        before = self.disks.pop(node_id)
        disk = self.disk(node_id)
        disk.random = before.random
        disk.at_once, disk.latency, disk.atomic = before.at_once, before.latency, before.atomic

    def pause(self, node_id: NodeId) -> None:
        """Stop ``node_id`` as SIGSTOP does; its clock goes on."""
        self.trace.event("fault", node_id, "pause")
        self.loop.freeze(node_id)

    def resume(self, node_id: NodeId) -> None:
        self.trace.event("fault", node_id, "resume")
        self.loop.thaw(node_id)

    # --- looking and waiting ----------------------------------------------------------------------------------------

    async def leader(self, timeout: float = 30.0) -> NodeId:
        """The node that leads and can reach a quorum that knows it. Raises: WaitTimeout."""
        await self.start()
        found: NodeId = await self.eventually(self._leader, "a leader with a quorum", timeout)
        return found

    def _leader(self) -> NodeId | None:
        up = {node_id: self.raft(node_id)._core.engine for node_id in self.running if not self.is_paused(node_id)}
        leaders = [node_id for node_id, engine in up.items() if engine.is_leader]
        for leader in sorted(leaders, key=lambda node_id: up[node_id].vote.leader_id, reverse=True):
            engine = up[leader]
            followers = [
                node_id
                for node_id, other in up.items()
                if other.known_leader == leader
                and other.vote == engine.vote
                and self.hub.fault(leader, node_id) is None
                and self.hub.fault(node_id, leader) is None
            ]
            if engine.effective.is_quorum(followers):
                return leader
        return None

    def agreed(self, among: Iterable[NodeId] | None = None) -> NodeId | None:
        """The leader, if it has committed its whole log and every member (of those ``among``) has applied all of it."""
        leader = self._leader()
        if leader is None:
            return None
        engine = self.raft(leader)._core.engine
        last = engine.state.last_log_id
        if engine.state.committed != last:
            return None
        up = self.running
        for node_id in self.ids if among is None else among:
            if node_id in engine.effective.nodes and (
                node_id not in up or self.raft(node_id)._core.worker.applied != last
            ):
                return None
        return leader

    async def settle(self, timeout: float = 30.0) -> NodeId:
        """End every fault, start what is down, and wait until all members hold the same: gives the leader.

        Raises: WaitTimeout; what a start raises.
        """
        await self.start()
        self.heal()
        self.hub.weather.calm()
        for node_id, disk in self.disks.items():
            disk.hung = disk.full = False
            disk.failing = 0.0
            self.resume(node_id)
        for node_id in self.ids:
            if node_id not in self.running:
                await self.restart(node_id)
        found: NodeId = await self.eventually(self.agreed, "all members hold the same", timeout)
        return found

    async def eventually(self, look: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
        """What ``look`` gives, as soon as that is true. Raises: WaitTimeout."""
        deadline = self.now + timeout
        while not (found := look()):
            if self.now >= deadline:
                raise WaitTimeout(f"{what} did not come within {timeout:g} s: {self.describe()}")
            await asyncio.sleep(POLL_SECONDS)
        return found

    async def run_for(self, seconds: float) -> None:
        """Let virtual time pass. Raises: InvariantBroken."""
        await self.start()
        await asyncio.sleep(seconds)
        self.require_unbroken()

    async def write(self, command: Any, *, node: NodeId | None = None, timeout: float = 5.0) -> Any:
        """What the machine answers to ``command``, asked at ``node`` (default: whoever leads). Raises: RaftError."""
        asked = await self.leader() if node is None else node
        return (await self.raft(asked).write(command, timeout=timeout)).data

    async def read(self, fn_or_query: Any, *, node: NodeId | None = None, timeout: float = 5.0) -> Any:
        """A linearizable read, asked at ``node`` (default: whoever leads). Raises: RaftError."""
        asked = await self.leader() if node is None else node
        return await self.raft(asked).read(fn_or_query, timeout=timeout)

    async def disturb(self, seconds: float, *, profile: str = "swarm") -> None:
        """Seeded faults for ``seconds``: what ``raftkit sim`` does to a cluster of this size. Everything is repaired
        then; who lost its store is let in again.

        Raises: InvariantBroken.
        """
        from raftkit_core.testing.simulation.faults import FaultPlayer
        from raftkit_core.testing.simulation.runtime_scenario import plan_faults

        await self.start()
        draw = self.stream(f"faults/{self.now}")
        actions, weather, disks = plan_faults(draw, profile, self.ids, seconds)
        player = FaultPlayer(self, weather, disks)
        player.set_weather()
        player.calm_disks()
        began = self.now
        try:
            for action in actions:
                await asyncio.sleep(max(0.0, began + action.at_s - self.now))
                self.require_unbroken()
                player.do(action)
            await asyncio.sleep(max(0.0, began + seconds - self.now))
        finally:
            await player.repair()
        self.require_unbroken()

    def client(self, name: str = "client") -> SimClient:
        """A client by name; what it does is in :attr:`history`."""
        found = self._clients.get(name)
        if found is None:
            found = self._clients[name] = SimClient(self, name, self.stream(f"client/{name}"))
        return found

    def describe(self) -> str:
        """Every node in a line."""
        lines = []
        for node_id in self.ids:
            life = self._lives.get(node_id)
            if life is None or life.raft is None:
                lines.append(f"{node_id} is down")
                continue
            state = life.raft._core.engine.state
            lines.append(
                f"{node_id} {'(paused) ' if self.is_paused(node_id) else ''}{state.server_state.value} {state.vote}"
                f" last {state.last_log_id} committed {state.committed} applied {life.raft._core.worker.applied}"
                + (f" ended by {life.raft.fatal}" if life.raft.fatal is not None else "")
            )
        return "; ".join(lines)

    def require_unbroken(self) -> None:
        """Raises: InvariantBroken with the first rule that did not hold."""
        if self.oracle.breaches:
            raise InvariantBroken(f"{self.oracle.breaches[0]} (seed {self.seed})")

    def check_states(self) -> None:
        """The rules so far, and what disks and machines hold at this moment. Raises: InvariantBroken."""
        for node_id in self.ids:
            self.oracle.check_pointers(node_id)
        for node_id in self.running:
            life = self._lives[node_id]
            applied = self.raft(node_id)._core.worker.applied
            if applied is not None and life.machine.is_at(index_of(applied)):
                self.oracle.applied(node_id, applied, life.machine.digest())
                self.oracle.system_applied(node_id, applied, crc32(self.raft(node_id)._core.worker.system.encode()))
        self.require_unbroken()

    def check(self) -> None:
        """Everything that can be judged at this moment: rules, states, client histories. An undecided history is no
        pass. Raises: InvariantBroken."""
        self.check_states()
        report = self.judged()
        if report.findings:
            raise InvariantBroken(f"{rule_of(report.findings[0])} {report.findings[0]} (seed {self.seed})")
        if report.undecided:
            keys = ", ".join(report.undecided)
            raise InvariantBroken(f"S21 undecided: the history of {keys} is too long to judge (seed {self.seed})")

    def judged(self, *, first_only: bool = False) -> Report:
        """What the judges say about the client histories so far. ``first_only``: one thing that is wrong is enough."""
        return judge(self.history, durable=self.final_log(), budget=SEARCH_BUDGET, first_only=first_only)

    def final_log(self) -> list[DurableWrite]:
        """The key-value commands that were committed and carried out, purged ones included: repeats under a session,
        and what comes after its end, stand in the log and have no effect."""
        found = []
        reaches = self.oracle.sessions.reaches
        for index, entry in sorted(self.oracle.committed.items()):
            if not reaches.get(index, True):
                continue
            write = durable_write(index, entry.payload)
            if write is not None:
                found.append(write)
        return found


def rule_of(finding: Finding) -> str:
    """The number of the rule that a judge found broken."""
    return "S23" if finding.check in ("durability", "sessions") else "S21"


def durable_write(index: int, payload: bytes) -> DurableWrite | None:
    """The key-value command in a committed entry; None if it is none."""
    try:
        envelope = decode_envelope(payload)
        if envelope.machine != KV_MACHINE:
            return None
        command = _CODEC.decode_command(envelope.body)
    except (msgspec.MsgspecError, ValueError, RaftError):
        return None
    kind: Any = command.__struct_config__.tag
    more = {} if isinstance(command, Delete) else {"value": text_of(command.value)}
    return DurableWrite(
        index=index, kind=kind, key=command.key, session=envelope.session, serial=envelope.serial, **more
    )


_CODEC = KvCodec()
_EXPECTED = frozenset({"Stopped", "NeedsRejoin"})
