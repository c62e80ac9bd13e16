"""Following: checking and taking what a leader sends (paper §5.3, openraft.md §2.8)."""

from __future__ import annotations

from collections.abc import Sequence

from raftkit_core.engine.commands import InstallSnapshot, Respond, RetireStore, SaveLease
from raftkit_core.engine.handlers.log import LogHandler
from raftkit_core.engine.handlers.replication import ReplicationHandler
from raftkit_core.engine.handlers.server_state import ServerStateHandler
from raftkit_core.engine.handlers.snapshot import SnapshotHandler
from raftkit_core.engine.handlers.vote import VoteHandler
from raftkit_core.engine.parts import EngineParts
from raftkit_core.errors import PeerBusy, RaftError
from raftkit_core.types.entry import Entries, Entry
from raftkit_core.types.ids import RequestId
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    Busy,
    Conflict,
    HeartbeatRequest,
    HigherVote,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Success,
)
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import Vote


class FollowingHandler:
    def __init__(
        self,
        parts: EngineParts,
        server_state: ServerStateHandler,
        vote: VoteHandler,
        log: LogHandler,
        replication: ReplicationHandler,
        snapshot: SnapshotHandler,
    ) -> None:
        self._parts = parts
        self._server_state = server_state
        self._vote = vote
        self._log = log
        self._replication = replication
        self._snapshot = snapshot

    # --- the gate ---------------------------------------------------------------------------------------------------

    def _accept_leader(self, vote: Vote, lease_ms: int, now: float) -> bool:
        """Whether the sender leads; if so it is followed from now on.

        The vote comes first, always: an older leader must not commit or truncate anything.
        """
        parts = self._parts
        state = parts.state
        config = parts.config
        if not vote.committed or vote.leader_id.node_id == config.id:
            return False
        if vote != state.vote and not self._vote.update_vote(vote, now):
            return False
        if parts.leader is not None or parts.candidate is not None:
            # An equal vote in single-term mode, or a campaign that has not changed the vote: a pre-vote.
            self._server_state.step_down(f"{vote} leads", now)
        state.last_contact = now
        if lease_ms < config.leader_lease_ms:
            lease_ms = config.leader_lease_ms
        until = now + lease_ms / 1000
        if until > state.hold_until:
            state.hold_until = until
        parts.redraw_election_timeout(now)
        parts.seen_greater_log = False
        if lease_ms > state.largest_lease_ms:
            state.largest_lease_ms = lease_ms
            state.lease_io = state.io.submit(now)
            parts.output.push(SaveLease(state.lease_io, lease_ms))
        return True

    def _refuse(self, request_id: RequestId) -> None:
        """Report the own vote, once it is durable."""
        parts = self._parts
        response = HigherVote(parts.config.store_id, parts.state.vote)
        parts.output.push(Respond(parts.state.vote_io, request_id, response, parts.state.vote))

    def _answer(self, request_id: RequestId, response: AppendEntriesResponse, entries_io: int = 0) -> None:
        """Answer under the vote accepted, once that vote, the lease it grants and the entries named are durable."""
        state = self._parts.state
        when = entries_io
        if state.vote_io > when:
            when = state.vote_io
        if state.lease_io > when:
            when = state.lease_io
        self._parts.output.push(Respond(when, request_id, response, state.vote))

    # --- entries ----------------------------------------------------------------------------------------------------

    def handle_append(self, request: AppendEntriesRequest, request_id: RequestId, now: float) -> None:
        """Take entries, or say what stands against them."""
        parts = self._parts
        state = parts.state
        config = parts.config
        vote = request.vote
        if not self._accept_leader(vote, request.lease_ms, now):
            self._refuse(request_id)
            return
        entries = request.entries
        if parts.installing is not None or (entries and state.io.unflushed_bytes > config.max_unflushed_bytes):
            self._answer(request_id, Busy(config.store_id))
            return
        matching = request.prev_log_id
        if matching != state.log.last and not self._check_prev(matching, request_id, now):
            return
        if entries:
            matching = entries.last if type(entries) is Entries else entries[-1].log_id
            self._take(entries, now)
        state.accept(vote.leader_id, matching)
        leader_commit = request.leader_commit
        if leader_commit is not None:
            self._commit(leader_commit)
        entries_io = 0 if matching is None else state.io.io_of(matching.index)
        self._answer(request_id, Success(config.store_id, matching), entries_io)

    def handle_heartbeat(self, request: HeartbeatRequest, request_id: RequestId, now: float) -> None:
        """An append without entries: contact, lease and commit."""
        parts = self._parts
        if not self._accept_leader(request.vote, request.lease_ms, now):
            self._refuse(request_id)
            return
        if request.reverted_store_id == parts.config.store_id:
            parts.output.push(
                RetireStore(f"{request.vote.node_id} leads and had acknowledgements of this store that it lacks now")
            )
            return
        prev = request.prev_log_id
        if parts.installing is None:
            if not self._check_prev(prev, request_id, now):
                return
            parts.state.accept(request.vote.leader_id, prev)
            if request.leader_commit is not None:
                self._commit(request.leader_commit)
        entries_io = 0 if prev is None else parts.state.io.io_of(prev.index)
        self._answer(request_id, Success(parts.config.store_id, prev), entries_io)

    def _check_prev(self, prev: LogId | None, request_id: RequestId, now: float) -> bool:
        """Whether the log holds ``prev``; if not, drop the conflicting tail and answer Conflict."""
        state = self._parts.state
        if prev is None or prev == state.log.last or state.has_log_id(prev):
            return True
        if prev.index <= state.log.last_index:
            self._truncate(prev.index, now)
        self._answer(request_id, Conflict(self._parts.config.store_id, prev.index, state.log.last))
        return False

    def _take(self, entries: Sequence[Entry], now: float) -> None:
        """Append what is missing. Entries already here are skipped: deleting after ``prev`` and appending again would
        lose committed entries in a crash between the two (§6 item 2)."""
        state = self._parts.state
        missing = entries
        first = entries.first if type(entries) is Entries else entries[0].log_id
        if first.index <= state.log.last_index:
            since = 0
            while since < len(entries) and state.has_log_id(entries[since].log_id):
                since += 1
            if since == len(entries):
                return
            missing = entries[since:] if since else entries
            if missing[0].index <= state.log.last_index:
                self._truncate(missing[0].index, now)
        memberships = self._log.append(missing, now)
        if memberships:
            for membership in memberships[-2:]:
                # Only the last two can matter: one committed, one not.
                state.membership.append(membership)
            self._server_state.refresh()

    def _truncate(self, since: int, now: float) -> None:
        if self._log.truncate(since, now):
            self._server_state.refresh()

    def _commit(self, leader_commit: LogId) -> None:
        """Commit what the leader has committed, but never beyond what this leader verified here (§6 item 3)."""
        state = self._parts.state
        assert state.accepted_under == state.vote.leader_id, "commit only under the leader that verified the log"
        accepted, committed = state.accepted, state.committed
        end = -1 if accepted is None else accepted.index
        if leader_commit.index < end:
            end = leader_commit.index
        if end <= (-1 if committed is None else committed.index):
            return
        committed = state.log.get(end)
        assert committed is not None, f"the leader committed {end}, which was accepted but is not in the log"
        self._replication.commit_to(committed)

    # --- snapshots --------------------------------------------------------------------------------------------------

    def handle_install_snapshot(self, request: InstallSnapshotRequest, request_id: RequestId, now: float) -> None:
        """All bytes are here: install, unless there is nothing new in them."""
        parts = self._parts
        state = parts.state
        if not self._accept_leader(request.vote, 0, now):
            self._respond_snapshot(request_id, state.vote_io)
            return
        last = request.meta.last_log_id
        if last is None or last.index <= index_of(state.committed):
            # Same index, other id: a committed entry would be overwritten; `has_log_id` stops the node (#1892).
            assert last is None or state.has_log_id(last)
            # The leader counts it as an ack up to ``last``: what is committed may still be on its way to the disk.
            entries_io = 0 if last is None else state.io.io_of(last.index)
            self._respond_snapshot(request_id, max(state.vote_io, state.lease_io, entries_io))
            return
        if parts.installing is not None:
            busy = PeerBusy(f"{parts.config.id} installs a snapshot up to {parts.installing.last_log_id} already")
            parts.output.push(Respond(0, request_id, busy))
            return
        parts.installing = request.meta
        parts.output.push(InstallSnapshot(request_id, request.meta))

    def on_snapshot_installed(self, meta: SnapshotMeta, request_id: RequestId, now: float) -> None:
        """Published and restored: only now committed, membership and log move, in one durable write."""
        parts = self._parts
        state = parts.state
        parts.installing = None
        last = meta.last_log_id
        assert last is not None, "an empty snapshot is never installed"
        self._snapshot.adopt(meta)
        # Nothing is committed during an install: appends are answered Busy, heartbeats commit nothing, and this node
        # does not campaign.
        assert last.index > index_of(state.committed), f"{last} was installed, {state.committed} is committed already"
        is_held = state.log.get(last.index) == last
        if is_held:
            state.membership.install(last, meta.membership)
        else:
            # Whatever memberships the log holds are cut with it. The one taken for committed may be among them: a
            # restarted node has it from its log, and need not know yet that the log is committed so far.
            self._log.cut(index_of(state.committed) + 1, now)
            state.membership.replace(meta.membership)
        state.committed = last
        state.submitted = last
        state.applied = last
        state.last_time_ms = max(state.last_time_ms, meta.time_ms)
        state.snapshot_mark = state.log_bytes
        if is_held:
            self._snapshot.plan_purge()
            self._snapshot.try_purge(now)
        else:
            self._log.purge(last, now)
        state.accept(state.vote.leader_id, last)
        self._server_state.refresh()
        self._respond_snapshot(request_id, state.io.last_io)
        self._snapshot.look_again()

    def on_snapshot_install_failed(self, request_id: RequestId, error: RaftError) -> None:
        """Nothing was changed."""
        self._parts.installing = None
        self._parts.output.push(Respond(0, request_id, error))
        self._snapshot.look_again()

    def _respond_snapshot(self, request_id: RequestId, when: int) -> None:
        parts = self._parts
        response = InstallSnapshotResponse(parts.config.store_id, parts.state.vote)
        parts.output.push(Respond(when, request_id, response, parts.state.vote))
