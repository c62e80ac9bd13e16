"""Campaigns, votes and pre-votes (openraft.md §2.5, paper §5.2, §5.4.1)."""

from __future__ import annotations

import pytest

from raftkit_core.engine.commands import (
    AppendInputEntries,
    BecomeLeader,
    QuitLeader,
    RebuildReplicationStreams,
    Replicate,
    Respond,
    SaveVote,
    SendPreVote,
    SendVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.membership_state import MembershipState
from raftkit_core.errors import NotAllowed, NotInMembers
from raftkit_core.testing.builders import (
    blank,
    elect,
    engine_with,
    flush,
    grant,
    log_id,
    membership,
    membership_entry,
    node,
    store_of,
    stored,
    vote,
)
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import HeartbeatRequest, VoteRequest, VoteResponse
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import ZERO_VOTE, Vote

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
LAST = log_id(2, "n2", 3)
ME = store_of("n1")
MINE = vote(2, "n2", committed=True)


def voter(members: Membership = THREE, **kwargs: object) -> Engine:
    """n1 has voted for n2 in term 2; its log ends with entry 3 of that term."""
    defaults: dict[str, object] = {"vote": MINE, "log": [ZERO, log_id(1, "n1", 1), log_id(2, "n2", 2), LAST]}
    defaults["committed"] = ZERO
    return engine_with("n1", members, **(defaults | kwargs))  # type: ignore[arg-type]


def ask(
    engine: Engine,
    asked: Vote,
    last: LogId | None = LAST,
    *,
    store_id: str | None = None,
    transfer_of: Vote | None = None,
    now: float = 5.0,
    pre_vote: bool = False,
) -> list[object]:
    handle = engine.handle_pre_vote if pre_vote else engine.handle_vote
    handle(VoteRequest(asked, last, transfer_of), store_of(asked.node_id) if store_id is None else store_id, 7, now)
    return list(engine.take_commands())


def refused(held: Vote = MINE, last: LogId | None = LAST) -> list[object]:
    return [Respond(0, 7, VoteResponse(ME, held, False, last))]


def granted(asked: Vote, last: LogId | None = LAST, *, when: int = 1) -> Respond:
    return Respond(when, 7, VoteResponse(ME, asked, True, last))


def candidate(**kwargs: object) -> Engine:
    """n1 campaigns for term 3; its vote is durable."""
    engine = voter(settings={"pre_vote": False}, **kwargs)
    engine.handle_elect(5.0)
    flush(engine)
    assert engine.state.server_state is ServerState.CANDIDATE
    return engine


# --- start ----------------------------------------------------------------------------------------------------------


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


# --- initialize -----------------------------------------------------------------------------------------------------


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


# --- campaigns ------------------------------------------------------------------------------------------------------


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


# --- vote requests --------------------------------------------------------------------------------------------------


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


# --- pre-vote requests ----------------------------------------------------------------------------------------------


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


# --- vote responses -------------------------------------------------------------------------------------------------


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
        Replicate(2, 1, "n2", 1, 1, 1, 5.0, leads, LAST, 4, ZERO, True),
        Replicate(2, 1, "n3", 2, 2, 2, 5.0, leads, LAST, 4, ZERO, True),
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


# --- wiped nodes ----------------------------------------------------------------------------------------------------


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
