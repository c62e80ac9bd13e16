"""Answers that come late, twice or from the wrong store, and leaders at the edge of their rule: nothing is believed."""

from __future__ import annotations

import pytest

from raftkit_core.engine.commands import Replicate, ReplicateSnapshot, RetireStore, SendHeartbeat
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.engine.progress import ProgressEntry, ProgressState
from raftkit_core.testing.builders import (
    elect,
    engine_with,
    flush,
    log_id,
    log_ids,
    membership,
    snapshot_meta,
    store_of,
    stored,
    vote,
)
from raftkit_core.types.entry import Entry
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    AppendEntriesResponse,
    Conflict,
    HeartbeatRequest,
    HigherVote,
    InstallSnapshotResponse,
    Success,
)

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
NOOP = log_id(1, "n1", 1)


def leading(members: Membership = THREE) -> Engine:
    """n1 leads in term 1; its blank is durable here, nobody has answered."""
    engine = engine_with("n1", members, log=[ZERO], committed=ZERO)
    elect(engine)
    flush(engine)
    return engine


def entry_of(engine: Engine, peer: str) -> ProgressEntry:
    progress = engine.progress
    assert progress is not None
    return progress[peer]


def reverted() -> Engine:
    """n2 acknowledged the blank and lost it."""
    engine = leading()
    engine.on_replication_progress(1, "n2", entry_of(engine, "n2").epoch, 1, 0.0, Success(store_of("n2"), NOOP), 0.0)
    engine.on_heartbeat_response(1, "n2", 2, 0.1, Conflict(store_of("n2"), 1, None), 0.1)
    engine.take_commands()
    assert entry_of(engine, "n2").state is ProgressState.REVERTED
    return engine


def sending_a_snapshot() -> tuple[Engine, ReplicateSnapshot]:
    """n2 needs purged entries and is sent the snapshot up to 9."""
    at = log_id(1, "n2", 9)
    engine = engine_with(
        "n1", THREE, vote=vote(1, "n2"), log=log_ids(purged=at), committed=at, snapshot=snapshot_meta(at, THREE)
    )
    elect(engine)
    flush(engine)
    epoch = entry_of(engine, "n2").epoch
    engine.on_replication_progress(1, "n2", epoch, 1, 0.0, Conflict(store_of("n2"), 9, None), 0.0)
    (order,) = [each for each in engine.take_commands() if isinstance(each, ReplicateSnapshot)]
    return engine, order


# --- a peer that lost what it had acknowledged ------------------------------------------------------------------------


@pytest.mark.parametrize("response", [Success(store_of("n2"), NOOP), Conflict(store_of("n2"), 1, None)])
def test_no_later_answer_of_a_reverted_peer_counts_for_anything(response: AppendEntriesResponse) -> None:
    engine = reverted()
    contact = engine.acked_at("n2")
    entry = entry_of(engine, "n2")
    engine.on_replication_progress(1, "n2", entry.epoch, 9, 5.0, response, 5.0)
    engine.on_heartbeat_response(1, "n2", 10, 5.0, response, 5.0)
    assert engine.take_commands() == []
    assert (entry.state, engine.acked_at("n2")) == (ProgressState.REVERTED, contact)


def test_a_store_that_is_told_that_it_reverted_retires_and_answers_nothing_more() -> None:
    leader = vote(3, "n3", committed=True)
    engine = engine_with("n1", THREE, vote=leader, log=[ZERO], committed=ZERO, largest_lease_ms=500)
    engine.handle_heartbeat(HeartbeatRequest(leader, ZERO, ZERO, 500, store_of("n1")), 7, 1.0)
    assert engine.take_commands() == [RetireStore("n3 leads and had acknowledgements of this store that it lacks now")]


# --- answers that change nothing --------------------------------------------------------------------------------------


def test_a_vote_that_is_not_greater_ends_no_leadership() -> None:
    """The answer to a message of an earlier term, say."""
    engine = leading()
    lower = HigherVote(store_of("n2"), vote(0, "n2"))
    engine.on_replication_progress(1, "n2", entry_of(engine, "n2").epoch, 1, 0.0, lower, 0.0)
    assert engine.take_commands() == []
    assert engine.is_leader


def test_a_snapshot_answer_of_an_earlier_leadership_counts_for_nothing() -> None:
    engine, order = sending_a_snapshot()
    response = InstallSnapshotResponse(store_of("n2"), order.vote)
    before = entry_of(engine, "n2").matching
    engine.on_snapshot_sent(0, "n2", order.epoch, order.seq, 0.0, log_id(1, "n2", 9), response, 1.0)
    assert engine.take_commands() == []
    assert entry_of(engine, "n2").matching == before
    assert engine.is_leader


def test_a_snapshot_answer_of_a_store_that_is_no_member_counts_for_nothing() -> None:
    engine, order = sending_a_snapshot()
    response = InstallSnapshotResponse("wiped", engine.vote)
    engine.on_snapshot_sent(1, "n2", order.epoch, order.seq, 0.0, log_id(1, "n2", 9), response, 1.0)
    assert engine.take_commands() == []
    assert (entry_of(engine, "n2").state, entry_of(engine, "n2").matching) == (ProgressState.SNAPSHOT, None)


def test_a_snapshot_answer_under_a_lower_vote_is_no_acknowledgement_and_ends_nothing() -> None:
    engine, order = sending_a_snapshot()
    response = InstallSnapshotResponse(store_of("n2"), vote(1, "n0"))
    engine.on_snapshot_sent(1, "n2", order.epoch, order.seq, 0.0, log_id(1, "n2", 9), response, 1.0)
    assert engine.take_commands() == []
    assert engine.is_leader
    assert entry_of(engine, "n2").matching is None


def test_a_snapshot_answer_of_an_earlier_epoch_or_of_a_stranger_changes_nothing() -> None:
    engine, order = sending_a_snapshot()
    response = InstallSnapshotResponse(store_of("n2"), engine.vote)
    for target, epoch in (("n2", order.epoch - 1), ("n9", order.epoch)):
        engine.on_snapshot_sent(1, target, epoch, order.seq, 0.0, log_id(1, "n2", 9), response, 1.0)
    assert engine.take_commands() == []
    assert entry_of(engine, "n2").state is ProgressState.SNAPSHOT


def test_a_snapshot_answer_that_comes_twice_is_no_news() -> None:
    engine, order = sending_a_snapshot()
    response = InstallSnapshotResponse(store_of("n2"), engine.vote)
    at = log_id(1, "n2", 9)
    engine.on_snapshot_sent(1, "n2", order.epoch, order.seq, 0.0, at, response, 1.0)
    assert [each.last_index for each in engine.take_commands() if isinstance(each, Replicate)] == [10]
    engine.on_snapshot_sent(1, "n2", order.epoch, order.seq, 0.0, at, response, 1.0)
    assert engine.take_commands() == []
    assert entry_of(engine, "n2").matching == at


def test_a_write_that_is_durable_during_a_pre_vote_wins_no_election() -> None:
    """The own grant belongs to a campaign whose vote was saved; a pre-vote saves none."""
    leader = vote(3, "n3", committed=True)
    engine = engine_with("n1", THREE, vote=leader, log=[ZERO], committed=ZERO)
    item = Entry(log_id(3, "n3", 1), 0, 0, b"")
    engine.handle_append_entries(AppendEntriesRequest(leader, ZERO, [item], None, 500), 7, 1.0)
    engine.handle_elect(2.0)
    engine.take_commands()
    flush(engine, 2.1)
    assert not engine.is_leader
    assert engine.vote == leader


# --- what is known of one peer ----------------------------------------------------------------------------------------


def test_an_acknowledgement_beyond_what_was_sent_moves_on_what_is_sent_next() -> None:
    progress = ProgressEntry(4, epoch=1)
    progress.ack(log_id(1, "n1", 3))
    assert progress.ack(log_id(1, "n1", 8))
    assert (progress.next_index, progress.searching_end) == (9, 9)


def test_a_conflict_above_the_range_that_is_searched_narrows_it_by_the_peers_end_only() -> None:
    progress = ProgressEntry(10, epoch=1)
    progress.conflict(12, 20)
    assert progress.searching_end == 10
    progress.conflict(12, 5)
    assert progress.searching_end == 6


# --- a leader whose store is not the membership's ---------------------------------------------------------------------


def parked(members: str) -> Engine:
    """n1 leads, and an entry it appended names another store for it: its own grants and acks count no more."""
    unbound = stored(membership(members, bound=False))
    engine = engine_with("n1", memberships=MembershipState(unbound), log=[ZERO], committed=ZERO, store_id="mine")
    elect(engine)
    engine.state.membership.append(stored(membership(members), log_id(1, "n1", 1)))
    assert engine.needs_rejoin
    return engine


def test_a_leader_with_another_store_than_the_members_commits_nothing_by_its_own_flush() -> None:
    engine = parked("n1")
    assert flush(engine) == []
    assert engine.state.committed == ZERO


def test_a_leader_with_another_store_than_the_members_confirms_no_read_by_itself() -> None:
    engine = parked("n1")
    engine.handle_read([7], False, 0.0)
    assert engine.take_commands() == [], "there is nobody to ask, and it is nobody itself"
    assert engine.last_quorum_acked(0.0) is None


# --- looking in -------------------------------------------------------------------------------------------------------


def test_a_leader_tells_its_first_entry_and_which_store_is_foreign() -> None:
    engine = leading()
    assert engine.noop_log_id == NOOP
    assert not engine.is_foreign_store("n2", store_of("n2"))
    assert engine.is_foreign_store("n2", "other")
    engine.handle_step_down("asked to", 1.0)
    assert engine.noop_log_id is None


def test_a_single_voter_beats_for_nobody() -> None:
    engine = leading(membership("n1"))
    engine.handle_trigger_heartbeat(1.0)
    engine.handle_tick(2.0)
    assert not [each for each in engine.take_commands() if isinstance(each, SendHeartbeat)]
