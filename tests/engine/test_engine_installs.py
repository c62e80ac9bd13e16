"""Installing a snapshot: what moves when, and what is refused."""

from __future__ import annotations

import pytest
from following import LEADER, ME, THREE, following
from snapshot_checks import DONE, installed, receive

from raftkit_core.engine.commands import DeleteConflictLog, InstallSnapshot, PurgeLog, Respond, SaveVote, SendPreVote
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.errors import PeerBusy, StorageCorrupt
from raftkit_core.testing.builders import entry, flush, log_id, membership, snapshot_meta, store_of, stored, vote
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    HeartbeatRequest,
    InstallSnapshotResponse,
    Success,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.metrics import ServerState

FOUR = membership("n1 n2 n3 n4")


def test_an_install_moves_nothing_before_it_is_done() -> None:
    engine = following()
    meta = snapshot_meta(log_id(3, "n3", 9), stored(FOUR, log_id(3, "n3", 8)))
    assert receive(engine, meta) == [InstallSnapshot(7, meta)]
    state = engine.state
    assert (state.committed, state.snapshot, state.last_log_id) == (log_id(1, "n1", 2), None, log_id(2, "n2", 5))
    assert state.membership.effective == stored(THREE)


def test_an_install_beyond_the_log_cuts_what_is_uncommitted_and_purges_in_one_go() -> None:
    engine = following()
    at = log_id(3, "n3", 9)
    meta = snapshot_meta(at, stored(FOUR, log_id(3, "n3", 8)), time_ms=77)
    receive(engine, meta)
    assert installed(engine, meta) == [DeleteConflictLog(1, 3), PurgeLog(2, at), Respond(2, 7, DONE, LEADER)]
    state = engine.state
    assert (state.committed, state.applied, state.submitted, state.snapshot) == (at, at, at, meta)
    assert (state.log.purged, state.last_log_id, state.log.runs) == (at, at, ())
    assert state.membership.effective == state.membership.committed == stored(FOUR, log_id(3, "n3", 8))
    assert state.last_time_ms == 77
    state.check()
    assert flush(engine) == []
    assert state.io.flushed_log_id == at


def test_an_install_in_a_conflicting_log_cuts_everything_uncommitted_first() -> None:
    """§6 item 13: what conflicts below or above the snapshot must not survive a crash."""
    engine = following()
    at = log_id(3, "n3", 4)
    meta = snapshot_meta(at, THREE)
    receive(engine, meta)
    assert installed(engine, meta) == [DeleteConflictLog(1, 3), PurgeLog(2, at), Respond(2, 7, DONE, LEADER)]


def test_an_install_that_the_log_holds_keeps_what_follows() -> None:
    engine = following()
    at = log_id(2, "n2", 4)
    meta = snapshot_meta(at, THREE)
    receive(engine, meta)
    assert installed(engine, meta) == [Respond(0, 7, DONE, LEADER)]
    assert (engine.state.committed, engine.state.last_log_id) == (at, log_id(2, "n2", 5))


def test_d02_an_install_replaces_a_membership_whose_entry_it_covers() -> None:
    """The local entry 5 is a conflicting leader's; by log id it looks newer (openraft #1808)."""
    memberships = MembershipState(stored(THREE), stored(membership("n1 n2 n3", learners="x"), log_id(2, "n2", 5)))
    engine = following(memberships=memberships)
    snapshot = stored(FOUR, log_id(1, "n3", 4))
    meta = snapshot_meta(log_id(3, "n3", 5), snapshot)
    receive(engine, meta)
    installed(engine, meta)
    assert (engine.state.membership.committed, engine.state.membership.effective) == (snapshot, snapshot)


def test_an_install_in_a_restarted_node_that_forgot_what_was_committed_replaces_all_memberships() -> None:
    """``committed`` may be lost in a crash; the log holds two memberships, the first of which counts as committed."""
    memberships = MembershipState(stored(THREE), stored(FOUR, log_id(2, "n2", 4)))
    engine = following(committed=None, memberships=memberships)
    at = log_id(3, "n3", 9)
    meta = snapshot_meta(at, stored(FOUR, log_id(2, "n2", 4)))
    receive(engine, meta)
    assert installed(engine, meta) == [DeleteConflictLog(1, 0), PurgeLog(2, at), Respond(2, 7, DONE, LEADER)]
    assert engine.state.membership.committed == engine.state.membership.effective == meta.membership


def test_an_install_may_make_a_learner_of_a_voter() -> None:
    engine = following()
    meta = snapshot_meta(log_id(3, "n3", 9), stored(membership("n2 n3", learners="n1"), log_id(3, "n3", 8)))
    receive(engine, meta)
    installed(engine, meta)
    assert engine.state.server_state is ServerState.LEARNER


def test_a_snapshot_at_or_below_committed_is_answered_and_not_installed() -> None:
    engine = following()
    assert receive(engine, snapshot_meta(log_id(1, "n1", 2), THREE)) == [Respond(0, 7, DONE, LEADER)]
    assert receive(engine, snapshot_meta(log_id(1, "n1", 1), THREE)) == [Respond(0, 7, DONE, LEADER)]


def test_a_snapshot_below_committed_is_vouched_for_only_when_the_log_up_to_it_is_durable() -> None:
    """The leader counts the answer as an ack up to the snapshot."""
    engine = following()
    item = entry(log_id(3, "n3", 6))
    engine.handle_append_entries(AppendEntriesRequest(LEADER, log_id(2, "n2", 5), [item], item.log_id, 500), 6, 1.0)
    engine.take_commands()
    assert engine.state.committed == item.log_id
    assert receive(engine, snapshot_meta(item.log_id, THREE)) == [Respond(1, 7, DONE, LEADER)]


def test_a_snapshot_that_contradicts_a_committed_entry_stops_the_node() -> None:
    """#1892: never overwrite, never go on."""
    engine = following()
    with pytest.raises(AssertionError, match="contradicts committed"):
        receive(engine, snapshot_meta(log_id(3, "n3", 2), THREE))


def test_a_snapshot_under_a_lower_vote_is_refused() -> None:
    engine = following()
    meta = snapshot_meta(log_id(2, "n2", 9), THREE)
    assert receive(engine, meta, leader=vote(2, "n2", committed=True)) == [Respond(0, 7, DONE, LEADER)]


def test_a_second_snapshot_during_an_install_is_told_to_come_back() -> None:
    engine = following()
    meta = snapshot_meta(log_id(3, "n3", 9), THREE)
    receive(engine, meta)
    (refusal,) = receive(engine, meta, request_id=8)
    assert isinstance(refusal, Respond)
    assert (refusal.when, refusal.request_id, type(refusal.response)) == (0, 8, PeerBusy)


def test_bytes_that_are_not_what_was_announced_change_nothing() -> None:
    engine = following()
    meta = snapshot_meta(log_id(3, "n3", 9), THREE)
    receive(engine, meta)
    error = StorageCorrupt("digest differs", subject="snapshot", verb="write")
    engine.on_snapshot_install_failed(7, error)
    assert engine.take_commands() == [Respond(0, 7, error)]
    assert not engine.is_installing
    assert engine.state.committed == log_id(1, "n1", 2)


def test_during_an_install_appends_are_busy_and_heartbeats_and_votes_are_answered() -> None:
    engine = following()
    meta = snapshot_meta(log_id(3, "n3", 9), THREE)
    receive(engine, meta)
    item = entry(log_id(3, "n3", 6))
    engine.handle_append_entries(AppendEntriesRequest(LEADER, log_id(2, "n2", 5), [item], item.log_id, 500), 8, 1.0)
    assert engine.take_commands() == [Respond(0, 8, Busy(ME), LEADER)]
    engine.handle_heartbeat(HeartbeatRequest(LEADER, log_id(2, "n2", 5), item.log_id, 500), 9, 1.0)
    assert engine.take_commands() == [Respond(0, 9, Success(ME, log_id(2, "n2", 5)), LEADER)]
    assert engine.state.committed == log_id(1, "n1", 2)
    late = 5.0
    request = VoteRequest(vote(4, "n2"), log_id(3, "n3", 8))
    engine.handle_vote(request, store_of("n2"), 10, late)
    assert engine.take_commands() == [Respond(0, 10, VoteResponse(ME, LEADER, False, meta.last_log_id))]
    engine.handle_elect(late)
    assert engine.take_commands() == [], "a node that installs a snapshot does not campaign"
    engine.handle_vote(VoteRequest(vote(4, "n2"), meta.last_log_id), store_of("n2"), 11, late)
    assert engine.take_commands() == [
        SaveVote(1, vote(4, "n2")),
        Respond(1, 11, VoteResponse(ME, vote(4, "n2"), True, meta.last_log_id)),
    ]


def test_a_published_snapshot_counts_in_the_vote_check_after_a_restart() -> None:
    """The log is behind it only until recovery has purged; the vote check does not rely on that."""
    at = log_id(3, "n3", 9)
    engine = following(snapshot=snapshot_meta(at, THREE), largest_lease_ms=0)
    engine.handle_vote(VoteRequest(vote(4, "n2"), log_id(2, "n2", 5)), store_of("n2"), 7, 5.0)
    assert engine.take_commands() == [Respond(0, 7, VoteResponse(ME, LEADER, False, at))]
    engine.handle_elect(6.0)
    assert engine.take_commands() == [SendPreVote(("n2", "n3"), VoteRequest(vote(4), at))]


def test_the_answer_after_an_install_is_dropped_if_the_vote_changed_meanwhile() -> None:
    engine = following()
    meta = snapshot_meta(log_id(3, "n3", 9), THREE)
    receive(engine, meta)
    engine.handle_vote(VoteRequest(vote(4, "n2"), meta.last_log_id), store_of("n2"), 11, 5.0)
    engine.take_commands()
    commands = installed(engine, meta)
    response = InstallSnapshotResponse(ME, vote(4, "n2"))
    assert commands[-1] == Respond(3, 7, response, vote(4, "n2")), "another vote than the leader's: no success to it"
