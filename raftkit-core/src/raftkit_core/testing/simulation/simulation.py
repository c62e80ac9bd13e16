"""A cluster of real nodes in one seeded program: ``Simulation``.

The nodes are whole: ``Raft``, its loop, the codec, the state machine. What is simulated is what lies outside of them:
time, the network, the disks, and who gets killed. Runs on a :class:`~raftkit_core.testing.VirtualTimeLoop`; one seed is
one run, byte for byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import wraps
from random import Random
from typing import Any

from raftkit_core.config import Config
from raftkit_core.errors import WaitTimeout
from raftkit_core.raft import Raft
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.testing.linearizability import DurableWrite, History, Report
from raftkit_core.testing.linearizability.history import Header
from raftkit_core.testing.simulation import sim_judgement
from raftkit_core.testing.simulation.invariants import InvariantBroken
from raftkit_core.testing.simulation.oracle import Oracle
from raftkit_core.testing.simulation.sim_client import SimClient
from raftkit_core.testing.simulation.sim_clock import SimClock
from raftkit_core.testing.simulation.sim_disk import SimDisk, SimLogStorage
from raftkit_core.testing.simulation.sim_lives import SimLives
from raftkit_core.testing.simulation.sim_network import SimHub
from raftkit_core.testing.simulation.sim_samples import SAMPLE_SECONDS, SimSamples
from raftkit_core.testing.simulation.sim_session import SimSession
from raftkit_core.testing.simulation.trace import Trace
from raftkit_core.testing.virtual_time import VirtualTimeLoop
from raftkit_core.types.ids import NodeId
from raftkit_core.types.membership import Node
from raftkit_core.types.session import DEFAULT_TTL_MS

POLL_SECONDS = 0.02
"""How often a condition is looked at, in virtual seconds."""


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
            self.disks,
            self.trace,
            single_term_leader=self.config.single_term_leader,
            effective=lambda node_id: self.lives.effective(node_id),
        )
        self.lives = SimLives(
            self, storage=storage, machine=(lambda disk: machine()) if machine_on is None else machine_on
        )
        self._faults = faults
        self._initialize = initialize
        self._loop: VirtualTimeLoop | None = None
        self._hub: SimHub | None = None
        self._clocks: dict[NodeId, SimClock] = {}
        self.is_closed = False
        self._starting: asyncio.Task[None] | None = None
        self._clients: dict[str, SimClient] = {}
        self.session_ttl_ms = DEFAULT_TTL_MS
        """Of sessions that clients open from now on."""
        self.wiped: dict[NodeId, None] = {}
        """Nodes that ever lost their store: nobody else is to say that it must rejoin."""
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
            self._hub = SimHub(f"sim{self.seed}", self.stream("net"), self.trace, self.oracle, self.lives.context)
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
            await self.lives.start(node_id)
        self.loop.call_later(SAMPLE_SECONDS, SimSamples(self).look)
        if self._initialize:
            first = self.voters[0]
            raft = self.raft(first)
            members = {node_id: self.address(node_id) for node_id in self.voters}
            await self.loop.create_task(raft.initialize(members), context=self.lives.context(first).copy())

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

    async def close(self) -> None:
        """Take everything down, and wait until nothing is left of it."""
        self.is_closed = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self.forget_late_copies()
        while self.sessions_left:
            await self.sessions_left.pop().abandon()
        await self.lives.end_all()

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
        raft = self.lives[node_id].raft
        if raft is None:
            raise KeyError(node_id)
        return raft

    def machine(self, node_id: NodeId) -> RaftStateMachine:
        return self.lives[node_id].machine.machine

    @property
    def running(self) -> list[NodeId]:
        """Nodes that are up, paused ones included."""
        return [node_id for node_id in self.ids if (life := self.lives.get(node_id)) is not None and life.is_up]

    def is_paused(self, node_id: NodeId) -> bool:
        return self.loop.is_frozen(node_id)

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
        self.lives.end(node_id, reset=reset)
        if self.disk(node_id).lost_parts > lost:
            self.trace.seen("disk.unsynced_lost")

    async def restart(self, node_id: NodeId) -> Raft:
        """Start ``node_id`` on what its disk holds; a running one is killed first."""
        if node_id in self.lives:
            self.crash(node_id)
        self.trace.event("fault", node_id, "restart")
        return await self.lives.start(node_id)

    def wipe(self, node_id: NodeId) -> None:
        """Give ``node_id`` an empty disk; a running one is killed first."""
        if node_id in self.lives:
            self.crash(node_id)
        self.trace.event("fault", node_id, "wipe")
        self.wiped[node_id] = None
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
            life = self.lives.get(node_id)
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
        sim_judgement.check_states(self)

    def check(self) -> None:
        """Everything that can be judged at this moment: rules, states, client histories. An undecided history is no
        pass. Raises: InvariantBroken."""
        sim_judgement.check(self)

    def judged(self, *, first_only: bool = False) -> Report:
        """What the judges say about the client histories so far. ``first_only``: one thing that is wrong is enough."""
        return sim_judgement.judged(self, first_only=first_only)

    def final_log(self) -> list[DurableWrite]:
        """The key-value commands that were committed and carried out."""
        return sim_judgement.final_log(self)
