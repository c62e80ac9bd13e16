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
from typing import Any, assert_never
from zlib import crc32

import msgspec

from raftkit_core.config import Config, LogsSinceLast
from raftkit_core.engine.commands import (
    AppendInputEntries,
    BecomeLeader,
    BuildSnapshot,
    Command,
    Commit,
    ConfirmRead,
    DeleteConflictLog,
    InstallSnapshot,
    LogCommand,
    PurgeLog,
    QuitLeader,
    RebuildReplicationStreams,
    Replicate,
    ReplicateCommitted,
    ReplicateSnapshot,
    Respond,
    RetireStore,
    SaveCommitted,
    SaveLease,
    SaveVote,
    SendHeartbeat,
    SendPreVote,
    SendTransferLeader,
    SendVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.engine_config import EngineConfig
from raftkit_core.testing.builders import membership, store_of
from raftkit_core.testing.simulation.engine_actions import ambush, perform
from raftkit_core.testing.simulation.engine_invariants import RingInvariants
from raftkit_core.testing.simulation.engine_node import Asked, RingNode, load_state
from raftkit_core.testing.simulation.engine_scenario import EngineScenario
from raftkit_core.testing.simulation.engine_script import NO_FAULTS, Action, ActionKind
from raftkit_core.testing.simulation.invariants import InvariantBroken
from raftkit_core.types.entry import MEMBERSHIP, decode_membership
from raftkit_core.types.ids import NodeId, RequestId
from raftkit_core.types.log_id import LogId, index_of, log_id_lt, max_log_id
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    Conflict,
    HeartbeatRequest,
    HigherVote,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Success,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotMeta

TICK = 0.05
TIMEOUT = 0.4
MAX_STEPS = 100_000
"""V10: some twenty times what a run takes. Messages that beget messages are found, rather than waited for."""
MAX_ENTRIES = 6
"""How many entries one request carries: an order of more becomes several."""


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
        self._config = Config(
            snapshot_policy=LogsSinceLast(scenario.snapshot_every),
            max_in_snapshot_log_to_keep=scenario.logs_to_keep,
            purge_batch_size=2,
            max_payload_entries=16,
            max_inflight=4,
            single_term_leader=scenario.single_term,
            pre_vote=scenario.pre_vote,
            storage_stall_timeout_ms=60_000,
        )
        quits_after_s = (self._config.leader_lease_ms + self._config.election_timeout_max_ms) / 1000
        self._patience = quits_after_s * (1 + scenario.clock_drift) + 2 * TICK
        """V14: how long a leader may lead without a quorum."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
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
        self._number += 1
        heappush(self._queue, (self.now + delay, self._number, action))

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
            EngineConfig(each.id, store_of(each.id), self._config), state, self.stream(f"engine {each.id} {each.life}")
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
            self._write(each, each.lane.popleft())
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

    def _spring(self, kind: ActionKind, each: RingNode) -> None:
        """What an ambush may wait for has happened to ``each``; it strikes when this step is over."""
        for place, (action, until) in enumerate(self.armed):
            if action.kind == kind and until > self.now:
                del self.armed[place]
                self.after(0.0, partial(ambush, self, action, each.id))
                return

    # --- wires ------------------------------------------------------------------------------------------------------

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        now = self.now
        return (
            self.mute.get(source, 0.0) > now
            or self.deaf.get(target, 0.0) > now
            or any((source in group) != (target in group) for group, until in self.parted if until > now)
        )

    def _call(
        self,
        source: RingNode,
        target: NodeId,
        request: Any,
        handle: Callable[[Engine, RequestId, float], None],
        answered: Callable[[Engine, Any], None],
        failed: Callable[[Engine], None] | None = None,
        *,
        is_pre_vote: bool = False,
    ) -> None:
        """One request with one answer or one failure, delayed, perhaps lost, perhaps arriving twice."""
        life, done = source.life, [False]
        peer = self.nodes[target]
        wire = self.stream(f"wire {source.id} {target}")

        def conclude(then: Callable[[Engine], None] | None) -> None:
            if done[0] or source.life != life or source.engine is None:
                return
            if source.paused_until > self.now:
                self.after(source.paused_until - self.now, lambda: conclude(then))
                return
            done[0] = True
            if then is not None:
                then(source.engine)
                self.carry_out(source)

        def late(response: Any) -> None:
            if source.life == life and source.engine is not None and source.paused_until <= self.now:
                answered(source.engine, response)
                self.carry_out(source)

        def arrive() -> None:
            if peer.engine is None or self.is_cut(source.id, target):
                return
            if peer.paused_until > self.now:
                self.after(peer.paused_until - self.now, arrive)
                return
            self._request_id += 1
            peer.requests[self._request_id] = Asked(
                request, reply, self.clock(peer), self.now, peer.held, peer.engine.vote, is_pre_vote
            )
            handle(peer.engine, self._request_id, self.clock(peer))
            self.carry_out(peer)

        def reply(response: Any) -> None:
            if wire.random() < self.faults.loss or self.is_cut(target, source.id):
                if isinstance(response, Success) and isinstance(request, AppendEntriesRequest) and request.entries:
                    self.seen["answer lost after a durable write"] += 1
                return
            if wire.random() < self.faults.late_answer and not isinstance(response, BaseException):
                self.seen["answer after its caller gave up"] += 1
                self.after(wire.uniform(0.4, 3.0), lambda: late(response))
            if isinstance(response, BaseException):
                self.after(self._delay(wire), lambda: conclude(failed))
            else:
                self.after(self._delay(wire), lambda: conclude(lambda engine: answered(engine, response)))

        is_lost, is_repeated = wire.random() < self.faults.loss, wire.random() < self.faults.repeat
        if not is_lost:
            self.after(self._delay(wire), arrive)
        if is_repeated:
            self.seen["message repeated"] += 1
            self.after(5 * self._delay(wire), arrive)
        self.after(TIMEOUT, lambda: conclude(failed))

    def _delay(self, wire: random.Random) -> float:
        return 0.001 + wire.random() ** 3 * self.faults.delay

    # --- commands ---------------------------------------------------------------------------------------------------

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
                self._run(each, engine, command)
            if isinstance(command, AppendInputEntries):
                check_membership = check_membership or any(entry.kind == MEMBERSHIP for entry in command.entries)
            elif isinstance(command, DeleteConflictLog | PurgeLog):
                check_membership = True
        if check_membership:
            self.invariants.check_membership(each)
        self.invariants.check_pointers(each)
        if commands:
            state = engine.state
            self._trace.update(
                f"{self.now:.9f} {each.id} {len(commands)} {state.vote} {state.log.last} {state.committed}".encode()
            )
        if each.lane and not each.flushing:
            each.flushing = True
            life = each.life
            delay = 0.001 + self.stream(f"disk {each.id}").random() ** 2 * self.faults.disk_delay
            self.after(delay, lambda: self._flush(each, life))

    def _run(self, each: RingNode, engine: Engine, command: Command) -> None:
        match command:
            case SaveCommitted(committed=committed):
                self.invariants.committing(each, each.committed, committed)
                each.committed = committed
                each.lane.append(command)  # keeps its place: sooner it would vouch for what is still to be replaced
            case AppendInputEntries(entries=entries):
                self.invariants.appending(each, entries)
                each.log.update({entry.index: entry for entry in entries})
                each.lane.append(command)
                for entry in entries:
                    if entry.kind == MEMBERSHIP:
                        self.seen["joint entered" if engine.effective.is_joint else "uniform membership"] += 1
            case DeleteConflictLog(since=since):
                self.invariants.cutting(each)
                self.seen["truncation"] += 1
                if any(entry.kind == MEMBERSHIP for index, entry in each.log.items() if index >= since):
                    self.seen["membership reverted"] += 1
                each.log = {index: entry for index, entry in each.log.items() if index < since}
                each.lane.append(command)
            case PurgeLog(upto=upto):
                self.seen["purge"] += 1
                if not any(index > upto.index for index in each.log):
                    self.seen["purge of everything"] += 1
                each.log = {index: entry for index, entry in each.log.items() if index > upto.index}
                each.lane.append(command)
            case SaveVote() | SaveLease():
                each.lane.append(command)
            case SendVote():
                self.invariants.campaigning(each, command.request, self.clock(each))
                self.seen["campaign"] += 1
                self._send_vote(each, command)
            case SendPreVote():
                self._send_vote(each, command)
            case Replicate():
                self.invariants.leading(each, command.vote)
                self._replicate(each, command)
            case ReplicateSnapshot():
                self.invariants.leading(each, command.vote)
                self._replicate_snapshot(each, command)
            case SendHeartbeat() | ConfirmRead():
                if command.session == engine.session:
                    self.invariants.leading(each, command.vote)
                    self._heartbeat(each, command)
            case SendTransferLeader():
                self.seen["hand-over asked for"] += 1
                self.invariants.handing_over(each)
                self._call(
                    each,
                    command.target,
                    command.request,
                    lambda peer, rid, now: peer.handle_transfer_request(command.request, rid, now),
                    lambda me, answer: me.on_transfer_response(
                        command.session, command.target, answer, self.clock(each)
                    ),
                    lambda me: me.on_transfer_response(command.session, command.target, None, self.clock(each)),
                )
            case BecomeLeader():
                self.seen["election won"] += 1
                others = [
                    other
                    for other in self.nodes.values()
                    if other is not each and other.engine and other.engine.is_leader
                ]
                if others:
                    self.seen["two leaders at a time"] += 1
                self.invariants.established(each, command.vote)
                self._spring("ambush_winner", each)
            case Commit():
                self._apply(each, command)
            case BuildSnapshot():
                self._build(each)
            case RetireStore(reason=reason):
                raise InvariantBroken(f"S17 at {each.id}: told that it lost writes, but no disk here does: {reason}")
            case InstallSnapshot():
                life = each.life
                self.after(self._work_delay(each), lambda: self._install(each, life, command))
            case Respond():
                self._respond(each, engine, command)
            case QuitLeader(reason=reason):
                self.seen["leader removed" if "removed" in reason else "leader stepped down"] += 1
            case RebuildReplicationStreams():
                pass
            case ReplicateCommitted():
                raise AssertionError("the engine was asked for it at once")
            case _:
                assert_never(command)

    def _respond(self, each: RingNode, engine: Engine, command: Respond) -> None:
        read = each.reads.pop(command.request_id, None)
        if read is not None:
            if isinstance(command.response, LogId):
                self.seen["read by lease" if read.by_lease else "read confirmed"] += 1
                self.invariants.read(
                    each, command.response, read, {node: self.clock(self.nodes[node]) for node in self.nodes}
                )
            else:
                self.seen["read refused"] += 1
            return
        asked = each.requests.pop(command.request_id, None)
        if asked is None or (command.under is not None and command.under != engine.vote):
            return
        self._check_answer(each, engine, command, asked)
        asked.reply(command.response)

    def _check_answer(self, each: RingNode, engine: Engine, command: Respond, asked: Asked) -> None:
        invariants, request = self.invariants, asked.request
        match command.response:
            case VoteResponse(granted=granted):
                if granted and not asked.is_pre_vote:
                    invariants.granting(each, request, asked.held, asked.arrived_at)
                elif granted:
                    invariants.willing(each, request, asked.held)
                elif not granted:
                    invariants.refusing(each, request, asked)
                    self._count_refusal(engine, request, asked)
            case Success(matching=matching):
                assert command.under is not None
                invariants.acknowledged(each, command.under, matching)
                invariants.promised(each, request.vote.leader_id, matching)
                self._promise(each, asked)
            case Busy():
                self.seen["answered busy"] += 1
                invariants.answering(each, request.vote)
                self._promise(each, asked)
            case Conflict():
                self.seen["log conflict"] += 1
                invariants.answering(each, request.vote)
                self._promise(each, asked)
            case HigherVote(vote=vote):
                self.seen["higher vote"] += 1
                invariants.answering(each, vote)
            case InstallSnapshotResponse(vote=vote):
                if vote == request.vote:
                    invariants.acknowledged(each, vote, request.meta.last_log_id)
                    invariants.promised(each, vote.leader_id, request.meta.last_log_id)
                else:
                    invariants.answering(each, vote)
            case _:
                pass

    def _promise(self, each: RingNode, asked: Asked) -> None:
        lease_s = max(asked.request.lease_ms, self._config.leader_lease_ms) / 1000
        self.invariants.followed(each, asked.request.vote.leader_id, asked.arrived_at + lease_s, asked.at)

    def _count_refusal(self, engine: Engine, request: VoteRequest, asked: Asked) -> None:
        kind = "pre-vote" if asked.is_pre_vote else "vote"
        if asked.arrived_at < engine.state.hold_until or engine.is_leader:
            self.seen[f"{kind} refused by lease"] += 1
        elif log_id_lt(request.last_log_id, engine.state.log.last):
            self.seen[f"{kind} refused by log"] += 1
        else:
            self.seen[f"{kind} refused by vote"] += 1

    # --- disk -------------------------------------------------------------------------------------------------------

    def _flush(self, each: RingNode, life: int) -> None:
        """Some of the lane, in order, reaches the disk."""
        if each.life != life or each.engine is None:
            return
        if each.paused_until > self.now:
            self.after(each.paused_until - self.now, lambda: self._flush(each, life))
            return
        each.flushing = False
        io_id = 0
        disk = self.stream(f"disk {each.id}")
        for _ in range(disk.randint(1, len(each.lane))):
            written = each.lane.popleft()
            self._write(each, written)
            io_id = getattr(written, "io_id", io_id)
        if not io_id:
            self.carry_out(each)
            return
        each.engine.on_log_flushed(io_id, self.clock(each))
        if disk.random() < self.faults.late_flush and each.last_flush:
            self.seen["flush reported late"] += 1
            each.engine.on_log_flushed(each.last_flush, self.clock(each))
        each.last_flush = io_id
        released = [command for when, command in each.parked if when <= io_id]
        each.parked = [parked for parked in each.parked if parked[0] > io_id]
        for command in released:
            self._run(each, each.engine, command)
        self.carry_out(each)

    def _write(self, each: RingNode, command: LogCommand) -> None:
        disk = each.disk
        match command:
            case SaveVote(vote=vote):
                self.invariants.saving_vote(each, vote)
                disk.vote = vote
            case SaveLease(lease_ms=lease_ms):
                disk.lease_ms = max(disk.lease_ms, lease_ms)
            case AppendInputEntries(entries=entries):
                self.invariants.appended(each, entries)
            case DeleteConflictLog(since=since):
                self.invariants.truncating(each, since)
                disk.entries = {index: entry for index, entry in disk.entries.items() if index < since}
            case PurgeLog(upto=upto):
                disk.purged = upto
                disk.entries = {index: entry for index, entry in disk.entries.items() if index > upto.index}
                self.invariants.purged(each)
            case SaveCommitted(committed=committed):
                each.to_save = committed
        saved = each.to_save
        rides = self.stream(f"disk {each.id}").random() < 0.5
        if saved is not None and saved.index <= index_of(disk.last_log_id) and rides:
            disk.committed = saved  # it rides with a write, or is lost

    # --- requests ---------------------------------------------------------------------------------------------------

    def _send_vote(self, each: RingNode, command: SendVote | SendPreVote) -> None:
        is_pre_vote = isinstance(command, SendPreVote)
        store_id = store_of(each.id)
        for target in command.targets:

            def handle(peer: Engine, request_id: RequestId, now: float) -> None:
                ask = peer.handle_pre_vote if is_pre_vote else peer.handle_vote
                ask(command.request, store_id, request_id, now)

            def answered(me: Engine, response: VoteResponse, target: NodeId = target) -> None:
                tell = me.on_pre_vote_response if is_pre_vote else me.on_vote_response
                tell(command.request.vote, target, response, self.clock(each))

            self._call(each, target, command.request, handle, answered, is_pre_vote=is_pre_vote)

    def _heartbeat(self, each: RingNode, command: SendHeartbeat) -> None:
        lease_ms = self._config.leader_lease_ms
        for target, matching in command.peers:
            request = HeartbeatRequest(command.vote, matching, command.leader_commit, lease_ms)

            def handle(peer: Engine, request_id: RequestId, now: float, request: HeartbeatRequest = request) -> None:
                peer.handle_heartbeat(request, request_id, now)

            def answered(me: Engine, response: Any, target: NodeId = target) -> None:
                me.on_heartbeat_response(
                    command.session, target, command.seq, command.sent_at, response, self.clock(each)
                )

            self._call(each, target, request, handle, answered)

    def _replicate(self, each: RingNode, command: Replicate) -> None:
        """An order in requests of a few entries each, all at once: they may overtake each other."""
        prev, start = command.prev_log_id, index_of(command.prev_log_id) + 1

        def failed(me: Engine) -> None:
            me.on_replication_failed(command.session, command.target, command.epoch, self.clock(each))

        while True:
            stop = min(command.last_index + 1, start + MAX_ENTRIES)
            entries = [each.log[index] for index in range(start, stop) if index in each.log]
            if len(entries) < stop - start:
                self.seen["entries purged before they were sent"] += 1
                self.after(0.02, partial(self._fail_later, each, each.life, failed))
                return
            request = AppendEntriesRequest(
                command.vote, prev, entries, command.leader_commit, self._config.leader_lease_ms
            )

            def handle(
                peer: Engine, request_id: RequestId, now: float, request: AppendEntriesRequest = request
            ) -> None:
                peer.handle_append_entries(request, request_id, now)

            def answered(me: Engine, response: Any) -> None:
                me.on_replication_progress(
                    command.session,
                    command.target,
                    command.epoch,
                    command.seq,
                    command.sent_at,
                    response,
                    self.clock(each),
                )
                if isinstance(response, Busy):
                    self.after(0.05, partial(self._fail_later, each, each.life, failed))

            self._call(each, command.target, request, handle, answered, failed)
            if command.single or stop > command.last_index:
                return
            prev, start = entries[-1].log_id, stop

    def _fail_later(self, each: RingNode, life: int, failed: Callable[[Engine], None]) -> None:
        if each.life == life and each.engine is not None:
            failed(each.engine)
            self.carry_out(each)

    def _replicate_snapshot(self, each: RingNode, command: ReplicateSnapshot) -> None:
        meta = each.disk.snapshot
        assert meta is not None
        request = InstallSnapshotRequest(command.vote, meta)
        self._call(
            each,
            command.target,
            request,
            lambda peer, request_id, now: peer.handle_install_snapshot(request, request_id, now),
            lambda me, response: me.on_snapshot_sent(
                command.session,
                command.target,
                command.epoch,
                command.seq,
                command.sent_at,
                meta.last_log_id,
                response,
                self.clock(each),
            ),
            lambda me: me.on_replication_failed(command.session, command.target, command.epoch, self.clock(each)),
        )

    # --- machine ----------------------------------------------------------------------------------------------------

    def _work_delay(self, each: RingNode) -> float:
        return 0.001 + self.stream(f"machine {each.id}").random() ** 3 * self.faults.machine_delay

    def _apply(self, each: RingNode, command: Commit) -> None:
        assert each.engine is not None
        # A snapshot may have been restored since the order was given.
        since = max(command.since, index_of(each.applied) + 1)
        if since != index_of(each.applied) + 1:
            raise InvariantBroken(f"S12 at {each.id}: applies {since} after {each.applied}")
        for index in range(since, command.upto.index + 1):
            entry = each.log[index]
            self.invariants.acknowledged(each, each.disk.vote, entry.log_id)  # applied only when durable here
            each.digest = crc32(entry.payload, crc32(str(entry.log_id).encode(), each.digest))
            self.invariants.applied(each, index, each.digest)
            if entry.kind == MEMBERSHIP and not decode_membership(entry.payload).is_joint:
                self.seen["uniform membership applied"] += 1
        each.applied = max_log_id(each.applied, command.upto)
        each.engine.on_applied(command.upto, self.clock(each))
        if each.engine.is_leader and index_of(each.applied) >= index_of(each.engine.noop_log_id):
            self.invariants.wrote(each, index_of(each.applied))

    def _build(self, each: RingNode) -> None:
        """The view is taken now, the bytes are published later."""
        applied, life = each.applied, each.life
        meta: SnapshotMeta | None = None
        if applied is not None and each.engine is not None:
            members = each.engine.state.membership
            held = members.effective if index_of(members.effective.log_id) <= applied.index else members.committed
            if index_of(held.log_id) <= applied.index:
                meta = SnapshotMeta(applied, held, f"{self._number:x}", sha256=f"{each.digest:x}")

        def publish() -> None:
            if each.life != life or each.engine is None:
                return
            current = each.disk.snapshot
            if meta is not None and (current is None or index_of(current.last_log_id) < index_of(meta.last_log_id)):
                self.seen["snapshot built"] += 1
                self.invariants.publishing(each, meta)
                each.disk.snapshot = meta
            each.engine.on_snapshot_built(meta, self.clock(each))
            self.carry_out(each)

        self.after(self._work_delay(each) * 3, publish)

    def _install(self, each: RingNode, life: int, command: InstallSnapshot) -> None:
        if each.life != life or each.engine is None:
            return
        meta = command.meta
        assert meta.last_log_id is not None
        if meta.last_log_id.index <= index_of(each.applied):
            raise InvariantBroken(f"S24 at {each.id}: installs {meta.last_log_id} over {each.applied}")
        self.invariants.publishing(each, meta)
        current = each.disk.snapshot
        if current is None or index_of(current.last_log_id) < index_of(meta.last_log_id):
            each.disk.snapshot = meta
        held = each.log.get(meta.last_log_id.index)
        if each.log and (held is None or held.log_id != meta.last_log_id):
            is_conflict = held is not None or any(
                known is not None and known[0] != entry.log_id
                for index, entry in each.log.items()
                for known in (self.invariants.committed.get(index),)
            )
            self.seen["snapshot over a conflicting tail" if is_conflict else "snapshot over a shorter log"] += 1
        self.seen["snapshot installed"] += 1
        self._spring("ambush_install", each)
        each.applied, each.digest = meta.last_log_id, int(meta.sha256, 16)
        self.invariants.applied(each, index_of(meta.last_log_id), each.digest)
        each.committed = max_log_id(each.committed, meta.last_log_id)

        def tell() -> None:
            if each.life == life and each.engine is not None:
                each.engine.on_snapshot_installed(meta, command.request_id, self.clock(each))
                self.carry_out(each)

        self.after(self._work_delay(each), tell)
