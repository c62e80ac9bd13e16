"""Engines alone, in a ring of seeded disks and wires: no loop, no tasks, thousands of steps in a blink.

Messages are delayed, lost, repeated and reordered; disks finish late; nodes crash and lose what was not flushed, come
back, are paused or cut off, change the membership, build and install snapshots: as an
:class:`~.engine_scenario.EngineScenario` has it. Every step is checked by :class:`~.engine_invariants.RingInvariants`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from heapq import heappop, heappush

import msgspec

from raftkit_core.config import Config, LogsSinceLast
from raftkit_core.engine.commands import AppendInputEntries, DeleteConflictLog, PurgeLog, ReplicateCommitted
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.engine_config import EngineConfig
from raftkit_core.testing.builders import membership, store_of
from raftkit_core.testing.simulation.engine_actions import ambush, perform
from raftkit_core.testing.simulation.engine_answers import RingAnswers
from raftkit_core.testing.simulation.engine_disks import RingDisks
from raftkit_core.testing.simulation.engine_invariants import RingInvariants
from raftkit_core.testing.simulation.engine_machines import RingMachines
from raftkit_core.testing.simulation.engine_node import RingNode, load_state
from raftkit_core.testing.simulation.engine_orders import RingOrders
from raftkit_core.testing.simulation.engine_requests import RingRequests
from raftkit_core.testing.simulation.engine_scenario import EngineScenario
from raftkit_core.testing.simulation.engine_script import NO_FAULTS, Action, ActionKind
from raftkit_core.testing.simulation.engine_wires import RingWires
from raftkit_core.testing.simulation.invariants import InvariantBroken
from raftkit_core.types.entry import MEMBERSHIP
from raftkit_core.types.ids import NodeId, RequestId

TICK = 0.05
MAX_STEPS = 100_000
"""V10: some twenty times what a run takes. Messages that beget messages are found, rather than waited for."""


class EngineRing:
    """A cluster of engines. ``run`` goes on for simulated seconds; ``settle`` heals everything and waits for calm."""

    def __init__(self, scenario: EngineScenario) -> None:
        self.scenario = scenario
        self.faults = scenario.faults
        self.now = 0.0
        self.steps = 0
        self.operations = 0
        self._streams: dict[str, random.Random] = {}
        self._trace = blake2b(digest_size=16)
        ids = scenario.node_ids
        self.nodes = {node_id: RingNode(node_id) for node_id in ids}
        self.dead: set[NodeId] = set()
        """Nodes that never come back."""
        self.mute: dict[NodeId, float] = {}
        """Until when nobody hears a node."""
        self.deaf: dict[NodeId, float] = {}
        """Until when a node hears nobody."""
        self.parted: list[tuple[frozenset[NodeId], float]] = []
        """Groups that hear nobody outside and are not heard there, each until its time."""
        self.armed: list[tuple[Action, float]] = []
        """Ambushes, each until its time."""
        self.invariants = RingInvariants(self.nodes, single_term_leader=scenario.single_term)
        self.seen = self.invariants.seen
        self.config = Config(
            snapshot_policy=LogsSinceLast(scenario.snapshot_every),
            max_in_snapshot_log_to_keep=scenario.logs_to_keep,
            purge_batch_size=2,
            max_payload_entries=16,
            max_inflight=4,
            single_term_leader=scenario.single_term,
            pre_vote=scenario.pre_vote,
            storage_stall_timeout_ms=60_000,
        )
        quits_after_s = (self.config.leader_lease_ms + self.config.election_timeout_max_ms) / 1000
        self._patience = quits_after_s * (1 + scenario.clock_drift) + 2 * TICK
        """V14: how long a leader may lead without a quorum."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.scheduled = 0
        """How many things were put off so far."""
        self.wires = RingWires(self)
        self.requests = RingRequests(self)
        self.answers = RingAnswers(self)
        self.disks = RingDisks(self)
        self.machines = RingMachines(self)
        self.orders = RingOrders(self)
        self._request_id = 0
        drift = scenario.clock_drift
        for each in self.nodes.values():
            clock = self.stream(f"clock {each.id}")
            each.rate = 1.0 + (
                clock.choice((-drift, drift)) if scenario.clock_extremes else clock.uniform(-drift, drift)
            )
            each.offset = 0.0 if scenario.in_step else clock.uniform(0.0, 1000.0)
            self.start(each)
            self.after(TICK, partial(self._tick, each))
        self._members = membership(ids[: scenario.voters])
        self._initialize(self.nodes["n1"])
        for action in scenario.actions:
            self.after(action.at_s, partial(perform, self, action))

    def stream(self, name: str) -> random.Random:
        """Random numbers for one purpose: what one part draws changes nothing for the others."""
        found = self._streams.get(name)
        if found is None:
            found = self._streams[name] = random.Random(f"{self.scenario.seed} {name}")
        return found

    def clock(self, each: RingNode) -> float:
        """The node's own monotonic clock."""
        return self.now * each.rate + each.offset

    @property
    def trace_hash(self) -> str:
        return self._trace.hexdigest()

    def _initialize(self, each: RingNode) -> None:
        """Again after a crash that lost it: the same membership makes the same cluster."""
        if each.engine is not None and each.engine.state.is_pristine and each.id == "n1":
            each.engine.handle_initialize(self._members, self.clock(each))
            self.carry_out(each)

    # --- time -------------------------------------------------------------------------------------------------------

    def after(self, delay: float, action: Callable[[], None]) -> None:
        self.scheduled += 1
        heappush(self._queue, (self.now + delay, self.scheduled, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heappop(self._queue)
            self.steps += 1
            action()
            if self.steps > MAX_STEPS:
                raise InvariantBroken(f"V10: {MAX_STEPS} steps, and more to come: {self.describe()}")
        self.now = end

    def heal(self) -> None:
        """Nobody is parted, paused or down any more, but the dead."""
        self.parted.clear()
        self.armed.clear()
        for each in self.nodes.values():
            each.paused_until = 0.0
            self._restart(each)

    def settle(self, seconds: float = 20.0, *, dead: frozenset[NodeId] = frozenset()) -> Engine:
        """No more faults, every node up but ``dead``: gives the leader once all others hold the same.

        Raises: InvariantBroken (V1) if that does not come about in ``seconds``.
        """
        self.faults = msgspec.structs.replace(
            NO_FAULTS,
            delay=min(0.04, self.faults.delay),
            disk_delay=min(0.05, self.faults.disk_delay),
            late_flush=self.faults.late_flush,
        )
        self.heal()
        end = self.now + seconds
        while self.now < end:
            self.run(0.5)
            leader = self.leader()
            if leader is not None and self._is_calm(leader, dead):
                return leader
        raise InvariantBroken(f"V1: no calm within {seconds} s: {self.describe()}")

    def leader(self) -> Engine | None:
        """The leader of the greatest vote, if there is one."""
        leaders = [each.engine for each in self.nodes.values() if each.engine is not None and each.engine.is_leader]
        return max(leaders, key=lambda engine: engine.vote.leader_id, default=None)

    def _is_calm(self, leader: Engine, dead: frozenset[NodeId]) -> bool:
        last = leader.state.last_log_id
        return (
            leader.config.id not in dead
            and leader.state.committed == last
            and all(
                (engine := self.nodes[member].engine) is not None and engine.state.applied == last
                for member in leader.effective.nodes
                if member not in dead
            )
        )

    def describe(self) -> str:
        lines = []
        for each in self.nodes.values():
            if each.engine is not None:
                state = each.engine.state
                lines.append(
                    f"{each.id} {state.server_state.value} {state.vote} last {state.last_log_id}"
                    f" committed {state.committed} applied {state.applied}"
                )
        return "; ".join(lines)

    # --- life of a node ---------------------------------------------------------------------------------------------

    def start(self, each: RingNode) -> None:
        """Recover from the disk, as the runtime does it."""
        state = load_state(each)
        self.invariants.begun(each)
        each.engine = Engine(
            EngineConfig(each.id, store_of(each.id), self.config), state, self.stream(f"engine {each.id} {each.life}")
        )
        each.engine.startup(self.clock(each))
        self.carry_out(each)

    def crash(self, each: RingNode, for_s: float, pick: int) -> None:
        """What is not flushed is lost; a prefix of the lane may have reached the disk all the same."""
        if each.engine is None:
            return
        kept = random.Random(pick).randrange(len(each.lane) + 1) if each.lane else 0
        if len(each.lane) > kept:
            self.seen["crash lost unflushed writes"] += 1
        self.seen["crash of the leader" if each.engine.is_leader else "crash of a follower"] += 1
        for _ in range(kept):
            self.disks.write(each, each.lane.popleft())
        each.forget()
        self.after(for_s, lambda: self._restart(each))

    def _restart(self, each: RingNode) -> None:
        if each.engine is None and each.id not in self.dead:
            self.start(each)
            self._initialize(each)

    def _tick(self, each: RingNode) -> None:
        jitter = 0.0 if self.scenario.in_step else self.stream(f"tick {each.id}").uniform(-0.2, 0.2)
        self.after(TICK * (1 + jitter), lambda: self._tick(each))
        engine = each.engine
        if engine is None or each.paused_until > self.now:
            return
        candidate = engine._parts.candidate
        engine.handle_tick(self.clock(each))
        if candidate is not None and not candidate.is_pre_vote and engine._parts.candidate is not candidate:
            self.seen["election timed out"] += 1
        self.carry_out(each)
        self.invariants.ticked(each, self.now, self._patience)

    def spring(self, kind: ActionKind, each: RingNode) -> None:
        """What an ambush may wait for has happened to ``each``; it strikes when this step is over."""
        for place, (action, until) in enumerate(self.armed):
            if action.kind == kind and until > self.now:
                del self.armed[place]
                self.after(0.0, partial(ambush, self, action, each.id))
                return

    # --- orders -----------------------------------------------------------------------------------------------------

    def next_request_id(self) -> RequestId:
        self._request_id += 1
        return self._request_id

    def carry_out(self, each: RingNode) -> None:
        """Run what the engine ordered; what waits for the lane is parked."""
        engine = each.engine
        assert engine is not None
        commands = engine.take_commands()
        check_membership = False
        for command in commands:
            when = getattr(command, "when", 0)
            if when > engine.flushed_io:
                each.parked.append((when, command))
            elif isinstance(command, ReplicateCommitted):
                engine.on_commit_notice_due(self.clock(each))
                commands += engine.take_commands()
            else:
                self.orders.run(each, engine, command)
            if isinstance(command, AppendInputEntries):
                check_membership = check_membership or any(entry.kind == MEMBERSHIP for entry in command.entries)
            elif isinstance(command, DeleteConflictLog | PurgeLog):
                check_membership = True
        self.orders.look_at_committed(each, engine)
        if check_membership:
            self.invariants.check_membership(each)
        self.invariants.check_pointers(each)
        if commands:
            state = engine.state
            self._trace.update(
                f"{self.now:.9f} {each.id} {len(commands)} {state.vote} {state.log.last} {state.committed}".encode()
            )
        self.disks.kick(each)
