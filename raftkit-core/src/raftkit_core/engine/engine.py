"""The engine: facts come in (``handle_*`` from outside, ``on_*`` when an effect has finished), orders go out.

Pure and synchronous: ``(state, event, now) → commands``. ``now`` is the node's monotonic time in seconds. After every
call the caller takes :meth:`Engine.take_commands` and carries them out in order. See :mod:`raftkit_core.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from raftkit_core.engine.commands import Command, Respond
from raftkit_core.engine.engine_config import EngineConfig
from raftkit_core.engine.handlers.establish import EstablishHandler
from raftkit_core.engine.handlers.following import FollowingHandler
from raftkit_core.engine.handlers.leader import LeaderHandler
from raftkit_core.engine.handlers.log import LogHandler
from raftkit_core.engine.handlers.membership import next_membership
from raftkit_core.engine.handlers.replication import ReplicationHandler
from raftkit_core.engine.handlers.server_state import ServerStateHandler, forward_to_leader
from raftkit_core.engine.handlers.snapshot import SnapshotHandler
from raftkit_core.engine.handlers.vote import VoteHandler
from raftkit_core.engine.leader import PendingRead, Transfer
from raftkit_core.engine.parts import EngineParts
from raftkit_core.engine.progress import ProgressEntry
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.errors import (
    InProgress,
    NotAllowed,
    NotInMembers,
    QuorumNotEnough,
    QuorumWouldBeLost,
    RaftError,
    TransferFailed,
)
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.entropy import Entropy
from raftkit_core.types.entry import MEMBERSHIP, NORMAL, Entry, encode_membership
from raftkit_core.types.ids import IoId, NodeId, RequestId
from raftkit_core.types.log_id import LogId, index_of, log_id_lt, max_log_id
from raftkit_core.types.membership import ChangeMembers, Membership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    HeartbeatRequest,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    TransferLeaderRequest,
    TransferLeaderResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import ZERO_LEADER_ID, Vote


class Engine:
    """One node's Raft. Holds no clock, no randomness of its own, no task, no callback."""

    def __init__(self, config: EngineConfig, state: RaftState, entropy: Entropy) -> None:
        parts = self._parts = EngineParts(config, state, entropy)
        self.commands: list[Command] = parts.output.queue
        """Orders since they were last taken, to be carried out in this sequence."""
        self.take_commands: Callable[[], list[Command]] = parts.output.take
        """Take them: they are given once."""
        self._server_state = ServerStateHandler(parts)
        self._log = LogHandler(parts)
        self._vote = VoteHandler(parts, self._server_state)
        self._snapshot = SnapshotHandler(parts, self._log)
        self._replication = ReplicationHandler(parts, self._vote, self._snapshot)
        self._leader = LeaderHandler(parts, self._log, self._vote, self._replication, self._server_state)
        self._establish = EstablishHandler(parts, self._server_state, self._vote, self._leader, self._replication)
        self._following = FollowingHandler(
            parts, self._server_state, self._vote, self._log, self._replication, self._snapshot
        )

    # --- looking in -------------------------------------------------------------------------------------------------

    @property
    def config(self) -> EngineConfig:
        return self._parts.config

    @property
    def state(self) -> RaftState:
        """What the node believes; to be read only."""
        return self._parts.state

    @property
    def vote(self) -> Vote:
        return self._parts.state.vote

    @property
    def flushed_io(self) -> IoId:
        return self._parts.state.io.flushed_io

    @property
    def is_leader(self) -> bool:
        return self._parts.leader is not None

    @property
    def session(self) -> int:
        """The leadership in force; 0 for none."""
        return 0 if self._parts.leader is None else self._parts.leader.session

    @property
    def known_leader(self) -> NodeId | None:
        return self._parts.known_leader()

    @property
    def effective(self) -> Membership:
        return self._parts.effective

    @property
    def needs_rejoin(self) -> bool:
        return self._parts.needs_rejoin

    @property
    def is_installing(self) -> bool:
        return self._parts.installing is not None

    @property
    def progress(self) -> Mapping[NodeId, ProgressEntry] | None:
        """The leader's view of its peers."""
        return None if self._parts.leader is None else self._parts.leader.progress

    def acked_at(self, node_id: NodeId) -> float | None:
        """When the last message that ``node_id`` answered was sent; None for never."""
        return None if self._parts.leader is None else self._parts.leader.acked_at.get(node_id)

    def last_quorum_acked(self, now: float) -> float | None:
        """Send time of the last messages a quorum answered; None if not the leader or never."""
        if self._parts.leader is None:
            return None
        acked = self._vote.last_quorum_acked(now)
        return None if acked == float("-inf") else acked

    @property
    def noop_log_id(self) -> LogId | None:
        """The first entry of this leadership; None if not the leader."""
        return None if self._parts.leader is None else self._parts.leader.noop_log_id

    def hears_leader(self, now: float) -> bool:
        """Whether a leader is at work here: this node with a quorum, or one whose lease it acknowledged."""
        return now < self._parts.state.hold_until or self._vote.leads_with_quorum(now)

    def read_lease_until(self, now: float) -> float:
        """Until when reads by lease are safe: from the *send* time of what a quorum answered, shortened by drift."""
        leader = self._parts.leader
        if leader is None or not leader.reads_by_lease:
            return float("-inf")
        acked = self._vote.last_quorum_acked(now)
        return acked + self._parts.config.leader_lease * (1 - self._parts.config.max_clock_drift)

    def quorum_lease_until(self, now: float) -> float:
        """Until when a quorum's answers let this node propose; minus infinity if it does not lead."""
        return float("-inf") if self._parts.leader is None else self._vote.quorum_lease_until(now)

    def is_foreign_store(self, node_id: NodeId, store_id: str) -> bool:
        """Whether the membership binds ``node_id`` to another store than ``store_id``."""
        return self._parts.is_foreign_store(node_id, store_id)

    def log_id_at(self, index: int) -> LogId | None:
        return self._parts.state.log.get(index)

    # --- life -------------------------------------------------------------------------------------------------------

    def startup(self, now: float) -> None:
        """Begin as follower or learner, whatever vote was loaded: a process never leads under a leader id of an earlier
        one, because it may have sent entries it had not flushed."""
        parts = self._parts
        state = parts.state
        state.check()
        if not state.is_pristine:
            # It may have acknowledged a lease in its last moment: withhold for the largest one it ever did.
            state.hold_until = now + state.largest_lease_ms / 1000
        parts.redraw_election_timeout(now)
        self._server_state.refresh()
        self._replication.apply_durable()
        if parts.effective.voter_ids == (parts.config.id,) and parts.config.enable_elect:
            self._campaign_if_allowed(now)

    def handle_tick(self, now: float) -> None:
        """Time has passed: heartbeats, check-quorum and deadlines of a leader; campaigns of the others."""
        if self._parts.leader is not None:
            self._tick_leader(now)
        elif self._parts.config.enable_elect and now >= self._election_due(now):
            self._campaign_if_allowed(now)
        self._snapshot.go_on_purging(now)

    def _election_due(self, now: float) -> float:
        parts = self._parts
        if parts.effective.voter_ids == (parts.config.id,):
            return now if parts.candidate is None else float("inf")
        # Only after a campaign that met a longer log: let the better candidate go first (§6 item 39).
        extra = parts.config.election_timeout_max if parts.seen_greater_log else 0.0
        return parts.state.election_deadline + extra

    def _campaign_if_allowed(self, now: float) -> None:
        if self._establish.may_campaign(now):
            self._parts.seen_greater_log = False
            self._establish.campaign(now)

    def handle_elect(self, now: float) -> None:
        """Campaign on request. Nothing happens on a leader, on a learner, and while votes are withheld."""
        self._campaign_if_allowed(now)

    def _tick_leader(self, now: float) -> None:
        parts = self._parts
        leader = parts.leader
        assert leader is not None
        config = parts.config
        if parts.needs_rejoin:
            self._server_state.step_down("this store is not the one the membership names", now)
            return
        stalled = parts.state.io.oldest_submitted_at()
        if stalled is not None and now - stalled > config.storage_stall_timeout:
            self._server_state.step_down(f"the storage has not finished a write for {now - stalled:.1f} s", now)
            return
        if now >= self._vote.quits_at(now):
            self._server_state.step_down("a quorum has not answered for a lease and an election timeout", now)
            return
        if self._is_removed():
            self._hand_over_on_removal()
            self._server_state.step_down("this node was removed from the membership", now)
            return
        if config.enable_heartbeat and now >= leader.next_heartbeat:
            leader.next_heartbeat += config.heartbeat_interval
            if leader.next_heartbeat <= now:
                # On the grid, missed beats skipped: no burst after a pause, no drift (§6 item 50).
                missed = int((now - leader.next_heartbeat) / config.heartbeat_interval) + 1
                leader.next_heartbeat += missed * config.heartbeat_interval
            self._replication.heartbeat(now)
        self._tick_reads(now)
        self._replication.drop_left(now)
        if leader.transfer is not None and now >= leader.transfer.deadline:
            self._fail_transfer(f"{leader.transfer.target} did not take over in time")

    def _is_removed(self) -> bool:
        """A removed leader leads on until its removal is committed and applied here (§6 item 42)."""
        state = self._parts.state
        effective = state.membership.effective
        return (
            self._parts.config.id not in effective.membership.nodes
            and state.membership.is_settled
            and index_of(state.applied) >= index_of(effective.log_id)
        )

    def _hand_over_on_removal(self) -> None:
        """The best voter campaigns at once instead of after a timeout."""
        target = self._best_transfer_target()
        leader = self._parts.leader
        assert leader is not None, "only a leader hands over"
        # A hand-over that a client asked for goes on as it is.
        if target is not None and leader.transfer is None:
            leader.transfer = Transfer(target, None, float("inf"))
            self._replication.start_transfer()

    def _tick_reads(self, now: float) -> None:
        """Reads that no quorum confirms end; a round whose answers are late is repeated."""
        parts = self._parts
        leader = parts.leader
        assert leader is not None
        while leader.reads and now - leader.reads[0].arrived_at >= parts.config.election_timeout_max:
            read = leader.reads.popleft()
            refusal = self._leader.refusal(now)
            if not isinstance(refusal, QuorumNotEnough):
                refusal = QuorumNotEnough(
                    "no quorum confirmed the leader in time; nothing was read", hint="look at: raftkit status"
                )
            parts.output.push(Respond(0, read.request_id, refusal))
        if leader.reads and now - leader.read_round_at >= parts.config.heartbeat_interval:
            self._replication.send_read_round(leader, now)

    # --- from clients -----------------------------------------------------------------------------------------------

    def handle_initialize(self, membership: Membership, now: float) -> RaftError | None:
        """Write the first membership at index 0 and campaign. None: done; the leader is still to be elected."""
        parts = self._parts
        state = parts.state
        if not state.is_pristine:
            return NotAllowed(
                f"{parts.config.id} is initialized already: last log {state.log.last}, vote {state.vote}",
                hint="look at it: raftkit status",
            )
        if not membership.is_voter(parts.config.id):
            return NotInMembers(
                f"{parts.config.id} is not among the voters {', '.join(membership.voter_ids)}",
                hint=f"ask one of them, or add {parts.config.id}",
            )
        bound = membership.nodes[parts.config.id].store_id
        if bound is not None and bound != parts.config.store_id:
            return NotInMembers(
                f"the membership names store {bound} for {parts.config.id}, this is store {parts.config.store_id}",
                hint="leave the store id out: initialize asks every member for its own",
            )
        log_id = LogId(ZERO_LEADER_ID, 0)
        entry = Entry(log_id, 0, MEMBERSHIP, encode_membership(membership))
        for stored in self._log.append([entry], now):
            state.membership.append(stored)
        self._server_state.refresh()
        self._establish.elect(now)
        return None

    def handle_client_write(
        self, payloads: list[bytes], now: float, condition: WriteCondition | None = None
    ) -> LogId | RaftError:
        """Propose a batch of envelopes. Gives the log id of the first (the others follow), or the refusal of all."""
        return self._leader.write(NORMAL, payloads, now, condition)

    def handle_change_membership(
        self,
        change: ChangeMembers,
        *,
        retain: bool,
        force: bool,
        store_ids: Mapping[NodeId, str],
        now: float,
    ) -> LogId | RaftError:
        """Propose the next membership. Leader first: a follower never judges a change."""
        parts = self._parts
        refusal = self._leader.refusal(now)
        if refusal is not None:
            return refusal
        leader = parts.leader
        assert leader is not None
        if log_id_lt(parts.state.committed, leader.noop_log_id):
            return InProgress("the leader's own first entry is not committed yet", hint="wait a moment and try again")
        membership = next_membership(parts.state.membership, change, retain=retain, store_ids=store_ids)
        if isinstance(membership, RaftError):
            return membership
        if not force:
            lost = self._lost_quorum(membership, now)
            if lost is not None:
                return lost
        return self._leader.write(MEMBERSHIP, [encode_membership(membership)], now)

    def _lost_quorum(self, membership: Membership, now: float) -> QuorumWouldBeLost | None:
        """A configuration whose majority does not answer now would stop the cluster as soon as it is appended."""
        parts = self._parts
        leader = parts.leader
        assert leader is not None
        horizon = now - parts.config.election_timeout_max
        answering = {parts.config.id} | {node for node, at in leader.acked_at.items() if at >= horizon}
        for config in membership.configs:
            reached = [voter for voter in config if voter in answering]
            if 2 * len(reached) <= len(config):
                silent = ", ".join(voter for voter in config if voter not in answering)
                return QuorumWouldBeLost(
                    f"of the voters {', '.join(config)} only {len(reached)} answer; silent: {silent}",
                    hint="start them first, or force the change: --force, force=True",
                )
        return None

    def handle_read(self, request_ids: Sequence[RequestId], by_lease: bool, now: float) -> None:
        """Answer each with the log id after which a local read is linearizable, once the leader is confirmed.

        Reads join only messages that leave after they arrived (openraft.md §2.14, §6 item 6)."""
        parts = self._parts
        leader = parts.leader
        if leader is None:
            for request_id in request_ids:
                parts.output.push(Respond(0, request_id, forward_to_leader(parts)))
            return
        read_log_id = max_log_id(parts.state.committed, leader.noop_log_id)
        assert read_log_id is not None
        if by_lease and now < self.read_lease_until(now):
            for request_id in request_ids:
                parts.output.push(Respond(0, request_id, read_log_id))
            return
        if by_lease and now >= self._vote.quorum_lease_until(now):
            # Before the first quorum of answers, near its end and after a hand-over a round of messages can still
            # confirm the leader; a leader that nobody answers any more is not asked to.
            for request_id in request_ids:
                parts.output.push(Respond(0, request_id, self._leader.no_quorum(leader, now)))
            return
        for request_id in request_ids:
            leader.reads.append(PendingRead(request_id, read_log_id, leader.seq, now))
        self._replication.confirm_reads(now)

    def handle_transfer_leader(self, to: NodeId | None, request_id: RequestId, now: float) -> None:
        """Hand leadership over; answered when the target was asked to campaign. Ends reads by lease for this leader."""
        parts = self._parts
        leader = parts.leader
        refusal = self._leader.refusal(now)
        if leader is None or refusal is not None:
            parts.output.push(Respond(0, request_id, refusal))
            return
        target = self._best_transfer_target() if to is None else to
        if target == parts.config.id:
            parts.output.push(Respond(0, request_id, target))
            return
        if target is None or target not in leader.progress or not parts.effective.is_voter(target):
            message = "there is no other voter" if target is None else f"{target} is not a voter"
            hint = "look at: raftkit member list"
            parts.output.push(Respond(0, request_id, TransferFailed(message, hint=hint, retryable=False)))
            return
        leader.reads_by_lease = False
        leader.transfer = Transfer(target, request_id, now + parts.config.election_timeout_max)
        self._replication.start_transfer()

    def _best_transfer_target(self) -> NodeId | None:
        """The other voter that has matched most."""
        leader = self._parts.leader
        assert leader is not None, "only a leader hands over"
        voters = [voter for voter in self._parts.effective.voter_ids if voter in leader.progress]
        return max(voters, key=lambda voter: (index_of(leader.progress[voter].matching), voter), default=None)

    def on_transfer_response(
        self, session: int, target: NodeId, response: TransferLeaderResponse | None, now: float
    ) -> None:
        """The target answered (None: it did not). A refusal ends the hand-over and writes go on."""
        leader = self._parts.leader
        if leader is None or leader.session != session or leader.transfer is None or leader.transfer.target != target:
            return
        if response is None or not response.accepted:
            self._fail_transfer(f"{target} refused to take over")

    def _fail_transfer(self, reason: str) -> None:
        leader = self._parts.leader
        assert leader is not None
        assert leader.transfer is not None
        transfer = leader.transfer
        leader.transfer = None
        if not transfer.sent and transfer.request_id is not None:
            self._parts.output.push(Respond(0, transfer.request_id, TransferFailed(reason)))

    def handle_trigger_snapshot(self) -> None:
        """Build a snapshot now."""
        self._snapshot.trigger()

    def handle_trigger_purge(self, index: int, now: float) -> None:
        """Purge up to ``index``, never beyond the snapshot."""
        self._snapshot.request_purge(index)
        self._snapshot.try_purge(now)

    def handle_trigger_heartbeat(self, now: float) -> None:
        """Send heartbeats now, if this node leads."""
        if self._parts.leader is not None:
            self._replication.heartbeat(now)

    def handle_step_down(self, reason: str, now: float) -> None:
        """Give up leadership without IO; the vote stays."""
        self._server_state.step_down(reason, now)

    # --- from peers -------------------------------------------------------------------------------------------------

    def handle_append_entries(self, request: AppendEntriesRequest, request_id: RequestId, now: float) -> None:
        self._following.handle_append(request, request_id, now)

    def handle_heartbeat(self, request: HeartbeatRequest, request_id: RequestId, now: float) -> None:
        self._following.handle_heartbeat(request, request_id, now)

    def handle_vote(self, request: VoteRequest, store_id: str, request_id: RequestId, now: float) -> None:
        self._vote.handle_vote_request(request, store_id, request_id, now)

    def handle_pre_vote(self, request: VoteRequest, store_id: str, request_id: RequestId, now: float) -> None:
        self._vote.handle_pre_vote_request(request, store_id, request_id, now)

    def handle_install_snapshot(self, request: InstallSnapshotRequest, request_id: RequestId, now: float) -> None:
        """All bytes of the snapshot are here and checked."""
        self._following.handle_install_snapshot(request, request_id, now)

    def handle_transfer_request(self, request: TransferLeaderRequest, request_id: RequestId, now: float) -> None:
        """The leader wants this node to lead: campaign at once, if it still is the leader and the log is all here,
        durably. The campaign carries the leader's vote as proof: it skips the hold of voters that still follow it."""
        parts = self._parts
        state = parts.state
        accepted = (
            request.vote.committed
            and request.vote == state.vote
            and request.vote.node_id != parts.config.id
            and parts.is_voter
            and not parts.needs_rejoin
            and parts.leader is None
            and parts.installing is None
            and not log_id_lt(state.io.flushed_log_id, request.last_log_id)
        )
        parts.output.push(Respond(0, request_id, TransferLeaderResponse(parts.config.store_id, accepted)))
        if accepted:
            self._establish.elect(now, transfer_of=request.vote)

    # --- finished effects -------------------------------------------------------------------------------------------

    def on_log_flushed(self, io_id: IoId, now: float) -> None:
        """Every write up to ``io_id`` is durable: own grant, own acknowledgement, and what may be applied."""
        parts = self._parts
        state = parts.state
        state.io.flush(io_id)
        if parts.candidate is not None:
            self._establish.on_own_vote_flushed(now)
        if parts.leader is not None:
            self._replication.try_commit(parts.leader, now)
        if state.submitted is not state.committed:
            self._replication.apply_durable()
        if self._snapshot.step_io:
            self._snapshot.go_on_purging(now)

    def on_commit_notice_due(self, now: float) -> None:
        """A moment has passed since ``ReplicateCommitted``: peers that have not heard of that commit are told."""
        leader = self._parts.leader
        if leader is not None and leader.owes_notice:
            self._replication.tell_committed(leader.noticed_commit, now)

    def handle_tell_committed(self, now: float) -> None:
        """Peers that have not heard of what is committed are told at once: somebody will look there."""
        if self._parts.leader is not None:
            self._replication.tell_committed(index_of(self._parts.state.committed), now)

    def on_applied(self, log_id: LogId, now: float) -> None:
        """The state machine has applied everything up to ``log_id``."""
        state = self._parts.state
        applied = state.applied
        if applied is None or log_id.index > applied.index:
            state.applied = log_id
            if self._snapshot.looks_at_applied:
                self._snapshot.on_applied(now)

    def on_vote_response(self, sender: Vote, target: NodeId, response: VoteResponse, now: float) -> None:
        """``sender`` is the vote that was asked for."""
        self._establish.handle_vote_response(sender, target, response, now)

    def on_pre_vote_response(self, sender: Vote, target: NodeId, response: VoteResponse, now: float) -> None:
        self._establish.handle_pre_vote_response(sender, target, response, now)

    def on_replication_progress(
        self,
        session: int,
        target: NodeId,
        epoch: int,
        seq: int,
        sent_at: float,
        response: AppendEntriesResponse,
        now: float,
    ) -> None:
        self._replication.on_append_response(session, target, epoch, seq, sent_at, response, now)

    def on_replication_failed(self, session: int, target: NodeId, epoch: int, now: float) -> None:
        """A request failed, and any back-off is over."""
        self._replication.on_failure(session, target, epoch, now)

    def on_heartbeat_response(
        self, session: int, target: NodeId, seq: int, sent_at: float, response: AppendEntriesResponse, now: float
    ) -> None:
        self._replication.on_heartbeat_response(session, target, seq, sent_at, response, now)

    def on_snapshot_sent(
        self,
        session: int,
        target: NodeId,
        epoch: int,
        seq: int,
        sent_at: float,
        installed: LogId | None,
        response: InstallSnapshotResponse,
        now: float,
    ) -> None:
        """A snapshot transfer ended with an answer; a greater vote in it ends this leadership."""
        parts = self._parts
        if parts.leader is None or parts.leader.session != session:
            return
        if parts.is_foreign_store(target, response.store_id):
            return
        if response.vote != parts.leader.vote:
            refused_by = response.vote.as_uncommitted()
            if parts.accepts(refused_by):
                self._vote.update_vote(refused_by, now)
            return
        self._replication.on_snapshot_sent(target, epoch, installed, now)

    def on_snapshot_built(self, meta: SnapshotMeta | None, now: float) -> None:
        """A build ended: with a published snapshot, or with nothing."""
        self._snapshot.on_built(meta, now)
        if self._parts.leader is not None:
            self._replication.initiate(now)

    def on_snapshot_install_failed(self, request_id: RequestId, error: RaftError) -> None:
        """The received bytes are not what the leader announced: nothing was changed."""
        self._following.on_snapshot_install_failed(request_id, error)

    def on_snapshot_installed(self, meta: SnapshotMeta, request_id: RequestId, now: float) -> None:
        """The snapshot is published and the machine restored."""
        self._following.on_snapshot_installed(meta, request_id, now)
