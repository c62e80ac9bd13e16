"""What a follower takes, cuts and commits (openraft.md §2.8, paper §5.3)."""

from __future__ import annotations

import pytest
from following import LEADER, ME, THREE, ZERO, following

from raftkit_core.engine.commands import (
    AppendInputEntries,
    Commit,
    DeleteConflictLog,
    Respond,
    SaveLease,
    SaveVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.testing.builders import (
    engine_with,
    entry,
    flush,
    log_id,
    log_ids,
    membership,
    membership_entry,
    stored,
    vote,
)
from raftkit_core.types.entry import Entry
from raftkit_core.types.log_id import LogId
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    Conflict,
    HeartbeatRequest,
    HigherVote,
    Success,
)
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import Vote


def append(
    engine: Engine,
    prev: LogId | None,
    *entries: Entry,
    commit: LogId | None = None,
    leader: Vote = LEADER,
    lease_ms: int = 500,
    now: float = 1.0,
) -> list[object]:
    engine.handle_append_entries(AppendEntriesRequest(leader, prev, list(entries), commit, lease_ms), 7, now)
    return list(engine.take_commands())


def beat(engine: Engine, prev: LogId | None, *, commit: LogId | None = None, leader: Vote = LEADER) -> list[object]:
    engine.handle_heartbeat(HeartbeatRequest(leader, prev, commit, 500), 7, 1.0)
    return list(engine.take_commands())


def new(index: int) -> Entry:
    return entry(log_id(3, "n3", index))


def test_a_lower_vote_changes_nothing() -> None:
    engine = following()
    before = (engine.state.hold_until, engine.state.election_deadline, engine.state.last_contact)
    lower = vote(2, "n9", committed=True)
    assert append(engine, None, entry(log_id(2, "n9", 0)), commit=log_id(2, "n2", 5), leader=lower) == [
        Respond(0, 7, HigherVote(ME, LEADER), LEADER)
    ]
    assert (engine.state.hold_until, engine.state.election_deadline, engine.state.last_contact) == before
    assert engine.state.committed == log_id(1, "n1", 2)


@pytest.mark.parametrize("leader", [vote(9, "n3"), vote(9, "n1", committed=True)])
def test_only_a_granted_vote_of_somebody_else_leads(leader: Vote) -> None:
    """An uncommitted vote is no leader's; the own one comes back only through a wrong address."""
    engine = following()
    assert append(engine, ZERO, leader=leader) == [Respond(0, 7, HigherVote(ME, LEADER), LEADER)]
    assert engine.vote == LEADER


def test_a_greater_vote_is_saved_before_anything_it_brings() -> None:
    engine = following()
    greater = vote(4, "n2", committed=True)
    item = entry(log_id(4, "n2", 6))
    assert append(engine, log_id(2, "n2", 5), item, leader=greater) == [
        SaveVote(1, greater),
        AppendInputEntries(2, [item]),
        Respond(2, 7, Success(ME, item.log_id), greater),
    ]


def test_an_absent_prev_conflicts_and_removes_nothing() -> None:
    engine = following()
    assert append(engine, log_id(3, "n3", 9), new(10)) == [
        Respond(0, 7, Conflict(ME, 9, log_id(2, "n2", 5)), LEADER),
    ]


def test_a_differing_prev_conflicts_and_removes_it_and_what_follows() -> None:
    engine = following()
    assert append(engine, log_id(3, "n3", 4), new(5)) == [
        DeleteConflictLog(1, 4),
        Respond(0, 7, Conflict(ME, 4, log_id(2, "n2", 3)), LEADER),
    ]


def test_a_prev_at_or_below_committed_never_conflicts_even_if_it_is_purged() -> None:
    """§6 item 35."""
    log = log_ids(log_id(1, "n1", 3), log_id(1, "n1", 3), purged=log_id(1, "n1", 2))
    engine = following(log=log, committed=log_id(1, "n1", 2))
    assert append(engine, log_id(1, "n1", 1)) == [Respond(0, 7, Success(ME, log_id(1, "n1", 1)), LEADER)]


def test_a_leader_that_contradicts_a_committed_entry_stops_the_node() -> None:
    engine = following()
    with pytest.raises(AssertionError, match="contradicts committed"):
        append(engine, log_id(3, "n3", 2))


def test_entries_already_here_are_skipped_and_only_the_missing_ones_written() -> None:
    """§6 item 2: deleting after prev and writing again loses committed entries in a crash between the two."""
    engine = following()
    held = [entry(log_id(2, "n2", 4)), entry(log_id(2, "n2", 5))]
    assert append(engine, log_id(2, "n2", 3), *held, new(6)) == [
        AppendInputEntries(1, [new(6)]),
        Respond(1, 7, Success(ME, log_id(3, "n3", 6)), LEADER),
    ]


def test_entries_that_are_all_here_write_nothing() -> None:
    engine = following()
    assert append(engine, log_id(1, "n1", 2), entry(log_id(2, "n2", 3))) == [
        Respond(0, 7, Success(ME, log_id(2, "n2", 3)), LEADER),
    ]
    assert engine.state.last_log_id == log_id(2, "n2", 5)


def test_a_conflicting_tail_is_cut_at_the_first_difference_then_replaced() -> None:
    engine = following()
    assert append(engine, log_id(1, "n1", 2), entry(log_id(2, "n2", 3)), new(4)) == [
        DeleteConflictLog(1, 4),
        AppendInputEntries(2, [new(4)]),
        Respond(2, 7, Success(ME, log_id(3, "n3", 4)), LEADER),
    ]


def test_entries_of_several_leaders_are_taken_in_one_write() -> None:
    engine = engine_with("n1", vote=LEADER, largest_lease_ms=500)
    items = [membership_entry(ZERO, THREE), entry(log_id(1, "n1", 1)), entry(log_id(3, "n3", 2))]
    assert append(engine, None, *items, commit=log_id(3, "n3", 2)) == [
        AppendInputEntries(1, items),
        Respond(1, 7, Success(ME, log_id(3, "n3", 2)), LEADER),
    ]
    assert engine.effective == THREE
    assert flush(engine) == [Commit(0, log_id(3, "n3", 2))]


# --- commit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prev", "commit", "committed"),
    [
        (2, None, 2),
        (3, 9, 3),  # not beyond what this leader verified here (§6 item 3)
        (5, 4, 4),
        (5, 1, 2),  # never falls
    ],
)
def test_commit_is_the_lower_of_what_the_leader_committed_and_verified(
    prev: int, commit: int | None, committed: int
) -> None:
    engine = following()
    at = engine.log_id_at(prev)
    beat(engine, at, commit=None if commit is None else log_id(3, "n3", commit))
    assert engine.state.committed == engine.log_id_at(committed)


def test_what_an_earlier_leader_verified_limits_nothing_for_the_next() -> None:
    engine = following()
    beat(engine, log_id(2, "n2", 5))
    beat(engine, log_id(2, "n2", 3), commit=log_id(4, "n2", 5), leader=vote(4, "n2", committed=True))
    assert engine.state.committed == log_id(2, "n2", 3)


def test_what_was_verified_never_falls_under_one_leader() -> None:
    engine = following()
    beat(engine, log_id(2, "n2", 5))
    beat(engine, log_id(1, "n1", 2), commit=log_id(3, "n3", 5))
    assert engine.state.committed == log_id(2, "n2", 5)


def test_after_a_truncation_only_what_was_written_again_is_committed() -> None:
    engine = following()
    append(engine, log_id(2, "n2", 3), new(4))
    append(engine, log_id(2, "n2", 3), commit=log_id(3, "n3", 9))
    assert engine.state.committed == log_id(3, "n3", 4)


def test_a_heartbeat_with_nothing_known_to_match_commits_nothing() -> None:
    engine = following()
    assert beat(engine, None, commit=log_id(2, "n2", 5)) == [Respond(0, 7, Success(ME, None), LEADER)]
    assert engine.state.committed == log_id(1, "n1", 2)


def test_a_heartbeat_whose_prev_is_gone_conflicts() -> None:
    engine = following()
    assert beat(engine, log_id(3, "n3", 8)) == [Respond(0, 7, Conflict(ME, 8, log_id(2, "n2", 5)), LEADER)]


def test_truncation_at_or_below_committed_stops_the_node() -> None:
    """S11, as a hard check."""
    engine = following()
    with pytest.raises(AssertionError, match="below committed"):
        engine._log.truncate(2, 0.0)


# --- memberships ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_of_the_memberships_in_a_batch_the_last_two_matter(count: int) -> None:
    engine = following()
    sizes = [membership("n1 n2 n3", learners=[f"x{number}"]) for number in range(count)]
    items = [membership_entry(log_id(3, "n3", 6 + number), members) for number, members in enumerate(sizes)]
    append(engine, log_id(2, "n2", 5), *items)
    state = engine.state.membership
    held = [stored(THREE), *(stored(members, log_id(3, "n3", 6 + n)) for n, members in enumerate(sizes))]
    assert [state.committed, state.effective] == ([held[0], held[0]] if count == 0 else held[-2:])


def test_cutting_a_membership_goes_back_to_the_committed_one_and_to_its_role() -> None:
    """n1 became a voter by an entry that is cut: a learner again."""
    before = stored(membership("n2 n3", learners="n1"))
    engine = following(memberships=MembershipState(before, stored(THREE, log_id(2, "n2", 4))))
    assert engine.state.server_state is ServerState.FOLLOWER
    append(engine, log_id(3, "n3", 4))
    assert engine.state.membership.effective == before
    assert engine.state.server_state is ServerState.LEARNER


# --- busy -----------------------------------------------------------------------------------------------------------


def test_a_follower_with_too_many_bytes_on_their_way_to_the_disk_takes_no_more() -> None:
    engine = following(settings={"max_unflushed_bytes": 4})
    big = entry(log_id(3, "n3", 6), b"12345")
    append(engine, log_id(2, "n2", 5), big)
    assert append(engine, big.log_id, new(7)) == [Respond(0, 7, Busy(ME), LEADER)]
    assert append(engine, log_id(2, "n2", 5)) == [Respond(0, 7, Success(ME, log_id(2, "n2", 5)), LEADER)]
    flush(engine)
    assert append(engine, big.log_id, new(7))[0] == AppendInputEntries(2, [new(7)])


# --- contact --------------------------------------------------------------------------------------------------------


def test_contact_restarts_the_election_timer_with_a_new_draw() -> None:
    engine = following(entropy=[0.0, 0.5, 0.9])
    assert engine.state.election_deadline == 0.5
    beat(engine, ZERO)
    assert engine.state.election_deadline == pytest.approx(1.75)
    beat(engine, ZERO)
    assert engine.state.election_deadline == pytest.approx(1.95)


def test_a_larger_lease_is_saved_before_it_is_acknowledged_and_only_once() -> None:
    engine = following()
    assert append(engine, ZERO, lease_ms=800) == [
        SaveLease(1, 800),
        Respond(1, 7, Success(ME, ZERO), LEADER),
    ]
    assert engine.state.hold_until == pytest.approx(1.8)
    assert append(engine, ZERO, lease_ms=700, now=1.2) == [Respond(1, 7, Success(ME, ZERO), LEADER)]
    assert engine.state.hold_until == pytest.approx(1.9)


def test_an_accepted_leader_message_cancels_a_pre_vote() -> None:
    engine = following()
    engine.handle_elect(0.5)
    engine.take_commands()
    assert engine.state.server_state is ServerState.CANDIDATE
    beat(engine, ZERO)
    assert engine.state.server_state is ServerState.FOLLOWER


def test_cluster_time_never_falls() -> None:
    engine = following(last_time_ms=900)
    append(engine, log_id(2, "n2", 5), entry(log_id(3, "n3", 6), time_ms=1000))
    append(engine, log_id(2, "n2", 3), entry(log_id(3, "n3", 4), time_ms=950))
    assert engine.state.last_time_ms == 1000
