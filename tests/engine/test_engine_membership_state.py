"""The two memberships, against a log that remembers all of them (openraft.md §2.2)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.testing.builders import log_id, membership, stored
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import StoredMembership


def at(index: int, term: int = 1) -> StoredMembership:
    return stored(membership("n1", learners=[f"x{index}"]), log_id(term, "n1", index))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["append", "append", "commit", "truncate"]), st.integers(1, 5)), max_size=20))
def test_the_state_is_what_scanning_the_whole_log_gives(operations: list[tuple[str, int]]) -> None:
    """A second membership is appended only after the first is committed, as every leader does."""
    state = MembershipState()
    log: list[StoredMembership] = []
    term, last, committed = 1, 0, -1
    for name, number in operations:
        if name == "append":
            if log and index_of(log[-1].log_id) > committed:
                committed = index_of(log[-1].log_id)
                state.commit(log[-1].log_id)
            last += number
            log.append(at(last, term))
            state.append(log[-1])
        elif name == "commit":
            committed = max(committed, min(last, committed + number))
            state.commit(log_id(term, "n1", committed))
        elif committed < last:
            since = committed + 1 + (number % (last - committed))
            state.truncate(since)
            log = [each for each in log if index_of(each.log_id) < since]
            last, term = since - 1, term + 1
        held = [each for each in log if index_of(each.log_id) <= committed]
        assert state.effective == (log[-1] if log else StoredMembership())
        assert index_of(state.committed.log_id) <= index_of(state.effective.log_id)
        if state.is_settled:
            assert state.effective == (held[-1] if held else StoredMembership())
        else:
            assert state.committed == (held[-1] if held else StoredMembership())


@pytest.mark.parametrize(
    ("since", "effective"),
    [(3, at(2)), (4, at(2)), (5, at(2)), (6, at(5)), (9, at(5))],
)
def test_truncation_goes_back_only_if_it_cuts_the_effective_entry(since: int, effective: StoredMembership) -> None:
    state = MembershipState(at(2), at(5))
    assert state.truncate(since) is (since <= 5)
    assert state.effective == effective
    assert state.committed == at(2)


def test_truncation_below_the_committed_membership_stops_the_node() -> None:
    with pytest.raises(AssertionError, match="below committed"):
        MembershipState(at(2), at(5)).truncate(2)


def test_a_membership_that_does_not_follow_stops_the_node() -> None:
    with pytest.raises(AssertionError, match="does not follow"):
        MembershipState(at(2), at(5)).append(at(5))


@pytest.mark.parametrize("committed", [log_id(1, "n1", 3), log_id(1, "n1", 4)])
def test_a_commit_between_the_two_changes_nothing(committed: LogId) -> None:
    state = MembershipState(at(2), at(5))
    state.commit(committed)
    assert (state.committed, state.effective) == (at(2), at(5))


@pytest.mark.parametrize(
    ("snapshot_index", "expected"),
    [
        (4, (at(4, 2), at(5))),  # the local one is beyond the snapshot and stays effective
        (5, (at(4, 2), at(4, 2))),  # same index: the local one may be a conflicting leader's
        (9, (at(4, 2), at(4, 2))),
    ],
)
def test_d02_an_installed_snapshot_replaces_what_it_covers_by_index(
    snapshot_index: int, expected: tuple[StoredMembership, StoredMembership]
) -> None:
    """Comparing by log id, as the seed did, keeps a membership whose entry is purged (openraft #1808)."""
    state = MembershipState(at(2), at(5, 1) if snapshot_index == 4 else at(5, 9))
    state.install(log_id(2, "n1", snapshot_index), at(4, 2))
    assert (state.committed, state.effective) == (expected if snapshot_index != 4 else (at(4, 2), at(5)))


def test_a_snapshot_with_an_older_membership_changes_nothing_that_is_newer() -> None:
    state = MembershipState(at(4, 2), at(8, 2))
    state.install(log_id(2, "n1", 6), at(2))
    assert (state.committed, state.effective) == (at(4, 2), at(8, 2))
