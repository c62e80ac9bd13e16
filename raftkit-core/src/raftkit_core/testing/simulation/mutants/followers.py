"""Mutants of following: checking, taking and acknowledging entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftkit_core.engine.handlers.following import FollowingHandler
from raftkit_core.engine.handlers.log import LogHandler
from raftkit_core.engine.handlers.replication import ReplicationHandler
from raftkit_core.engine.io_state import IoState
from raftkit_core.engine.raft_state import RaftState
from raftkit_core.testing.simulation.mutants.elections import released_at_once
from raftkit_core.testing.simulation.mutants.mutant import Patch, mutant
from raftkit_core.types.entry import Entry
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.vote import LeaderId, Vote


@mutant(
    "ack-before-flush",
    "safety",
    "engine",
    "Entries are acknowledged before they are on the disk.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler._answer

    def answer(self: FollowingHandler, request_id: int, response: Any, entries_io: int = 0) -> None:
        original(self, request_id, response, 0)

    patch.set(FollowingHandler, "_answer", answer)


@mutant(
    "answer-before-vote-flush",
    "safety",
    "engine",
    "A leader is answered before the vote for it is on the disk.",
)
def _(patch: Patch) -> None:
    released_at_once(patch, FollowingHandler, "handle_heartbeat")


@mutant(
    "lease-acked-before-flush",
    "safety",
    "engine",
    "A lease is acknowledged before it is on the disk.",
    equivalent="every cluster has one lease length, which is saved with the first acknowledgement of all; only "
    "a change of that setting between two lives could show it, and the engine tests do "
    "(test_engine_leases)",
)
def _(patch: Patch) -> None:
    original = FollowingHandler._answer

    def answer(self: FollowingHandler, request_id: int, response: Any, entries_io: int = 0) -> None:
        self._parts.state.lease_io = 0
        original(self, request_id, response, entries_io)

    patch.set(FollowingHandler, "_answer", answer)


@mutant(
    "any-log-matches",
    "safety",
    "engine",
    "The entry before the new ones is not compared.",
)
def _(patch: Patch) -> None:
    patch.set(RaftState, "has_log_id", lambda self, log_id: log_id.index <= self.log.last_index)


@mutant(
    "prev-index-only",
    "safety",
    "engine",
    "The entry before the new ones is compared by its index and term only.",
)
def _(patch: Patch) -> None:
    def has(self: RaftState, log_id: LogId) -> bool:
        known = self.log.get(log_id.index)
        return (known is not None and known.term == log_id.term) or log_id.index <= index_of(self.committed)

    patch.set(RaftState, "has_log_id", has)


@mutant(
    "delete-after-prev",
    "safety",
    "engine",
    "Everything after the previous entry is removed and written again (openraft §6 item 2).",
)
def _(patch: Patch) -> None:
    def take(self: FollowingHandler, entries: Sequence[Entry], now: float) -> None:
        self._truncate(entries[0].index, now)
        for held in self._log.append(entries, now)[-2:]:
            self._parts.state.membership.append(held)

    patch.set(FollowingHandler, "_take", take)


@mutant(
    "commit-not-verified",
    "safety",
    "engine",
    "A follower commits what the leader has committed, verified here or not (openraft §6 item 3).",
)
def _(patch: Patch) -> None:
    def commit(self: FollowingHandler, leader_commit: LogId | None) -> None:
        state = self._parts.state
        upto = state.log.get(min(index_of(leader_commit), state.log.last_index))
        if upto is not None and upto.index > index_of(state.committed):
            self._replication.commit_to(upto)

    patch.set(FollowingHandler, "_commit", commit)


@mutant(
    "accepted-of-another-leader",
    "safety",
    "engine",
    "What an earlier leader verified limits the commit under the present one.",
)
def _(patch: Patch) -> None:
    def accept(self: RaftState, leader_id: LeaderId, log_id: LogId | None) -> None:
        self.accepted_under = leader_id
        if index_of(log_id) >= index_of(self.accepted):
            self.accepted = log_id

    patch.set(RaftState, "accept", accept)


@mutant(
    "apply-before-flush",
    "safety",
    "engine",
    "An entry is applied before it is on this node's disk.",
)
def _(patch: Patch) -> None:
    original = ReplicationHandler.apply_durable

    def apply(self: ReplicationHandler) -> None:
        io = self._parts.state.io
        flushed, io.flushed_log_id = io.flushed_log_id, self._parts.state.log.last
        try:
            original(self)
        finally:
            io.flushed_log_id = flushed

    patch.set(ReplicationHandler, "apply_durable", apply)


@mutant(
    "append-leaves-a-hole",
    "safety",
    "engine",
    "Entries are taken although some before them are missing.",
)
def _(patch: Patch) -> None:
    patch.set(FollowingHandler, "_check_prev", lambda self, prev, request_id, now: True)


@mutant(
    "old-leader-obeyed",
    "safety",
    "engine",
    "A leader with a lower vote is still obeyed.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler._accept_leader

    def accept(self: FollowingHandler, vote: Vote, lease_ms: int, now: float) -> bool:
        return vote.committed and (original(self, vote, lease_ms, now) or self._parts.leader is None)

    patch.set(FollowingHandler, "_accept_leader", accept)


@mutant(
    "ack-names-own-end",
    "safety",
    "engine",
    "A follower acknowledges its whole log instead of what was checked.",
)
def _(patch: Patch) -> None:
    from raftkit_core.types.messages import Success

    original = FollowingHandler._answer

    def answer(self: FollowingHandler, request_id: int, response: Any, entries_io: int = 0) -> None:
        if isinstance(response, Success):
            last = self._parts.state.log.last
            response = Success(response.store_id, last)
            entries_io = self._parts.state.io.io_of(index_of(last))
        original(self, request_id, response, entries_io)

    patch.set(FollowingHandler, "_answer", answer)


@mutant(
    "flushed-by-index",
    "safety",
    "engine",
    "An old completion vouches for a new entry at the same index: truncation does not lower what is flushed.",
)
def _(patch: Patch) -> None:
    def submit_truncate(self: IoState, since: int, last_before: LogId | None, now: float) -> int:
        return self.submit(now)

    patch.set(IoState, "submit_truncate", submit_truncate)


@mutant(
    "flush-latest-wins",
    "safety",
    "engine",
    "Of two completions of a flush the one heard last counts, not the greatest (openraft #1960).",
)
def _(patch: Patch) -> None:
    original = IoState.flush

    def flush(self: IoState, io_id: int) -> None:
        if io_id < self.flushed_io:
            self.flushed_io = io_id
            self.flushed_log_id = None
            return
        original(self, io_id)

    patch.set(IoState, "flush", flush)


@mutant(
    "truncate-committed",
    "safety",
    "engine",
    "Entries are cut off without looking at what is committed.",
)
def _(patch: Patch) -> None:
    original = LogHandler.cut

    def cut(self: LogHandler, since: int, now: float) -> None:
        state = self._parts.state
        committed = state.committed
        if committed is not None and since <= committed.index:
            state.committed = state.log.get(since - 1)
        try:
            original(self, since, now)
        finally:
            state.committed = committed

    patch.set(LogHandler, "cut", cut)
    patch.set(RaftState, "has_log_id", lambda self, log_id: self.log.get(log_id.index) == log_id)


@mutant(
    "conflict-without-truncation",
    "safety",
    "engine",
    "A conflicting tail stays and the new entries are skipped.",
)
def _(patch: Patch) -> None:
    original = FollowingHandler._take

    def take(self: FollowingHandler, entries: Sequence[Entry], now: float) -> None:
        last = self._parts.state.log.last_index
        fresh = [entry for entry in entries if entry.index > last]
        if fresh:
            original(self, fresh, now)

    patch.set(FollowingHandler, "_take", take)


@mutant(
    "busy-counts-as-success",
    "safety",
    "engine",
    "A node that installs a snapshot acknowledges the entries it does not take.",
)
def _(patch: Patch) -> None:
    from raftkit_core.types.messages import AppendEntriesRequest, Busy, Success

    original = FollowingHandler.handle_append

    def handle(self: FollowingHandler, request: AppendEntriesRequest, request_id: int, now: float) -> None:
        matching = request.entries[-1].log_id if request.entries else request.prev_log_id
        plain = self._answer

        def answer(request_id: int, response: Any, entries_io: int = 0) -> None:
            plain(
                request_id, Success(response.store_id, matching) if isinstance(response, Busy) else response, entries_io
            )

        self._answer = answer  # type: ignore[method-assign]
        try:
            original(self, request, request_id, now)
        finally:
            del self._answer

    patch.set(FollowingHandler, "handle_append", handle)
