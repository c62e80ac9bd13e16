"""Replication: what to send to whom, what the answers mean, and when an entry is committed (openraft.md §2.7)."""

from __future__ import annotations

from typing import Final

from raftkit_core.engine.commands import (
    Commit,
    ConfirmRead,
    RebuildReplicationStreams,
    Replicate,
    ReplicateCommitted,
    ReplicateSnapshot,
    Respond,
    SendHeartbeat,
    SendTransferLeader,
)
from raftkit_core.engine.handlers.snapshot import SnapshotHandler
from raftkit_core.engine.handlers.vote import VoteHandler
from raftkit_core.engine.inflight import Inflight
from raftkit_core.engine.leader import Leader
from raftkit_core.engine.parts import EngineParts
from raftkit_core.engine.progress import PIPELINE, REVERTED, ProgressEntry, ProgressState
from raftkit_core.engine.quorum import quorum_log_id, quorum_value
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import Node
from raftkit_core.types.messages import (
    AppendEntriesResponse,
    Conflict,
    HigherVote,
    Success,
    TransferLeaderRequest,
)

NEVER: Final = float("-inf")


class ReplicationHandler:
    def __init__(self, parts: EngineParts, vote: VoteHandler, snapshot: SnapshotHandler) -> None:
        self._parts = parts
        self._vote = vote
        self._snapshot = snapshot

    # --- streams ----------------------------------------------------------------------------------------------------

    def rebuild(self, now: float) -> None:
        """Make progress fit the effective membership: known peers keep what they matched, removed ones linger for two
        timeouts so that they can learn of their removal."""
        parts = self._parts
        leader = self._leader()
        leader.membership_since = now
        leader.quorum_known_until = now
        nodes = parts.effective.nodes
        for node_id, node in nodes.items():
            if node_id == parts.config.id:
                continue
            entry = leader.progress.get(node_id)
            if entry is None or entry.leaving_until is not None or not _same_store(entry.node, node):
                # Also for one that comes back or gets a new store: what the former store held must not count.
                self._forget(leader, node_id)
                # The first probe starts at the leader's end: after an election peers mostly match there.
                end = parts.state.log.last_index + 1
                leader.progress[node_id] = ProgressEntry(end, leader.next_epoch(), node=node)
            else:
                entry.node = node
        for node_id, entry in leader.progress.items():
            if node_id not in nodes and entry.leaving_until is None:
                entry.leaving_until = now + 2 * parts.config.election_timeout_max
                entry.leaving_from = index_of(parts.state.membership.effective.log_id)
        self._push_streams(leader)

    def drop_left(self, now: float) -> None:
        """Close the streams of removed nodes that know of it, or whose time is over."""
        leader = self._leader()
        gone = [
            node_id
            for node_id, entry in leader.progress.items()
            if entry.leaving_until is not None
            and (now >= entry.leaving_until or entry.has_left(leader.acked_seq.get(node_id, 0)))
        ]
        if gone:
            for node_id in gone:
                self._forget(leader, node_id)
            self._push_streams(leader)

    def _forget(self, leader: Leader, node_id: NodeId) -> None:
        leader.progress.pop(node_id, None)
        leader.acked_at.pop(node_id, None)
        leader.acked_seq.pop(node_id, None)

    def _push_streams(self, leader: Leader) -> None:
        targets = tuple((node_id, entry.node) for node_id, entry in leader.progress.items() if entry.node is not None)
        self._parts.output.push(RebuildReplicationStreams(leader.session, targets))

    def _leader(self) -> Leader:
        leader = self._parts.leader
        assert leader is not None, "only a leader replicates"
        return leader

    # --- sending ----------------------------------------------------------------------------------------------------

    def initiate(self, now: float) -> None:
        """Send whatever can be sent, to everybody."""
        leader = self._leader()
        for target, entry in leader.progress.items():
            self._send_next(leader, target, entry, now)

    def _send_next(self, leader: Leader, target: NodeId, entry: ProgressEntry, now: float) -> None:
        """Fill the window of a peer that matches; send one probe or one snapshot to one that does not (yet)."""
        if entry.state is PIPELINE:
            last_index = self._parts.state.log.last_index
            config = self._parts.config
            while (start := entry.next_index) <= last_index and len(entry.inflight) < config.max_inflight:
                end = start + config.max_payload_entries - 1
                if end > last_index:
                    end = last_index
                if not self._send_logs(leader, target, entry, start, end, now):
                    return
                entry.next_index = end + 1
        elif entry.state is ProgressState.PROBE and not entry.inflight:
            self._send_probe(leader, target, entry, now)

    def _send_probe(self, leader: Leader, target: NodeId, entry: ProgressEntry, now: float) -> None:
        start = entry.probe_index()
        log = self._parts.state.log
        first = max(log.first_index, index_of(self._snapshot.purge_upto) + 1)
        if start < first:
            # What the peer needs is purged; or everything is, and nothing is left to probe with (§6 item 26). What
            # is about to be purged counts as purged: two silent peers must not hold it up by turns (§6 item 45).
            if entry.searching_end < first:
                self._send_snapshot(leader, target, entry, now)
                return
            start = first
        end = start - 1
        if not entry.probed:
            end = min(start + self._parts.config.max_payload_entries - 1, log.last_index)
        self._send_logs(leader, target, entry, start, end, now)

    def _send_logs(
        self, leader: Leader, target: NodeId, entry: ProgressEntry, start: int, end: int, now: float
    ) -> bool:
        """Send entries ``start..end`` (none if ``end < start``); False if that needs a snapshot instead."""
        state = self._parts.state
        prev = None if start == 0 else state.log.get(start - 1)
        if start > 0 and prev is None:
            entry.reset(leader.next_epoch())
            self._send_snapshot(leader, target, entry, now)
            return False
        leader.seq = seq = leader.seq + 1
        entry.inflight.append(Inflight(start - 1, end))
        entry.sent_committed = committed = state.committed
        self._parts.output.push(
            Replicate(
                leader.vote_io,
                leader.session,
                target,
                entry.epoch,
                seq,
                now,
                leader.vote,
                prev,
                end,
                committed,
                entry.state is not PIPELINE,
            )
        )
        return True

    def _send_snapshot(self, leader: Leader, target: NodeId, entry: ProgressEntry, now: float) -> None:
        snapshot = self._parts.state.snapshot
        purged = self._parts.state.log.purged
        if snapshot is None or index_of(snapshot.last_log_id) < index_of(purged):
            # A durable machine streams a snapshot on demand: build one, and come back when it is there.
            self._snapshot.build()
            return
        entry.state = ProgressState.SNAPSHOT
        entry.inflight.append(Inflight(-1, index_of(snapshot.last_log_id), snapshot.last_log_id))
        self._parts.output.push(
            ReplicateSnapshot(leader.vote_io, leader.session, target, entry.epoch, leader.next_seq(), now, leader.vote)
        )

    def heartbeat(self, now: float) -> None:
        """Tell every peer that this node leads, on a lane of its own."""
        leader = self._leader()
        peers = tuple((target, entry.matching) for target, entry in leader.progress.items())
        if not peers:
            return
        committed = self._parts.state.committed
        for entry in leader.progress.values():
            if not entry.inflight and entry.state is PIPELINE:
                # The others may get this before the entries that are committed: it tells them nothing of those.
                entry.sent_committed = committed
        reverted = tuple(
            (target, store_id)
            for target, entry in leader.progress.items()
            if entry.state is ProgressState.REVERTED and (store_id := self._parts.bound_store(target)) is not None
        )
        self._parts.output.push(
            SendHeartbeat(
                leader.vote_io,
                leader.session,
                peers,
                leader.next_seq(),
                now,
                leader.vote,
                committed,
                reverted,
            )
        )

    def _replicate_committed(self, leader: Leader) -> None:
        """Peers with nothing in flight shall hear of the commit soon; the others do with their next append."""
        if not leader.owes_notice:
            leader.owes_notice = True
            leader.noticed_commit = index_of(self._parts.state.committed)
            self._parts.output.push(ReplicateCommitted(leader.session))

    def tell_committed(self, upto: int, now: float) -> None:
        """Tell idle peers that have not heard of the commit of ``upto``, and order a notice of what was committed
        since: while a client writes on, its appends say everything."""
        leader = self._leader()
        leader.owes_notice = False
        state = self._parts.state
        committed = state.committed
        behind = [
            (target, entry)
            for target, entry in leader.progress.items()
            if not entry.inflight and entry.state is PIPELINE and index_of(entry.sent_committed) < index_of(committed)
        ]
        told = [(target, entry) for target, entry in behind if index_of(entry.sent_committed) < upto]
        for _, entry in told:
            entry.sent_committed = committed
        if told:
            peers = tuple((target, entry.matching) for target, entry in told)
            self._parts.output.push(
                SendHeartbeat(leader.vote_io, leader.session, peers, leader.next_seq(), now, leader.vote, committed)
            )
        if len(told) < len(behind):
            self._replicate_committed(leader)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _entry_of(self, session: int, target: NodeId, response: AppendEntriesResponse) -> ProgressEntry | None:
        """The progress an answer is about; None for an answer of an earlier leadership, or of a store that is not the
        member's (a wiped node's acknowledgements must not count)."""
        parts = self._parts
        leader = parts.leader
        if leader is None or leader.session != session:
            return None
        store_id = response.store_id
        if parts.view.bound.get(target, store_id) != store_id:
            return None
        return leader.progress.get(target)

    def on_append_response(
        self,
        session: int,
        target: NodeId,
        epoch: int,
        seq: int,
        sent_at: float,
        response: AppendEntriesResponse,
        now: float,
    ) -> None:
        """The answer to a ``Replicate``; ``Success`` covers what was sent, which may be less than was ordered."""
        entry = self._entry_of(session, target, response)
        if entry is None:
            return
        if type(response) is HigherVote:
            self._on_higher_vote(response, now)
            return
        leader = self._parts.leader
        assert leader is not None, "only a leader replicates"
        if entry.state is REVERTED:
            return
        self._count_contact(leader, target, seq, sent_at)
        if entry.epoch == epoch:
            # Busy changes no progress: the stream backs off and then reports the failure, which probes again.
            if type(response) is Success:
                self._on_success(leader, target, entry, response.matching, now)
            elif type(response) is Conflict:
                self._on_conflict(leader, target, entry, response)
        self._after_answer(leader, target, entry, now)

    def _on_success(
        self, leader: Leader, target: NodeId, entry: ProgressEntry, matching: LogId | None, now: float
    ) -> None:
        state = self._parts.state
        log = state.log
        if matching is not None and matching != log.last:
            held = log.get(matching.index)
            assert held is None or held == matching, f"{target} acknowledged {matching}, but here it is {held}"
            assert matching.index <= log.last_index, f"{target} acknowledged {matching}, but the log ends at {log.last}"
        if entry.ack(matching):
            assert matching is not None, "only a log id is news"
            if matching.index > leader.greatest_acked:
                leader.greatest_acked = matching.index
            if state.committed is None or matching.index > state.committed.index:
                self.try_commit(leader, now)
            if leader.transfer is not None:
                self._try_transfer(leader)

    def _on_conflict(self, leader: Leader, target: NodeId, entry: ProgressEntry, response: Conflict) -> None:
        if entry.state is ProgressState.PIPELINE:
            # No evidence of lost data: an answer heard meanwhile may have matched what did not match when the peer
            # looked. The probe that follows is alone in flight and tells.
            entry.reset(leader.next_epoch())
        elif entry.state is ProgressState.PROBE:
            if response.index <= index_of(entry.matching):
                self._on_lost_data(leader, target, entry)
            else:
                entry.conflict(response.index, index_of(response.last_log_id))

    def _on_lost_data(self, leader: Leader, target: NodeId, entry: ProgressEntry) -> None:
        """The peer no longer holds what it acknowledged. Under a bound store that breaks the promise every commit rests
        on: nothing more is sent to it. An unbound one starts over (what ``bind=False`` loses)."""
        entry.reset(leader.next_epoch())
        if self._parts.bound_store(target) is not None:
            entry.state = ProgressState.REVERTED
            return
        entry.matching = None
        entry.searching_end = self._parts.state.log.last_index + 1
        entry.probed = False

    def on_heartbeat_response(
        self, session: int, target: NodeId, seq: int, sent_at: float, response: AppendEntriesResponse, now: float
    ) -> None:
        """The answer to a heartbeat: contact. A conflict is evidence of lost data: its prev had been acknowledged."""
        entry = self._entry_of(session, target, response)
        if entry is None:
            return
        if isinstance(response, HigherVote):
            self._on_higher_vote(response, now)
            return
        leader = self._leader()
        if entry.state is ProgressState.REVERTED:
            return
        self._count_contact(leader, target, seq, sent_at)
        if isinstance(response, Conflict) and response.index <= index_of(entry.matching):
            self._on_lost_data(leader, target, entry)
        self._after_answer(leader, target, entry, now)

    def on_snapshot_sent(self, target: NodeId, epoch: int, installed: LogId | None, now: float) -> None:
        """The peer holds everything up to ``installed``. No contact: a snapshot carries no lease to acknowledge."""
        leader = self._leader()
        entry = leader.progress.get(target)
        if entry is None or entry.epoch != epoch:
            return
        if entry.ack(installed):
            leader.greatest_acked = max(leader.greatest_acked, index_of(installed))
            self.try_commit(leader, now)
            self._try_transfer(leader)
        self._after_answer(leader, target, entry, now)

    def on_failure(self, session: int, target: NodeId, epoch: int, now: float) -> None:
        """A request of ``epoch`` failed, after any back-off: void what is in flight and probe."""
        leader = self._parts.leader
        if leader is None or leader.session != session:
            return
        entry = leader.progress.get(target)
        if entry is None or entry.epoch != epoch or entry.state is ProgressState.REVERTED:
            return
        entry.reset(leader.next_epoch())
        self._after_answer(leader, target, entry, now)

    def _on_higher_vote(self, response: HigherVote, now: float) -> None:
        """Somebody follows a greater vote: this leadership is over. Taken uncommitted: its own leader will say so."""
        vote = response.vote.as_uncommitted()
        if self._parts.accepts(vote):
            self._vote.update_vote(vote, now)

    def _count_contact(self, leader: Leader, target: NodeId, seq: int, sent_at: float) -> None:
        acked_at, acked_seq = leader.acked_at, leader.acked_seq
        if sent_at > acked_at.get(target, NEVER):
            acked_at[target] = sent_at
        if seq > acked_seq.get(target, 0):
            acked_seq[target] = seq

    def _after_answer(self, leader: Leader, target: NodeId, entry: ProgressEntry, now: float) -> None:
        if leader.reads:
            self.confirm_reads(now)
        # Sent before anything is purged: a peer whose probe was just answered has nothing in flight that protects what
        # it lacks, and would get a snapshot in its place.
        if entry.next_index <= self._parts.state.log.last_index or entry.state is not PIPELINE:
            self._send_next(leader, target, entry, now)
        if self._snapshot.purge_upto is not None:
            self._snapshot.try_purge(now)
        if not leader.owes_notice and not entry.inflight and entry.state is PIPELINE:
            # A peer whose answer came after the commit may be idle now: it must not wait for a heartbeat to hear of it.
            committed = self._parts.state.committed
            if entry.sent_committed is not committed and entry.sent_committed != committed:
                self._replicate_committed(leader)

    # --- commit -----------------------------------------------------------------------------------------------------

    def try_commit(self, leader: Leader, now: float) -> None:
        """Raise ``committed`` to what a quorum holds durably; only own entries count (paper §5.4.2)."""
        parts = self._parts
        state = parts.state
        membership = state.membership.effective.membership
        committed = -1 if state.committed is None else state.committed.index
        if leader.greatest_acked <= committed and len(membership.voter_ids) > 1:
            return  # nobody else holds more than what is committed, and this node alone is no quorum
        # What a reverted peer acknowledged it no longer holds.
        matching = {target: entry.matching for target, entry in leader.progress.items() if entry.state is not REVERTED}
        if not parts.needs_rejoin:
            matching[parts.config.id] = state.io.flushed_log_id
        position = quorum_log_id(membership.configs, matching)
        if position is None or position.leader_id != leader.vote.leader_id or position.index <= committed:
            return
        self.commit_to(position)
        leader.committed_to(position.index)
        for entry in leader.progress.values():
            if entry.leaving_until is not None and entry.told_seq is None and entry.leaving_from <= position.index:
                entry.told_seq = leader.seq
        if leader.progress:
            self._replicate_committed(leader)

    def commit_to(self, committed: LogId) -> None:
        """``committed`` is committed: remember it, settle the membership, apply what is durable here."""
        state = self._parts.state
        before = state.committed
        assert before is None or committed.index > before.index, f"commit falls from {before} to {committed}"
        state.committed = committed
        membership = state.membership
        if membership.committed is not membership.effective:
            membership.commit(committed)
        self.apply_durable()
        self._snapshot.check_policy()

    def apply_durable(self) -> None:
        """Hand over to the state machine what is committed *and* flushed here."""
        state = self._parts.state
        upto = state.committed
        flushed = state.io.flushed_log_id
        if upto is None or flushed is None:
            return
        submitted = state.submitted
        since = 0 if submitted is None else submitted.index + 1
        if flushed.index >= upto.index:
            if upto.index < since:
                return
        elif flushed.index < since:
            return
        else:
            upto = state.log.get(flushed.index)
            assert upto is not None, f"entry {flushed} is committed but not in the log"
        state.submitted = upto
        self._parts.output.push(Commit(since, upto))

    # --- reads ------------------------------------------------------------------------------------------------------

    def confirm_reads(self, now: float) -> None:
        """Release reads that a quorum has confirmed; start a round for those that wait without one."""
        leader = self._parts.leader
        if leader is None or not leader.reads:
            return
        acked = dict(leader.acked_seq)
        if not self._parts.needs_rejoin:
            acked[self._parts.config.id] = float("inf")
        confirmed = quorum_value(self._parts.effective.configs, acked, 0)
        while leader.reads and leader.reads[0].seq < confirmed:
            read = leader.reads.popleft()
            self._parts.output.push(Respond(0, read.request_id, read.read_log_id))
        if leader.reads and leader.read_round_seq <= leader.reads[0].seq:
            self.send_read_round(leader, now)

    def send_read_round(self, leader: Leader, now: float) -> None:
        """One round of heartbeats for every read that waits."""
        voters = [voter for voter in self._parts.effective.voter_ids if voter in leader.progress]
        leader.read_round_seq = leader.next_seq()
        leader.read_round_at = now
        if voters:
            peers = tuple((voter, leader.progress[voter].matching) for voter in voters)
            self._parts.output.push(
                ConfirmRead(
                    leader.vote_io,
                    leader.session,
                    peers,
                    leader.read_round_seq,
                    now,
                    leader.vote,
                    self._parts.state.committed,
                )
            )

    # --- hand-over --------------------------------------------------------------------------------------------------

    def _try_transfer(self, leader: Leader) -> None:
        """Once the target holds the whole log, ask it to campaign."""
        transfer = leader.transfer
        if transfer is None or transfer.sent:
            return
        entry = leader.progress.get(transfer.target)
        last = self._parts.state.log.last
        if entry is None or entry.matching != last:
            return
        transfer.sent = True
        self._parts.output.push(
            SendTransferLeader(leader.session, transfer.target, TransferLeaderRequest(leader.vote, last))
        )
        if transfer.request_id is not None:
            self._parts.output.push(Respond(0, transfer.request_id, transfer.target))

    def start_transfer(self) -> None:
        """The target may be ready at once."""
        self._try_transfer(self._leader())


def _same_store(known: Node | None, node: Node) -> bool:
    return known is not None and known.store_id == node.store_id
