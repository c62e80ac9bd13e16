"""Engines alone, in a ring of seeded disks and wires: no loop, no tasks, thousands of steps in a blink.

Messages are delayed, lost, repeated and reordered; disks finish late; nodes crash and lose what was not flushed, come
back, are cut off, change the membership, build and install snapshots. One seed is one run. Every step is checked by
:class:`~.invariants.Invariants`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any, assert_never
from zlib import crc32

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
from raftkit_core.engine.log_id_list import LogIdList
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.testing.builders import membership, node, store_of
from raftkit_core.testing.simulation.invariants import Disk, Invariants
from raftkit_core.types.entry import MEMBERSHIP, Entry, decode_membership
from raftkit_core.types.ids import NodeId, RequestId
from raftkit_core.types.log_id import LogId, index_of, max_log_id
from raftkit_core.types.membership import AddNodes, ReplaceAllVoters, StoredMembership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    HeartbeatRequest,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Success,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotMeta

TICK = 0.05
TIMEOUT = 0.4
MAX_ENTRIES = 6
"""How many entries one request carries: an order of more becomes several."""


class Faults:
    """How bad it gets. Rates are per message or per second of one node."""

    def __init__(
        self,
        *,
        loss: float = 0.06,
        repeat: float = 0.04,
        delay: float = 0.04,
        disk_delay: float = 0.05,
        crashes: float = 0.12,
        cuts: float = 0.1,
        changes: float = 0.1,
    ) -> None:
        self.loss = loss
        self.repeat = repeat
        self.delay = delay
        self.disk_delay = disk_delay
        self.crashes = crashes
        self.cuts = cuts
        self.changes = changes


NO_FAULTS = Faults(loss=0.0, repeat=0.0, crashes=0.0, cuts=0.0, changes=0.0)


class RingNode:
    """One node: a disk that stays, and an engine with its lane, log and machine that a crash takes away."""

    def __init__(self, node_id: NodeId) -> None:
        self.id = node_id
        self.disk = Disk()
        self.life = 0
        self.engine: Engine | None = None
        self.forget()

    def forget(self) -> None:
        """What a crash takes: everything but the disk."""
        self.life += 1
        self.engine = None
        self.lane: deque[LogCommand] = deque()
        self.log: dict[int, Entry] = {}
        self.parked: list[tuple[int, Command]] = []
        self.requests: dict[RequestId, Callable[[Any], None]] = {}
        self.pre_votes: set[RequestId] = set()
        """Requests whose answer promises nothing."""
        self.applied: LogId | None = None
        self.digest = 0
        self.committed: LogId | None = None
        self.saved: LogId | None = None
        self.flushing = False


class EngineRing:
    """A cluster of engines. ``run`` goes on for simulated seconds; ``settle`` heals everything and waits for calm."""

    def __init__(
        self, seed: int, *, voters: int = 3, spares: int = 1, faults: Faults | None = None, single_term: bool = False
    ) -> None:
        self.random = random.Random(seed)
        self.faults = Faults() if faults is None else faults
        self.now = 0.0
        ids = [f"n{number}" for number in range(1, voters + spares + 1)]
        self.nodes = {node_id: RingNode(node_id) for node_id in ids}
        self.cut: dict[NodeId, float] = {}
        """Until when a node hears nobody and nobody hears it."""
        self.invariants = Invariants(self.nodes, single_term_leader=single_term)
        self.writes = 0
        self.steps = 0
        self._config = Config(
            snapshot_policy=LogsSinceLast(25),
            max_in_snapshot_log_to_keep=4,
            purge_batch_size=2,
            max_payload_entries=16,
            max_inflight=4,
            single_term_leader=single_term,
            pre_vote=self.random.random() < 0.7,
            storage_stall_timeout_ms=60_000,
        )
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._request_id = 0
        for each in self.nodes.values():
            self.start(each)
            self.after(TICK, partial(self._tick, each))
        self._members = membership(ids[:voters])
        self._initialize(self.nodes["n1"])

    def _initialize(self, each: RingNode) -> None:
        """Again after a crash that lost it: the same membership makes the same cluster."""
        if each.engine is not None and each.engine.state.is_pristine and each.id == "n1":
            each.engine.handle_initialize(self._members, self.now)
            self._carry_out(each)

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
        self.now = end

    def settle(self, seconds: float = 15.0) -> Engine:
        """No more faults, every node up: gives the leader once all members hold the same.

        Raises: AssertionError if that does not come about in ``seconds``.
        """
        self.faults = NO_FAULTS
        self.cut.clear()
        for each in self.nodes.values():
            self._restart(each)
        end = self.now + seconds
        while self.now < end:
            self.run(0.5)
            leader = self.leader()
            if leader is not None and self._is_calm(leader):
                return leader
        raise AssertionError(f"no calm within {seconds} s: {self.describe()}")

    def leader(self) -> Engine | None:
        """The leader of the greatest vote, if there is one."""
        leaders = [each.engine for each in self.nodes.values() if each.engine is not None and each.engine.is_leader]
        return max(leaders, key=lambda engine: engine.vote.leader_id, default=None)

    def _is_calm(self, leader: Engine) -> bool:
        last = leader.state.last_log_id
        return leader.state.committed == last and all(
            (engine := self.nodes[member].engine) is not None and engine.state.applied == last
            for member in leader.effective.nodes
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
        disk = each.disk
        snapshot = disk.snapshot
        if (
            snapshot is not None
            and snapshot.last_log_id is not None
            and not self._log_holds(disk, snapshot.last_log_id)
        ):
            last = snapshot.last_log_id
            disk.entries = {}
            disk.purged = last
        each.log = dict(disk.entries)
        each.applied = None if snapshot is None else snapshot.last_log_id
        each.digest = 0 if snapshot is None else int(snapshot.sha256 or "0", 16)
        committed = max_log_id(disk.committed, each.applied)
        base = StoredMembership() if snapshot is None else snapshot.membership
        found = [
            StoredMembership(entry.log_id, decode_membership(entry.payload))
            for index, entry in sorted(disk.entries.items())
            if entry.kind == MEMBERSHIP and index > index_of(each.applied)
        ]
        effective = [base, *found][-1]
        settled = effective if index_of(effective.log_id) <= index_of(committed) else [base, *found][-2]
        log = LogIdList(disk.purged)
        for _, entry in sorted(disk.entries.items()):
            log.extend(entry.log_id, entry.log_id)
        state = RaftState(
            vote=disk.vote,
            log=log,
            committed=committed,
            applied=each.applied,
            membership=MembershipState(settled, effective),
            snapshot=snapshot,
            largest_lease_ms=disk.lease_ms,
        )
        each.committed = each.saved = committed
        each.engine = Engine(EngineConfig(each.id, store_of(each.id), self._config), state, self.random)
        each.engine.startup(self.now)
        self._carry_out(each)

    @staticmethod
    def _log_holds(disk: Disk, log_id: LogId) -> bool:
        entry = disk.entries.get(log_id.index)
        return log_id.index <= index_of(disk.purged) or (entry is not None and entry.log_id == log_id)

    def crash(self, each: RingNode) -> None:
        """What is not flushed is lost; a prefix of the lane may have reached the disk all the same."""
        for _ in range(self.random.randrange(len(each.lane) + 1) if each.lane else 0):
            self._write(each, each.lane.popleft())
        each.forget()
        self.after(self.random.uniform(0.02, 1.5), lambda: self._restart(each))

    def _restart(self, each: RingNode) -> None:
        if each.engine is None:
            self.start(each)
            self._initialize(each)

    def _tick(self, each: RingNode) -> None:
        """A tick of the node, and of fate."""
        self.after(TICK * self.random.uniform(0.8, 1.2), lambda: self._tick(each))
        engine, faults, draw = each.engine, self.faults, self.random.random
        if engine is None:
            return
        if draw() < faults.crashes * TICK:
            self.crash(each)
            return
        if draw() < faults.cuts * TICK:
            self.cut[each.id] = self.now + self.random.uniform(0.1, 2.5)
        engine.handle_tick(self.now)
        self._carry_out(each)
        if engine.is_leader:
            self._client(each, engine)

    def _client(self, each: RingNode, engine: Engine) -> None:
        draw = self.random.random()
        if draw < 0.3:
            self.writes += 1
            engine.handle_client_write([b"%d" % self.writes] * self.random.randint(1, 9), self.now)
        elif draw < 0.33:
            engine.handle_read([0], False, self.now)
        elif draw < 0.33 + self.faults.changes * TICK:
            self._change(engine)
        elif draw > 1 - self.faults.changes * TICK:
            engine.handle_transfer_leader(None, 0, self.now)
        self._carry_out(each)

    def _change(self, engine: Engine) -> None:
        """Join a spare, then any set of voters; a joint membership is always left first."""
        members = engine.effective
        change: AddNodes | ReplaceAllVoters
        missing = [each for each in self.nodes if each not in members.nodes]
        if members.is_joint:
            change = ReplaceAllVoters(members.configs[-1])
        elif missing:
            change = AddNodes({missing[0]: node(missing[0])})
        else:
            size = self.random.randint(max(1, len(self.nodes) - 2), len(self.nodes))
            change = ReplaceAllVoters(tuple(self.random.sample(sorted(members.nodes), size)))
        engine.handle_change_membership(change, retain=True, force=False, store_ids={}, now=self.now)

    # --- wires ------------------------------------------------------------------------------------------------------

    def _is_cut(self, *ids: NodeId) -> bool:
        return any(self.cut.get(node_id, 0.0) > self.now for node_id in ids)

    def _call(
        self,
        source: RingNode,
        target: NodeId,
        handle: Callable[[Engine, RequestId, float], None],
        answered: Callable[[Engine, Any], None],
        failed: Callable[[Engine], None] | None = None,
    ) -> None:
        """One request with one answer or one failure, delayed, perhaps lost, perhaps arriving twice."""
        life, done = source.life, [False]
        peer = self.nodes[target]

        def conclude(then: Callable[[Engine], None] | None) -> None:
            if done[0] or source.life != life or source.engine is None:
                return
            done[0] = True
            if then is not None:
                then(source.engine)
                self._carry_out(source)

        def arrive() -> None:
            if peer.engine is None or self._is_cut(source.id, target):
                return
            self._request_id += 1
            peer.requests[self._request_id] = reply
            handle(peer.engine, self._request_id, self.now)
            self._carry_out(peer)

        def reply(response: Any) -> None:
            if self.random.random() >= self.faults.loss and not self._is_cut(source.id, target):
                if isinstance(response, BaseException):
                    self.after(self._delay(), lambda: conclude(failed))
                else:
                    self.after(self._delay(), lambda: conclude(lambda engine: answered(engine, response)))

        if self.random.random() >= self.faults.loss:
            self.after(self._delay(), arrive)
        if self.random.random() < self.faults.repeat:
            self.after(5 * self._delay(), arrive)
        self.after(TIMEOUT, lambda: conclude(failed))

    def _delay(self) -> float:
        return 0.001 + self.random.random() ** 3 * self.faults.delay

    # --- commands ---------------------------------------------------------------------------------------------------

    def _carry_out(self, each: RingNode) -> None:
        """Run what the engine ordered; what waits for the lane is parked."""
        engine = each.engine
        assert engine is not None
        for command in engine.take_commands():
            when = getattr(command, "when", 0)
            if when > engine.flushed_io:
                each.parked.append((when, command))
            else:
                self._run(each, engine, command)
        self.invariants.check_pointers(each)
        if each.lane and not each.flushing:
            each.flushing = True
            life = each.life
            self.after(0.001 + self.random.random() ** 2 * self.faults.disk_delay, lambda: self._flush(each, life))

    def _run(self, each: RingNode, engine: Engine, command: Command) -> None:
        match command:
            case SaveCommitted(committed=committed):
                self.invariants.committing(each, each.committed, committed)
                each.committed = committed
            case AppendInputEntries(entries=entries):
                each.log.update({entry.index: entry for entry in entries})
                each.lane.append(command)
            case DeleteConflictLog(since=since):
                each.log = {index: entry for index, entry in each.log.items() if index < since}
                each.lane.append(command)
            case PurgeLog(upto=upto):
                each.log = {index: entry for index, entry in each.log.items() if index > upto.index}
                each.lane.append(command)
            case SaveVote() | SaveLease():
                each.lane.append(command)
            case SendVote() | SendPreVote():
                self._send_vote(each, command)
            case Replicate():
                self._replicate(each, command)
            case ReplicateSnapshot():
                self._replicate_snapshot(each, command)
            case SendHeartbeat() | ReplicateCommitted() | ConfirmRead():
                if command.session == engine.session:
                    self._heartbeat(each, command)
            case SendTransferLeader():
                self._call(
                    each,
                    command.target,
                    lambda peer, rid, now: peer.handle_transfer_request(command.request, rid, now),
                    lambda me, answer: me.on_transfer_response(command.session, command.target, answer, self.now),
                    lambda me: me.on_transfer_response(command.session, command.target, None, self.now),
                )
            case BecomeLeader():
                self.invariants.established(each, command.vote, engine.effective)
            case Commit():
                self._apply(each, command)
            case BuildSnapshot():
                self._build(each)
            case RetireStore(reason=reason):
                raise AssertionError(f"{each.id} is told that it lost writes, but no disk here loses any: {reason}")
            case InstallSnapshot():
                life = each.life
                self.after(self._delay(), lambda: self._install(each, life, command))
            case Respond():
                self._respond(each, engine, command)
            case QuitLeader() | RebuildReplicationStreams():
                pass
            case _:
                assert_never(command)

    def _respond(self, each: RingNode, engine: Engine, command: Respond) -> None:
        reply = each.requests.pop(command.request_id, None)
        if reply is None or (command.under is not None and command.under != engine.vote):
            return
        match command.response:
            case VoteResponse(vote=vote, granted=True):
                if command.request_id not in each.pre_votes:
                    self.invariants.granted(each, vote)
            case Success(matching=matching):
                assert command.under is not None
                self.invariants.acknowledged(each, command.under, matching)
            case InstallSnapshotResponse(vote=vote):
                self.invariants.acknowledged(each, vote, None)
            case _:
                pass
        reply(command.response)

    # --- disk -------------------------------------------------------------------------------------------------------

    def _flush(self, each: RingNode, life: int) -> None:
        """Some of the lane, in order, reaches the disk."""
        if each.life != life or each.engine is None:
            return
        each.flushing = False
        io_id = 0
        for _ in range(self.random.randint(1, len(each.lane))):
            written = each.lane.popleft()
            self._write(each, written)
            io_id = getattr(written, "io_id", io_id)
        each.engine.on_log_flushed(io_id, self.now)
        released = [command for when, command in each.parked if when <= io_id]
        each.parked = [parked for parked in each.parked if parked[0] > io_id]
        for command in released:
            self._run(each, each.engine, command)
        self._carry_out(each)

    def _write(self, each: RingNode, command: LogCommand) -> None:
        disk = each.disk
        match command:
            case SaveVote(vote=vote):
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
            case SaveCommitted():
                pass
        committed = each.committed
        if committed is not None and committed.index <= index_of(disk.last_log_id) and self.random.random() < 0.5:
            disk.committed = committed  # it rides with a write, or is lost

    # --- requests ---------------------------------------------------------------------------------------------------

    def _send_vote(self, each: RingNode, command: SendVote | SendPreVote) -> None:
        is_pre_vote = isinstance(command, SendPreVote)
        store_id = store_of(each.id)
        for target in command.targets:

            def handle(peer: Engine, request_id: RequestId, now: float) -> None:
                ask = peer.handle_pre_vote if is_pre_vote else peer.handle_vote
                if is_pre_vote:
                    self.nodes[peer.config.id].pre_votes.add(request_id)
                ask(command.request, store_id, request_id, now)

            def answered(me: Engine, response: VoteResponse, target: NodeId = target) -> None:
                tell = me.on_pre_vote_response if is_pre_vote else me.on_vote_response
                tell(command.request.vote, target, response, self.now)

            self._call(each, target, handle, answered)

    def _heartbeat(self, each: RingNode, command: SendHeartbeat) -> None:
        lease_ms = self._config.leader_lease_ms
        for target, matching in command.peers:
            request = HeartbeatRequest(command.vote, matching, command.leader_commit, lease_ms)

            def handle(peer: Engine, request_id: RequestId, now: float, request: HeartbeatRequest = request) -> None:
                peer.handle_heartbeat(request, request_id, now)

            def answered(me: Engine, response: Any, target: NodeId = target) -> None:
                me.on_heartbeat_response(command.session, target, command.seq, command.sent_at, response, self.now)

            self._call(each, target, handle, answered)

    def _replicate(self, each: RingNode, command: Replicate) -> None:
        """An order in requests of a few entries each, all at once: they may overtake each other."""
        prev, start = command.prev_log_id, index_of(command.prev_log_id) + 1

        def failed(me: Engine) -> None:
            me.on_replication_failed(command.session, command.target, command.epoch, self.now)

        while True:
            stop = min(command.last_index + 1, start + MAX_ENTRIES)
            entries = [each.log[index] for index in range(start, stop) if index in each.log]
            if len(entries) < stop - start:
                self.after(0.02, lambda: self._fail_later(each, each.life, failed))  # purged meanwhile
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
                    self.now,
                )
                if isinstance(response, Busy):
                    self.after(0.05, lambda: self._fail_later(each, each.life, failed))

            self._call(each, command.target, handle, answered, failed)
            if command.single or stop > command.last_index:
                return
            prev, start = entries[-1].log_id, stop

    def _fail_later(self, each: RingNode, life: int, failed: Callable[[Engine], None]) -> None:
        if each.life == life and each.engine is not None:
            failed(each.engine)
            self._carry_out(each)

    def _replicate_snapshot(self, each: RingNode, command: ReplicateSnapshot) -> None:
        meta = each.disk.snapshot
        assert meta is not None
        request = InstallSnapshotRequest(command.vote, meta)
        self._call(
            each,
            command.target,
            lambda peer, request_id, now: peer.handle_install_snapshot(request, request_id, now),
            lambda me, response: me.on_snapshot_sent(
                command.session,
                command.target,
                command.epoch,
                command.seq,
                command.sent_at,
                meta.last_log_id,
                response,
                self.now,
            ),
            lambda me: me.on_replication_failed(command.session, command.target, command.epoch, self.now),
        )

    # --- machine ----------------------------------------------------------------------------------------------------

    def _apply(self, each: RingNode, command: Commit) -> None:
        assert each.engine is not None
        # A snapshot may have been restored since the order was given.
        since = max(command.since, index_of(each.applied) + 1)
        assert since == index_of(each.applied) + 1, f"{each.id} applies {since} after {each.applied}"
        for index in range(since, command.upto.index + 1):
            entry = each.log[index]
            self.invariants.acknowledged(each, each.disk.vote, entry.log_id)  # applied only when durable here
            each.digest = crc32(entry.payload, crc32(str(entry.log_id).encode(), each.digest))
            self.invariants.applied(each, index, each.digest)
        each.applied = max_log_id(each.applied, command.upto)
        each.engine.on_applied(command.upto, self.now)

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
                each.disk.snapshot = meta
            each.engine.on_snapshot_built(meta, self.now)
            self._carry_out(each)

        self.after(self._delay() * 3, publish)

    def _install(self, each: RingNode, life: int, command: InstallSnapshot) -> None:
        if each.life != life or each.engine is None:
            return
        meta = command.meta
        current = each.disk.snapshot
        if current is None or index_of(current.last_log_id) < index_of(meta.last_log_id):
            each.disk.snapshot = meta
        each.applied, each.digest = meta.last_log_id, int(meta.sha256, 16)
        self.invariants.applied(each, index_of(meta.last_log_id), each.digest)
        each.committed = max_log_id(each.committed, meta.last_log_id)

        def tell() -> None:
            if each.life == life and each.engine is not None:
                each.engine.on_snapshot_installed(meta, command.request_id, self.now)
                self._carry_out(each)

        self.after(self._delay(), tell)
