"""From a wish to the next configuration (openraft.md §2.12, DESIGN §4 and §5)."""

from __future__ import annotations

import pytest

from raftkit_core.engine.commands import AppendInputEntries, Commit, RebuildReplicationStreams
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.handlers.membership import next_membership
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.errors import (
    ChangeMembershipError,
    EmptyMembership,
    ForwardToLeader,
    InProgress,
    LearnerNotFound,
    QuorumWouldBeLost,
    StoreIdChange,
)
from raftkit_core.testing.builders import (
    elect,
    engine_with,
    flush,
    log_id,
    membership,
    membership_entry,
    node,
    store_of,
    stored,
    vote,
)
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import (
    AddNodes,
    AddVoterIds,
    AddVoters,
    ChangeMembers,
    Membership,
    Node,
    RemoveNodes,
    RemoveVoters,
    ReplaceAllNodes,
    ReplaceAllVoters,
    SetNodes,
)
from raftkit_core.types.messages import Success

ZERO = log_id(0, "", 0)
BASE = membership("n1 n2 n3", learners="n4")


def planned(
    current: Membership, change: ChangeMembers, *, retain: bool = False, store_ids: dict[str, str] | None = None
) -> Membership | ChangeMembershipError:
    return next_membership(MembershipState(stored(current)), change, retain=retain, store_ids=store_ids or {})


@pytest.mark.parametrize(
    ("current", "change", "retain", "expected"),
    [
        (BASE, AddVoterIds(("n4",)), False, membership("n1 n2 n3", "n1 n2 n3 n4")),
        (membership("n1 n2 n3", "n1 n2 n3 n4"), AddVoterIds(("n4",)), False, membership("n1 n2 n3 n4")),
        (BASE, AddVoterIds(("n1",)), False, BASE),
        (BASE, AddVoters({"n5": node("n5")}), False, membership("n1 n2 n3", "n1 n2 n3 n5", learners="n4")),
        (BASE, RemoveVoters(("n3", "n9")), False, membership("n1 n2 n3", "n1 n2", learners="n4")),
        (membership("n1 n2 n3", "n1 n2"), RemoveVoters(("n3",)), False, membership("n1 n2")),
        (membership("n1 n2 n3", "n1 n2"), RemoveVoters(("n3",)), True, membership("n1 n2", learners="n3")),
        (BASE, ReplaceAllVoters(("n3", "n4")), False, membership("n1 n2 n3", "n3 n4")),
        # From one joint configuration to the next, by the last of the former (c1c2 → c2c3) …
        (membership("n1", "n1 n2"), AddVoterIds(("n3",)), False, None),
        (membership("n1", "n1 n2", learners="n3"), AddVoterIds(("n3",)), False, membership("n1 n2", "n1 n2 n3")),
        # … or back (c1c2 → c1).
        (membership("n1 n2", "n1 n2 n3"), ReplaceAllVoters(("n1", "n2")), False, membership("n1 n2")),
        (BASE, AddNodes({"n5": node("n5")}), False, membership("n1 n2 n3", learners="n4 n5")),
        (BASE, RemoveNodes(("n4", "n9")), False, membership("n1 n2 n3")),
    ],
)
def test_the_goal_is_the_change_applied_to_the_last_configuration(
    current: Membership, change: ChangeMembers, retain: bool, expected: Membership | None
) -> None:
    result = planned(current, change, retain=retain)
    if expected is None:
        assert isinstance(result, LearnerNotFound)
    else:
        assert result == expected


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (ReplaceAllVoters(()), EmptyMembership),
        (RemoveVoters(("n1", "n2", "n3")), EmptyMembership),
        (AddVoterIds(("n9",)), LearnerNotFound),
        (RemoveNodes(("n1",)), LearnerNotFound),
        (ReplaceAllNodes({"n1": node("n1")}), LearnerNotFound),
        (AddNodes({"no good": Node("x")}), ChangeMembershipError),
        (ReplaceAllNodes({each: Node(each, store_id="other") for each in ("n1", "n2", "n3")}), StoreIdChange),
    ],
)
def test_a_change_that_cannot_be_is_refused_with_its_reason(
    change: ChangeMembers, error: type[ChangeMembershipError]
) -> None:
    assert isinstance(planned(BASE, change), error)


def test_a_second_change_waits_for_the_first_to_be_committed() -> None:
    """§6 item 16: also one that only adds a node."""
    state = MembershipState(stored(BASE), stored(BASE, log_id(1, "n1", 5)))
    assert isinstance(next_membership(state, AddNodes({"n5": node("n5")}), retain=False, store_ids={}), InProgress)


# --- store ids ------------------------------------------------------------------------------------------------------


def test_a_node_that_is_added_is_bound_to_the_store_it_named_itself() -> None:
    for change in (
        AddNodes({"n5": Node("x")}),
        AddVoters({"n5": Node("x")}),
        AddNodes({"n5": Node("x", None, "typo")}),
    ):
        result = planned(BASE, change, store_ids={"n5": "its own"})
        assert isinstance(result, Membership)
        assert result.nodes["n5"].store_id == "its own"


def test_a_known_node_keeps_its_store_whatever_the_caller_passed() -> None:
    other = {"n4": Node("elsewhere", store_id="other")}
    for change, address in (
        (AddNodes(other), "test://n4"),
        (AddVoters(other), "test://n4"),
        (SetNodes(other), "elsewhere"),
    ):
        result = planned(BASE, change, store_ids={"n4": "other"})
        assert isinstance(result, Membership)
        assert (result.nodes["n4"].peer, result.nodes["n4"].store_id) == (address, store_of("n4"))


def test_an_unbound_learner_is_bound_when_it_is_promoted() -> None:
    current = Membership.of([["n1"]], {"n1": node("n1"), "n4": Node("test://n4")})
    result = planned(current, AddVoterIds(("n4",)), store_ids={"n4": "its own"})
    assert isinstance(result, Membership)
    assert result.nodes["n4"].store_id == "its own"


def test_all_nodes_may_be_replaced_but_not_their_stores() -> None:
    moved = {each: Node(f"new://{each}") for each in ("n1", "n2", "n3")}
    result = planned(BASE, ReplaceAllNodes(moved))
    assert isinstance(result, Membership)
    assert result.nodes == {each: Node(f"new://{each}", store_id=store_of(each)) for each in ("n1", "n2", "n3")}


# --- on a leader ----------------------------------------------------------------------------------------------------


def leading(members: Membership = BASE) -> Engine:
    """n1 leads since 0.0; its blank 1 is committed and everybody answers."""
    engine = engine_with("n1", members, log=[ZERO], committed=ZERO)
    elect(engine)
    flush(engine)
    for peer in members.nodes:
        if peer != "n1":
            acked(engine, peer, 1)
    return engine


def acked(engine: Engine, peer: str, index: int, *, now: float = 0.0) -> list[object]:
    progress = engine.progress
    assert progress is not None
    response = Success(store_of(peer), engine.log_id_at(index))
    engine.on_replication_progress(engine.session, peer, progress[peer].epoch, 0, now, response, now)
    return list(engine.take_commands())


def change_to(engine: Engine, change: ChangeMembers, *, force: bool = False, now: float = 0.0) -> object:
    return engine.handle_change_membership(change, retain=False, force=force, store_ids={}, now=now)


def test_a_change_is_one_entry_used_from_the_moment_it_is_appended() -> None:
    """Append, then streams, then replication, to the new node too."""
    engine = leading()
    engine.take_commands()
    at = log_id(1, "n1", 2)
    joint = membership("n1 n2 n3", "n1 n2 n3 n4")
    assert change_to(engine, AddVoterIds(("n4",))) == at
    commands = engine.take_commands()
    assert commands[:2] == [
        AppendInputEntries(engine.state.io.last_io, [membership_entry(at, joint)]),
        RebuildReplicationStreams(1, tuple((each, node(each)) for each in ("n2", "n3", "n4"))),
    ]
    assert engine.effective == joint
    assert engine.state.membership.committed.membership == BASE


def test_a_joint_entry_needs_a_quorum_of_both_configurations() -> None:
    """§6 item 4: evaluated in the new configuration from the moment of its append."""
    engine = leading(membership("n1", learners="n2 n3"))
    change_to(engine, AddVoterIds(("n2", "n3")))
    engine.take_commands()
    assert flush(engine) == [], "the old configuration alone is no quorum any more"
    at = log_id(2, "n1", 2)
    assert acked(engine, "n2", 2)[0] == Commit(2, at)
    assert engine.state.membership.is_settled


def test_a_leader_that_is_no_voter_any_more_does_not_count_itself() -> None:
    engine = leading()
    for index in (2, 3):
        change_to(engine, RemoveVoters(("n1",)))
        flush(engine)
        acked(engine, "n2", index)
        assert engine.state.committed == log_id(1, "n1", index - 1)
        acked(engine, "n3", index)
        assert engine.state.committed == log_id(1, "n1", index)


def test_a_change_waits_for_the_leaders_own_blank() -> None:
    engine = engine_with("n1", BASE, log=[ZERO], committed=ZERO)
    elect(engine)
    assert isinstance(change_to(engine, AddVoterIds(("n4",))), InProgress)


def test_a_follower_judges_no_change() -> None:
    """Leader first: even a change that cannot be is forwarded."""
    engine = engine_with("n1", BASE, vote=vote(1, "n2", committed=True), log=[ZERO], committed=ZERO)
    assert isinstance(change_to(engine, ReplaceAllVoters(())), ForwardToLeader)


def test_a_change_is_refused_while_another_is_under_way() -> None:
    engine = leading()
    assert isinstance(change_to(engine, AddVoterIds(("n4",))), LogId)
    assert isinstance(change_to(engine, RemoveVoters(("n3",))), InProgress)


def test_a_change_the_voters_that_answer_could_not_survive_needs_force() -> None:
    engine = leading()
    acked(engine, "n2", 1, now=5.0)
    wanted = ReplaceAllVoters(("n1", "n3", "n4"))
    refusal = change_to(engine, wanted, now=5.1)
    assert isinstance(refusal, QuorumWouldBeLost)
    assert "silent: n3, n4" in refusal.message
    assert isinstance(change_to(engine, wanted, force=True, now=5.1), LogId)


def test_an_impossible_change_writes_nothing() -> None:
    engine = leading()
    engine.take_commands()
    assert isinstance(change_to(engine, AddVoterIds(("n9",))), LearnerNotFound)
    assert engine.take_commands() == []
