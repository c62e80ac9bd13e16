"""Votes and pre-votes: which requests are granted, which answers count."""

from __future__ import annotations

import pytest
from election_checks import LAST, ME, MINE, ZERO, ask, candidate, refused, voter

from raftkit_core.engine.commands import (
    AppendInputEntries,
    BecomeLeader,
    QuitLeader,
    RebuildReplicationStreams,
    Replicate,
    Respond,
    SaveVote,
)
from raftkit_core.testing.builders import blank, elect, grant, log_id, membership, node, store_of, vote
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import HeartbeatRequest, VoteResponse
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import Vote


def granted(asked: Vote, last: LogId | None = LAST, *, when: int = 1) -> Respond:
    return Respond(when, 7, VoteResponse(ME, asked, True, last))


# --- vote requests ----------------------------------------------------------------------------------------------------


def test_a_greater_vote_is_granted_with_one_write() -> None:
    engine = voter()
    asked = vote(3, "n3")
    assert ask(engine, asked) == [SaveVote(1, asked), granted(asked)]
    assert engine.state.election_deadline == 5.5


def test_an_equal_vote_is_granted_again_without_a_write() -> None:
    engine = voter(vote=vote(3, "n3"))
    assert ask(engine, vote(3, "n3")) == [granted(vote(3, "n3"), when=0)]


@pytest.mark.parametrize("asked", [vote(1, "n3"), vote(2, "n2"), vote(2, "n1"), vote(9, "n3", committed=True)])
def test_a_lower_or_a_committed_vote_is_refused(asked: Vote) -> None:
    engine = voter()
    assert ask(engine, asked) == refused()
    assert engine.vote == MINE


@pytest.mark.parametrize("last", [None, ZERO, log_id(1, "n9", 99), log_id(2, "n2", 2)])
def test_a_shorter_log_is_refused_and_changes_nothing_not_even_the_term(last: LogId | None) -> None:
    """Compared by (leader id, index), never component-wise (§6 item 7)."""
    engine = voter()
    assert ask(engine, vote(9, "n3"), last) == refused()
    assert (engine.vote, engine.state.election_deadline) == (MINE, 0.5)


@pytest.mark.parametrize("last", [LAST, log_id(2, "n3", 0), log_id(3, "n1", 1)])
def test_an_equal_or_longer_log_is_granted(last: LogId) -> None:
    engine = voter()
    assert ask(engine, vote(9, "n3"), last)[-1] == granted(vote(9, "n3"))


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_request_in_the_own_name_is_refused(pre_vote: bool) -> None:
    """It comes back only through a wrong address, and would count as a second voter's grant."""
    engine = candidate()
    answers = ask(engine, vote(3, "n1"), pre_vote=pre_vote)
    assert answers == refused(vote(3, "n1"))


@pytest.mark.parametrize("members", [membership("n2 n3", learners="n1"), membership("n2 n3"), Membership()])
def test_a_learner_and_a_node_without_membership_answer_votes_all_the_same(members: Membership) -> None:
    """Their membership may be stale, and the candidate may need them (S19)."""
    engine = voter(members)
    assert ask(engine, vote(3, "n3")) == [SaveVote(1, vote(3, "n3")), granted(vote(3, "n3"))]
    assert engine.state.server_state is ServerState.LEARNER


def test_a_candidate_of_no_membership_may_be_granted() -> None:
    engine = voter()
    assert ask(engine, vote(3, "n9"), store_id="any")[-1] == granted(vote(3, "n9"))


def test_in_the_default_mode_the_greater_node_of_a_term_wins_over_the_other() -> None:
    engine = voter(vote=vote(3, "n2"))
    assert ask(engine, vote(3, "n3"))[-1] == granted(vote(3, "n3"))
    assert ask(engine, vote(3, "n2")) == refused(vote(3, "n3"))


@pytest.mark.parametrize("asked", [vote(3, "n3"), vote(3, "n1")])
def test_in_single_term_mode_a_term_has_one_vote(asked: Vote) -> None:
    """§6 item 23: incomparable is not greater."""
    engine = voter(vote=vote(3, "n2"), settings={"single_term_leader": True})
    assert ask(engine, asked) == refused(vote(3, "n2"))
    assert ask(engine, vote(4, "n3"))[-1] == granted(vote(4, "n3"))


def test_in_single_term_mode_a_granted_vote_replaces_another_of_its_term() -> None:
    engine = voter(vote=vote(3, "n2"), settings={"single_term_leader": True})
    engine.handle_heartbeat(HeartbeatRequest(vote(3, "n3", committed=True), ZERO, None, 500), 7, 1.0)
    assert engine.vote == vote(3, "n3", committed=True)


def test_a_candidate_that_grants_somebody_else_gives_up() -> None:
    engine = candidate()
    assert ask(engine, vote(3, "n3"))[-1] == granted(vote(3, "n3"), when=2)
    assert engine.state.server_state is ServerState.FOLLOWER
    grant(engine, "n2", vote(3, "n1"))
    assert not engine.is_leader


# --- pre-vote requests ------------------------------------------------------------------------------------------------


def test_a_pre_vote_is_granted_at_once_and_changes_nothing() -> None:
    engine = voter()
    before = engine.state.election_deadline
    assert ask(engine, vote(3, "n3"), pre_vote=True) == [granted(vote(3, "n3"), when=0)]
    assert (engine.vote, engine.state.election_deadline) == (MINE, before)


@pytest.mark.parametrize(
    ("asked", "last"),
    [(vote(1, "n3"), LAST), (vote(9, "n3"), log_id(2, "n2", 2)), (vote(9, "n3", committed=True), LAST)],
)
def test_a_pre_vote_is_refused_as_the_vote_would_be(asked: Vote, last: LogId) -> None:
    engine = voter()
    assert ask(engine, asked, last, pre_vote=True) == refused()


# --- vote responses ---------------------------------------------------------------------------------------------------


def test_a_quorum_of_grants_establishes_the_leader_in_this_order() -> None:
    """The granted vote is written before any entry of this leader."""
    engine = candidate()
    grant(engine, "n2", vote(3, "n1"), 5.0)
    leads = vote(3, "n1", committed=True)
    assert engine.take_commands() == [
        SaveVote(2, leads),
        BecomeLeader(1, leads),
        RebuildReplicationStreams(1, (("n2", node("n2")), ("n3", node("n3")))),
        AppendInputEntries(3, [blank(log_id(3, "n1", 4))]),
        Replicate(2, 1, "n2", 1, 1, 5.0, leads, LAST, 4, ZERO, True),
        Replicate(2, 1, "n3", 2, 2, 5.0, leads, LAST, 4, ZERO, True),
    ]
    assert (engine.state.server_state, engine.known_leader) == (ServerState.LEADER, "n1")


def test_less_than_a_quorum_of_grants_waits() -> None:
    engine = candidate(members=membership("n1 n2 n3 n4 n5"))
    grant(engine, "n2", vote(3, "n1"))
    grant(engine, "n2", vote(3, "n1"))
    assert not engine.is_leader
    grant(engine, "n4", vote(3, "n1"))
    assert engine.is_leader


def test_a_joint_membership_needs_a_quorum_of_each_configuration() -> None:
    engine = candidate(members=membership("n1 n2 n3", "n3 n4 n5"))
    grant(engine, "n2", vote(3, "n1"))
    grant(engine, "n4", vote(3, "n1"))
    assert not engine.is_leader
    grant(engine, "n5", vote(3, "n1"))
    assert engine.is_leader


def test_grants_of_learners_and_strangers_count_for_nothing() -> None:
    engine = candidate(members=membership("n1 n2 n3", learners="n4"))
    grant(engine, "n4", vote(3, "n1"))
    grant(engine, "n9", vote(3, "n1"))
    assert not engine.is_leader


@pytest.mark.parametrize(
    "response",
    [
        VoteResponse(store_of("n2"), vote(3, "n1"), False, None),  # it may have copied the vote (§6 item 9)
        VoteResponse(store_of("n2"), vote(2, "n1"), True, None),
        VoteResponse("wiped", vote(3, "n1"), True, None),
    ],
)
def test_only_an_explicit_grant_of_this_vote_by_the_members_store_counts(response: VoteResponse) -> None:
    engine = candidate()
    engine.on_vote_response(vote(3, "n1"), "n2", response, 5.0)
    assert (engine.take_commands(), engine.state.server_state) == ([], ServerState.CANDIDATE)


def test_answers_outside_a_campaign_are_ignored() -> None:
    engine = voter()
    engine.on_vote_response(vote(3, "n1"), "n2", VoteResponse(store_of("n2"), vote(9, "n3"), False, None), 5.0)
    engine.on_pre_vote_response(vote(3, "n1"), "n2", VoteResponse(store_of("n2"), vote(9, "n3"), True, None), 5.0)
    assert (engine.take_commands(), engine.vote) == ([], MINE)


def test_a_higher_vote_in_a_refusal_is_taken_uncommitted() -> None:
    """§6 item 10: a node that lost its log must not take its own old leadership back."""
    engine = candidate()
    refusal = VoteResponse(store_of("n2"), vote(7, "n1", committed=True), False, None)
    engine.on_vote_response(vote(3, "n1"), "n2", refusal, 5.0)
    assert engine.take_commands() == [SaveVote(2, vote(7, "n1"))]
    assert (engine.state.server_state, engine.is_leader) == (ServerState.FOLLOWER, False)


def test_a_lower_vote_in_a_refusal_ends_no_campaign() -> None:
    engine = candidate()
    engine.on_vote_response(vote(3, "n1"), "n2", VoteResponse(store_of("n2"), vote(2, "n9"), False, None), 5.0)
    assert (engine.take_commands(), engine.state.server_state) == ([], ServerState.CANDIDATE)


def test_a_leader_without_a_quorum_that_grants_a_vote_quits() -> None:
    engine = voter()
    elect(engine, 1.0)
    asked = vote(4, "n3")
    io_id = engine.state.io.last_io + 1
    assert ask(engine, asked, log_id(4, "n3", 9), now=9.0) == [
        SaveVote(io_id, asked),
        QuitLeader(1, "T4-n3- is greater"),
        granted(asked, log_id(3, "n1", 4), when=io_id),
    ]
