"""Initializing and campaigning: who may, when, with what."""

from __future__ import annotations

import pytest
from election_checks import LAST, MINE, THREE, ZERO, ask, candidate, refused, voter

from raftkit_core.engine.commands import AppendInputEntries, QuitLeader, Respond, SaveVote, SendPreVote, SendVote
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.errors import NotAllowed, NotInMembers
from raftkit_core.testing.builders import (
    elect,
    engine_with,
    flush,
    grant,
    log_id,
    membership,
    membership_entry,
    store_of,
    stored,
    vote,
)
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import VoteRequest, VoteResponse
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import ZERO_VOTE, Vote

# --- start ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "held", "state"),
    [
        (THREE, vote(2, "n1", committed=True), ServerState.FOLLOWER),  # its own granted vote: never led again
        (THREE, vote(2, "n1"), ServerState.FOLLOWER),  # its own campaign: not continued
        (membership("n2 n3", learners="n1"), MINE, ServerState.LEARNER),
        (membership("n2 n3"), vote(2, "n1", committed=True), ServerState.LEARNER),
    ],
)
def test_a_process_starts_as_follower_or_learner_whatever_vote_it_loads(
    members: Membership, held: Vote, state: ServerState
) -> None:
    engine = voter(members, vote=held, started=False)
    engine.startup(0.0)
    assert engine.take_commands() == []
    assert (engine.state.server_state, engine.is_leader, engine.vote) == (state, False, held)


def test_a_restarted_leader_leads_only_in_a_new_term() -> None:
    """It may have sent entries it never flushed: under the old leader id one log id could get two payloads."""
    engine = voter(membership("n1"), vote=vote(2, "n1", committed=True), started=False)
    engine.startup(0.0)
    assert engine.take_commands() == [SaveVote(1, vote(3, "n1"))]
    flush(engine)
    assert engine.vote == vote(3, "n1", committed=True)


def test_a_single_voter_campaigns_at_once_and_no_second_time_while_it_waits_for_its_vote() -> None:
    """§6 item 38."""
    engine = voter(membership("n1"))
    for now in (0.0, 1.0, 100.0):
        engine.handle_tick(now)
        assert engine.take_commands() == []
    assert not engine.is_leader
    flush(engine, 100.0)
    assert engine.is_leader


def test_with_elect_disabled_even_a_single_voter_waits_to_be_told() -> None:
    engine = voter(membership("n1"), settings={"enable_elect": False})
    engine.handle_tick(9.0)
    assert engine.take_commands() == []
    engine.handle_elect(9.0)
    assert engine.take_commands() == [SaveVote(1, vote(3, "n1"))]


def test_a_joint_membership_with_one_voter_in_its_first_configuration_is_no_single_voter() -> None:
    """§6 item 5."""
    engine = voter(membership("n1", "n1 n2"))
    engine.handle_tick(0.0)
    assert engine.take_commands() == []


# --- initialize -------------------------------------------------------------------------------------------------------


def test_initialize_appends_the_membership_at_index_0_and_campaigns() -> None:
    engine = engine_with("n1")
    assert engine.handle_initialize(THREE, 0.0) is None
    assert engine.take_commands() == [
        AppendInputEntries(1, [membership_entry(ZERO, THREE)]),
        SaveVote(2, vote(1, "n1")),
        SendVote(2, ("n2", "n3"), VoteRequest(vote(1, "n1"), ZERO)),
    ]
    assert (engine.state.server_state, engine.effective) == (ServerState.CANDIDATE, THREE)


def test_initialize_of_a_single_node_leads_only_after_its_vote_is_durable() -> None:
    engine = engine_with("n1")
    engine.handle_initialize(membership("n1"), 0.0)
    assert engine.take_commands() == [
        AppendInputEntries(1, [membership_entry(ZERO, membership("n1"))]),
        SaveVote(2, vote(1, "n1")),
    ]
    assert not engine.is_leader
    flush(engine)
    assert engine.is_leader


@pytest.mark.parametrize("held", [{"log": [ZERO]}, {"vote": vote(1, "n2")}])
def test_initialize_is_refused_where_there_is_a_vote_or_a_log(held: dict[str, object]) -> None:
    engine = engine_with("n1", **held)  # type: ignore[arg-type]
    assert isinstance(engine.handle_initialize(THREE, 0.0), NotAllowed)
    assert engine.take_commands() == []


def test_initialize_is_refused_where_the_node_is_no_voter() -> None:
    engine = engine_with("n1")
    assert isinstance(engine.handle_initialize(membership("n2 n3", learners="n1"), 0.0), NotInMembers)
    assert engine.take_commands() == []


def test_initialize_is_refused_where_the_membership_names_another_store() -> None:
    """Appended, it would bar this node from ever campaigning, and its own vote from counting."""
    engine = engine_with("n1", store_id="another")
    assert isinstance(engine.handle_initialize(THREE, 0.0), NotInMembers)
    assert engine.take_commands() == []


# --- campaigns --------------------------------------------------------------------------------------------------------


def test_a_timeout_asks_for_pre_votes_and_changes_no_vote() -> None:
    engine = voter()
    engine.handle_tick(0.49)
    assert engine.take_commands() == []
    engine.handle_tick(0.5)
    assert engine.take_commands() == [SendPreVote(("n2", "n3"), VoteRequest(vote(3, "n1"), LAST))]
    assert engine.vote == MINE


def test_d11_every_campaign_draws_a_new_timeout() -> None:
    """The seed drew once per process, and two nodes with near values split votes for ever (§6 item 40)."""
    engine = voter(entropy=[0.2, 0.8, 0.4, 0.0])
    deadlines = [engine.state.election_deadline]
    for _ in range(2):
        engine.handle_tick(deadlines[-1])
        deadlines.append(engine.state.election_deadline)
    assert deadlines == pytest.approx([0.6, 0.6 + 0.9, 0.6 + 0.9 + 0.7])


def test_a_quorum_of_pre_votes_starts_the_campaign() -> None:
    engine = voter()
    engine.handle_elect(1.0)
    engine.take_commands()
    grant(engine, "n2", vote(3, "n1"), 1.0, pre_vote=True)
    assert engine.take_commands() == [
        SaveVote(1, vote(3, "n1")),
        SendVote(1, ("n2", "n3"), VoteRequest(vote(3, "n1"), LAST)),
    ]
    grant(engine, "n3", vote(3, "n1"), 1.0, pre_vote=True)
    assert engine.take_commands() == [], "a late pre-vote starts no second campaign (§6 item 51)"


def test_a_refused_pre_vote_only_raises_the_term_of_the_next_campaign() -> None:
    engine = voter()
    engine.handle_elect(1.0)
    engine.take_commands()
    engine.on_pre_vote_response(vote(3, "n1"), "n2", VoteResponse(store_of("n2"), vote(8, "n3"), False, None), 1.0)
    assert (engine.take_commands(), engine.vote) == ([], MINE)
    engine.handle_elect(1.0)
    assert engine.take_commands() == [SendPreVote(("n2", "n3"), VoteRequest(vote(9, "n1"), LAST))]


@pytest.mark.parametrize(
    "response",
    [
        VoteResponse(store_of("n2"), vote(3, "n1"), False, None),  # an equal vote is no grant
        VoteResponse(store_of("n2"), vote(4, "n1"), True, None),  # a grant of something else is none either
        VoteResponse("wiped", vote(3, "n1"), True, None),
    ],
)
def test_only_an_explicit_pre_vote_for_this_campaign_counts(response: VoteResponse) -> None:
    engine = voter()
    engine.handle_elect(1.0)
    engine.take_commands()
    engine.on_pre_vote_response(vote(3, "n1"), "n2", response, 1.0)
    assert engine.take_commands() == []
    assert engine.vote == MINE


def test_pre_votes_of_an_earlier_campaign_are_dropped() -> None:
    engine = voter()
    engine.handle_elect(1.0)
    grant(engine, "n2", vote(2, "n1"), 1.0, pre_vote=True)
    engine.on_pre_vote_response(vote(2, "n1"), "n2", VoteResponse(store_of("n2"), vote(99, "n3"), False, None), 1.0)
    engine.take_commands()
    engine.handle_elect(1.0)
    assert engine.take_commands() == [SendPreVote(("n2", "n3"), VoteRequest(vote(3, "n1"), LAST))]


def test_a_campaign_is_replaced_by_the_next_with_a_greater_term() -> None:
    engine = candidate()
    engine.handle_elect(6.0)
    assert engine.take_commands() == [
        SaveVote(2, vote(4, "n1")),
        SendVote(2, ("n2", "n3"), VoteRequest(vote(4, "n1"), LAST)),
    ]
    grant(engine, "n2", vote(3, "n1"), 6.0)
    assert engine.take_commands() == [], "grants of the former campaign are void"


def test_after_a_campaign_lost_to_a_longer_log_the_next_waits_longer() -> None:
    """§6 item 39: so that the better candidate goes first; a leader's contact ends it."""
    engine = candidate()
    longer = log_id(2, "n2", 9)
    engine.on_vote_response(vote(3, "n1"), "n2", VoteResponse(store_of("n2"), MINE, False, longer), 5.0)
    assert engine.take_commands() == []
    engine.handle_tick(6.49)
    assert engine.take_commands() == []
    engine.handle_tick(6.5)
    assert engine.take_commands() != []


def test_d03_elect_on_a_leader_changes_nothing() -> None:
    """The seed campaigned against itself and lost its leadership for nothing (§6 item 18)."""
    engine = voter()
    elect(engine, 1.0)
    held = engine.vote
    engine.handle_elect(1.1)
    assert engine.take_commands() == []
    assert (engine.is_leader, engine.vote) == (True, held)


@pytest.mark.parametrize("members", [membership("n2 n3", learners="n1"), membership("n2 n3")])
def test_learners_and_strangers_never_campaign(members: Membership) -> None:
    engine = voter(members)
    engine.handle_tick(99.0)
    engine.handle_elect(99.0)
    assert engine.take_commands() == []


def test_a_voter_whose_removal_is_not_committed_still_campaigns() -> None:
    """n1 and n3 hold the entry that leaves n2 alone, n2 does not: n2 is refused for its shorter log, so one of the two
    must lead once more, with n2's vote, or nobody ever does (dissertation, §4.2.2)."""
    joint = stored(membership("n1 n2 n3", "n2"), log_id(2, "n2", 2))
    alone = stored(membership("n2", learners="n1 n3"), LAST)
    engine = voter(memberships=MembershipState(joint, alone), committed=log_id(2, "n2", 2))
    engine.handle_tick(1.0)
    assert engine.take_commands() == [SendPreVote(("n2",), VoteRequest(vote(3, "n1"), LAST))]
    grant(engine, "n2", vote(3, "n1"), 1.0, pre_vote=True)
    flush(engine, 1.0)
    assert not engine.is_leader, "its own vote counts for nothing"
    grant(engine, "n2", vote(3, "n1"), 1.0)
    assert engine.is_leader


def test_a_voter_whose_removal_is_committed_campaigns_no_more() -> None:
    engine = voter(memberships=MembershipState(stored(membership("n2", learners="n1 n3"), LAST)), committed=LAST)
    engine.handle_tick(99.0)
    assert engine.take_commands() == []


# --- wiped nodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_candidate_with_another_store_than_its_members_is_refused(pre_vote: bool) -> None:
    engine = voter()
    assert ask(engine, vote(9, "n3"), store_id="wiped", pre_vote=pre_vote) == refused()
    assert engine.vote == MINE


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_node_whose_own_store_is_not_its_members_grants_nobody(pre_vote: bool) -> None:
    engine = voter(store_id="wiped")
    assert engine.needs_rejoin
    assert ask(engine, vote(9, "n3"), pre_vote=pre_vote) == [Respond(0, 7, VoteResponse("wiped", MINE, False, LAST))]


def test_a_node_whose_own_store_is_not_its_members_never_campaigns() -> None:
    engine = voter(store_id="wiped")
    engine.handle_tick(99.0)
    engine.handle_elect(99.0)
    assert engine.take_commands() == []


def test_an_unbound_member_may_have_any_store() -> None:
    engine = voter(membership("n1 n2 n3", bound=False), store_id="any")
    assert ask(engine, vote(9, "n3"), store_id="other")[-1] == Respond(
        1, 7, VoteResponse("any", vote(9, "n3"), True, LAST)
    )


def test_a_leader_learns_that_its_store_is_not_the_members_and_quits() -> None:
    effective = stored(membership("n1 n2 n3", bound=False))
    engine = voter(memberships=MembershipState(effective), store_id="mine")
    elect(engine, 1.0)
    engine.state.membership.append(stored(THREE, log_id(3, "n1", 4)))
    engine.handle_tick(1.1)
    assert engine.take_commands() == [QuitLeader(1, "this store is not the one the membership names")]


def test_a_pristine_node_knows_nobody_and_never_campaigns() -> None:
    engine = engine_with("n1")
    engine.handle_tick(99.0)
    engine.handle_elect(99.0)
    assert engine.take_commands() == []
    assert (engine.state.is_pristine, engine.vote, engine.known_leader) == (True, ZERO_VOTE, None)
