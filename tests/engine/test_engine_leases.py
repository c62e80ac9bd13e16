"""Leases: what a node withholds, and how long a leader may lead unheard."""

from __future__ import annotations

import pytest
from lease_checks import LEADER, THREE, ZERO, ask, following, heard, leading

from raftkit_core.engine.commands import QuitLeader, SaveVote, SendPreVote
from raftkit_core.errors import QuorumNotEnough
from raftkit_core.testing.builders import engine_with, flush, log_id, membership, membership_entry, node, vote
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import AddVoterIds, Membership
from raftkit_core.types.messages import AppendEntriesRequest, HeartbeatRequest, Success, VoteRequest
from raftkit_core.types.metrics import ServerState

# --- holds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre_vote", [False, True])
def test_within_a_lease_it_acknowledged_a_node_grants_nobody(pre_vote: bool) -> None:
    assert not ask(following(), 1.49, pre_vote=pre_vote)
    assert ask(following(), 1.5, pre_vote=pre_vote)


def test_a_learner_withholds_too() -> None:
    engine = engine_with("n1", membership("n2 n3", learners="n1"), vote=LEADER, log=[ZERO], committed=ZERO)
    engine.handle_append_entries(AppendEntriesRequest(LEADER, None, [], None, 500), 1, 1.0)
    engine.take_commands()
    assert not ask(engine, 1.49)


def test_the_larger_of_the_own_lease_and_the_leaders_is_withheld() -> None:
    engine = engine_with("n1", THREE, vote=LEADER, log=[ZERO], committed=ZERO)
    for lease_ms, now, until in ((800, 1.0, 1.8), (100, 1.5, 2.0)):
        engine.handle_heartbeat(HeartbeatRequest(LEADER, None, None, lease_ms), 1, now)
        engine.take_commands()
        assert engine.state.hold_until == pytest.approx(until)


def test_a_shorter_lease_never_ends_a_longer_one() -> None:
    engine = engine_with("n1", THREE, vote=LEADER, log=[ZERO], committed=ZERO)
    engine.handle_heartbeat(HeartbeatRequest(LEADER, None, None, 3000), 1, 1.0)
    engine.handle_heartbeat(HeartbeatRequest(LEADER, None, None, 500), 1, 1.1)
    engine.take_commands()
    assert not ask(engine, 3.9)


def test_a_node_that_withholds_does_not_campaign_either() -> None:
    engine = following()
    engine.handle_elect(1.4)
    assert engine.take_commands() == []
    engine.handle_elect(1.5)
    assert engine.take_commands() == [SendPreVote(("n2", "n3"), VoteRequest(vote(4, "n1"), ZERO))]


def test_a_restarted_voter_withholds_for_the_largest_lease_it_ever_acknowledged() -> None:
    engine = engine_with(
        "n1", THREE, vote=LEADER, log=[ZERO], committed=ZERO, largest_lease_ms=2500, entropy=0.5, now=100.0
    )
    assert not ask(engine, 102.4)
    engine.handle_tick(102.4)
    assert engine.take_commands() == []
    engine.handle_tick(102.5)
    assert engine.take_commands() != []


def test_a_restarted_single_voter_that_led_last_has_nobody_to_wait_for() -> None:
    mine = vote(4, "n1", committed=True)
    engine = engine_with(
        "n1", membership("n1"), vote=mine, log=[ZERO], committed=ZERO, largest_lease_ms=9000, started=False
    )
    engine.startup(0.0)
    assert engine.take_commands() == [SaveVote(1, vote(5))]


def test_a_restarted_single_voter_waits_for_the_leader_it_followed_last() -> None:
    """Who made it the only voter may still read by the lease that it acknowledged before it stopped."""
    engine = engine_with(
        "n1", membership("n1"), vote=LEADER, log=[ZERO], committed=ZERO, largest_lease_ms=9000, started=False
    )
    engine.startup(0.0)
    engine.handle_tick(8.9)
    assert engine.take_commands() == []
    engine.handle_tick(9.0)
    assert engine.take_commands() == [SaveVote(1, vote(4))]


def test_who_becomes_the_only_voter_waits_for_the_lease_of_the_leader_that_made_it_so() -> None:
    """S22: n3 leads and leaves n1 alone. n1 led at once, while n3, which it had just answered, read by its lease."""
    joint = Membership((("n3",), ("n1",)), {"n1": node("n1"), "n3": node("n3")})
    alone = Membership((("n1",),), {"n1": node("n1"), "n3": node("n3")})
    engine = engine_with("n1", joint, vote=LEADER, log=[ZERO], committed=ZERO)
    change = membership_entry(log_id(3, "n3", 1), alone)
    engine.handle_append_entries(AppendEntriesRequest(LEADER, ZERO, [change], ZERO, 500), 1, 1.0)
    flush(engine, 1.0)
    engine.take_commands()
    for now in (1.0, 1.2, 1.49):
        engine.handle_tick(now)
        engine.handle_elect(now)
        assert engine.take_commands() == []
    engine.handle_tick(1.5)
    assert engine.take_commands() == [SaveVote(3, vote(4))]


def test_nothing_is_added_for_the_lease_to_the_election_timeout() -> None:
    engine = following(settings={"leader_lease_ms": 500})
    engine.handle_tick(1.49)
    assert engine.take_commands() == []
    engine.handle_tick(1.5)
    assert engine.take_commands() != []


# --- check-quorum -----------------------------------------------------------------------------------------------------


def test_for_a_new_leader_the_clock_starts_when_it_is_established() -> None:
    engine = leading()
    assert isinstance(engine.handle_client_write([b"x"], 10.49), LogId)
    refusal = engine.handle_client_write([b"x"], 10.5)
    assert isinstance(refusal, QuorumNotEnough)
    assert (refusal.outcome, engine.state.log.last_index) == ("not_applied", 2)


def test_a_leader_that_lost_its_quorum_refuses_writes_and_quits_one_timeout_later() -> None:
    engine = leading(enable_heartbeat=False)
    heard(engine, "n2", sent_at=12.0)
    assert isinstance(engine.handle_client_write([b"x"], 12.49), LogId)
    engine.take_commands()
    flush(engine, 12.49)
    assert isinstance(engine.handle_client_write([b"x"], 12.5), QuorumNotEnough)
    engine.handle_tick(13.49)
    assert engine.take_commands() == []
    engine.handle_tick(13.5)
    assert engine.take_commands() == [QuitLeader(1, "a quorum has not answered for a lease and an election timeout")]
    assert (engine.state.server_state, engine.vote) == (ServerState.FOLLOWER, vote(1, committed=True))


def test_the_quorum_lease_runs_from_when_answered_messages_were_sent() -> None:
    engine = leading()
    heard(engine, "n2", sent_at=11.0, now=11.4)
    assert isinstance(engine.handle_client_write([b"x"], 11.49), LogId)
    assert isinstance(engine.handle_client_write([b"x"], 11.5), QuorumNotEnough)


def test_a_minority_of_answers_keeps_no_lease() -> None:
    engine = leading(membership("n1 n2 n3 n4 n5"))
    heard(engine, "n2", sent_at=12.0)
    assert isinstance(engine.handle_client_write([b"x"], 12.1), QuorumNotEnough)
    heard(engine, "n3", sent_at=12.0)
    assert isinstance(engine.handle_client_write([b"x"], 12.1), LogId)


def test_answers_of_a_store_that_is_not_the_members_keep_no_lease() -> None:
    engine = leading()
    engine.on_heartbeat_response(1, "n2", 1, 12.0, Success("wiped", None), 12.0)
    assert isinstance(engine.handle_client_write([b"x"], 12.1), QuorumNotEnough)


def test_a_leader_whose_disk_stalls_quits() -> None:
    engine = leading(enable_heartbeat=False)
    for sent_at in (10.5, 11.0, 11.5, 12.0, 12.5):
        heard(engine, "n2", sent_at=sent_at)
        if sent_at == 10.5:
            engine.handle_client_write([b"x"], 10.5)
    engine.take_commands()
    engine.handle_tick(12.5)
    assert engine.take_commands() == []
    engine.handle_tick(12.6)
    assert engine.take_commands() == [QuitLeader(1, "the storage has not finished a write for 2.1 s")]


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_leader_with_a_valid_quorum_lease_grants_nobody(pre_vote: bool) -> None:
    engine = leading()
    heard(engine, "n2", sent_at=11.0)
    assert not ask(engine, 11.49, pre_vote=pre_vote)
    assert engine.is_leader
    assert ask(engine, 11.5, pre_vote=pre_vote)
    assert engine.is_leader is pre_vote


def test_a_forced_change_to_voters_not_heard_yet_gets_the_same_time_to_hear_them() -> None:
    """Their first answers are under way: quitting in the same moment would undo the change."""
    engine = leading(membership("n1", learners="n2"), enable_heartbeat=False)
    flush(engine, 20.0)
    change = AddVoterIds(("n2",))
    assert isinstance(engine.handle_change_membership(change, retain=False, force=True, store_ids={}, now=20.0), LogId)
    flush(engine, 20.0)
    engine.handle_tick(21.4)
    assert engine.take_commands() == []
    engine.handle_tick(21.5)
    assert [type(each) for each in engine.take_commands()] == [QuitLeader]
