"""Leadership is handed over: asked for, taken, refused, given up."""

from __future__ import annotations

import pytest
from lease_checks import LEADER, NOOP, THREE, ZERO, ask, following, heard, leading, read

from raftkit_core.engine.commands import (
    Command,
    ConfirmRead,
    QuitLeader,
    Respond,
    SaveVote,
    SendTransferLeader,
    SendVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.errors import ForwardToLeader, TransferFailed
from raftkit_core.testing.builders import engine_with, flush, grant, log_id, membership, node, store_of, vote
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import AddNodes, RemoveVoters
from raftkit_core.types.messages import Success, TransferLeaderRequest, TransferLeaderResponse, VoteRequest
from raftkit_core.types.metrics import ServerState

ME = store_of("n1")


def ack(engine: Engine, peer: str, index: int, *, sent_at: float = 10.0, now: float = 10.0) -> list[Command]:
    progress = engine.progress
    assert progress is not None
    engine.on_replication_progress(
        engine.session, peer, progress[peer].epoch, 0, sent_at, Success(store_of(peer), engine.log_id_at(index)), now
    )
    return engine.take_commands()


def test_a_target_that_holds_everything_is_asked_at_once() -> None:
    engine = leading()
    ack(engine, "n2", 1)
    engine.handle_transfer_leader("n2", 7, 10.1)
    assert engine.take_commands() == [
        SendTransferLeader(1, "n2", TransferLeaderRequest(vote(1, committed=True), NOOP)),
        Respond(0, 7, "n2"),
    ]
    refusal = engine.handle_client_write([b"x"], 10.1)
    assert isinstance(refusal, ForwardToLeader)
    assert refusal.leader == "n2"


def test_a_target_behind_is_asked_when_it_has_caught_up() -> None:
    engine = leading()
    engine.handle_transfer_leader("n2", 7, 10.1)
    assert engine.take_commands() == []
    assert [type(each) for each in ack(engine, "n2", 1)][-2:] == [SendTransferLeader, Respond]


def test_without_a_target_the_voter_that_matched_most_is_chosen() -> None:
    engine = leading(membership("n1 n2 n3", learners="n4"))
    for peer in ("n3", "n4"):
        ack(engine, peer, 1)
    engine.handle_transfer_leader(None, 7, 10.1)
    assert Respond(0, 7, "n3") in engine.take_commands()


@pytest.mark.parametrize("to", ["n4", "n9", None])
def test_only_another_voter_can_be_a_target(to: str | None) -> None:
    engine = leading(membership("n1", learners="n4"))
    engine.handle_transfer_leader(to, 7, 10.1)
    (refusal,) = engine.take_commands()
    assert isinstance(refusal, Respond)
    assert isinstance(refusal.response, TransferFailed)
    assert not refusal.response.retryable  # asked again it would be refused again


def test_handing_over_to_itself_changes_nothing() -> None:
    engine = leading()
    engine.handle_transfer_leader("n1", 7, 10.1)
    assert engine.take_commands() == [Respond(0, 7, "n1")]
    assert isinstance(engine.handle_client_write([b"x"], 10.1), LogId)


def test_a_second_hand_over_is_refused_while_one_is_under_way() -> None:
    engine = leading()
    engine.handle_transfer_leader("n2", 7, 10.1)
    engine.handle_transfer_leader("n3", 8, 10.1)
    (refusal,) = engine.take_commands()
    assert isinstance(refusal, Respond)
    assert (refusal.request_id, type(refusal.response)) == (8, ForwardToLeader)


def test_a_hand_over_that_takes_too_long_ends_and_writes_go_on() -> None:
    engine = leading(enable_heartbeat=False)
    heard(engine, "n3", sent_at=11.0)
    engine.handle_transfer_leader("n2", 7, 10.2)
    engine.handle_tick(11.2)
    (failure,) = engine.take_commands()
    assert isinstance(failure, Respond)
    assert isinstance(failure.response, TransferFailed)
    assert isinstance(engine.handle_client_write([b"x"], 11.2), LogId)


@pytest.mark.parametrize("response", [None, TransferLeaderResponse(store_of("n2"), False)])
def test_a_refused_hand_over_ends_and_writes_go_on(response: TransferLeaderResponse | None) -> None:
    engine = leading()
    ack(engine, "n2", 1)
    engine.handle_transfer_leader("n2", 7, 10.1)
    engine.take_commands()
    engine.on_transfer_response(1, "n3", response, 10.1)
    engine.on_transfer_response(9, "n2", response, 10.1)
    assert isinstance(engine.handle_client_write([b"x"], 10.1), ForwardToLeader)
    engine.on_transfer_response(1, "n2", response, 10.1)
    assert engine.take_commands() == []
    assert isinstance(engine.handle_client_write([b"x"], 10.1), LogId)


def test_a_hand_over_finished_or_not_ends_lease_reads_for_this_leader() -> None:
    """The target may have won without this node knowing (§6 item 22)."""
    engine = leading()
    ack(engine, "n2", 1)
    engine.handle_transfer_leader("n2", 7, 10.1)
    engine.on_transfer_response(1, "n2", None, 10.1)
    engine.take_commands()
    heard(engine, "n2", seq=0, sent_at=10.2)
    assert [type(each) for each in read(engine, 10.2, by_lease=True)] == [ConfirmRead]
    assert engine.read_lease_until(10.2) == float("-inf")


def test_the_target_campaigns_at_once_with_the_leaders_vote_as_proof() -> None:
    engine = following()
    engine.handle_transfer_request(TransferLeaderRequest(LEADER, ZERO), 7, 1.1)
    io_id = engine.state.io.last_io
    assert engine.take_commands() == [
        Respond(0, 7, TransferLeaderResponse(ME, True)),
        SaveVote(io_id, vote(4, "n1")),
        SendVote(io_id, ("n2", "n3"), VoteRequest(vote(4, "n1"), ZERO, LEADER)),
    ]


@pytest.mark.parametrize(
    "request_",
    [
        TransferLeaderRequest(vote(2, "n3", committed=True), ZERO),
        TransferLeaderRequest(vote(3, "n3"), ZERO),
        TransferLeaderRequest(vote(9, "n3", committed=True), ZERO),
        TransferLeaderRequest(LEADER, log_id(3, "n3", 1)),
    ],
)
def test_a_target_that_follows_another_vote_or_lacks_entries_refuses(request_: TransferLeaderRequest) -> None:
    engine = following()
    engine.handle_transfer_request(request_, 7, 1.1)
    assert engine.take_commands() == [Respond(0, 7, TransferLeaderResponse(ME, False))]


def test_proof_of_a_hand_over_skips_the_hold_only_of_voters_that_follow_that_leader() -> None:
    assert ask(following(), 1.1, transfer_of=LEADER)
    assert not ask(following(), 1.1, transfer_of=vote(2, "n3", committed=True))
    assert not ask(following(), 1.1, transfer_of=vote(3, "n3"))


def test_the_leader_that_hands_over_votes_for_its_target_within_its_own_lease() -> None:
    """Of two voters the target needs exactly this vote; the lease protects reads, and those have ended."""
    engine = leading(membership("n1 n2"))
    ack(engine, "n2", 1, sent_at=10.1)
    proof = vote(1, committed=True)
    assert not ask(engine, 10.2, transfer_of=proof), "nobody was asked to take over"
    engine.handle_transfer_leader("n2", 7, 10.2)
    engine.take_commands()
    assert ask(engine, 10.2, transfer_of=proof)
    assert not engine.is_leader


def test_a_removed_leader_hands_over_when_its_removal_is_applied_and_quits() -> None:
    engine = leading(enable_heartbeat=False)
    for peer in ("n2", "n3"):
        ack(engine, peer, 1, sent_at=10.1)
    for index in (2, 3):
        change = RemoveVoters(("n1",))
        assert isinstance(
            engine.handle_change_membership(change, retain=False, force=False, store_ids={}, now=10.1), LogId
        )
        flush(engine, 10.1)
        for peer in ("n2", "n3"):
            ack(engine, peer, index, sent_at=10.1)
    at = log_id(1, "n1", 3)
    assert engine.state.committed == at
    engine.handle_tick(10.2)
    assert engine.take_commands() == [], "the removal is not applied yet"
    engine.on_applied(at, 1.0)
    engine.handle_tick(10.2)
    assert engine.take_commands() == [
        SendTransferLeader(1, "n3", TransferLeaderRequest(vote(1, committed=True), at)),
        QuitLeader(1, "this node was removed from the membership"),
    ]
    assert engine.state.server_state is ServerState.LEARNER


def test_a_removed_leader_without_a_successor_that_holds_everything_quits_all_the_same() -> None:
    engine = leading(enable_heartbeat=False)
    for peer in ("n2", "n3"):
        ack(engine, peer, 1, sent_at=10.1)
    for index in (2, 3):
        engine.handle_change_membership(RemoveVoters(("n1",)), retain=False, force=False, store_ids={}, now=10.1)
        flush(engine, 10.1)
        for peer in ("n2", "n3"):
            ack(engine, peer, index, sent_at=10.1)
    engine.handle_client_write([b"x"], 10.1)
    engine.take_commands()
    engine.handle_transfer_leader("n2", 7, 10.1)
    engine.on_applied(log_id(1, "n1", 3), 1.0)
    engine.handle_tick(10.2)
    failure, quit_ = engine.take_commands()
    assert isinstance(quit_, Respond | QuitLeader)
    answers = [each for each in (failure, quit_) if isinstance(each, Respond)]
    assert [(each.request_id, type(each.response)) for each in answers] == [(7, TransferFailed)]
    assert not engine.is_leader


def test_d16_a_leader_that_is_a_learner_is_named() -> None:
    """The seed hid a leader that is no voter: "I lead" and "there is no leader" at once (§6 item 57)."""
    engine = leading(enable_heartbeat=False)
    for peer in ("n2", "n3"):
        ack(engine, peer, 1, sent_at=10.1)
    for index in (2, 3):
        engine.handle_change_membership(RemoveVoters(("n1",)), retain=True, force=False, store_ids={}, now=10.1)
        flush(engine, 10.1)
        for peer in ("n2", "n3"):
            ack(engine, peer, index, sent_at=10.1)
    engine.on_applied(log_id(1, "n1", 3), 1.0)
    engine.handle_tick(10.2)
    assert (engine.is_leader, engine.known_leader) == (True, "n1")
    assert engine.effective.learner_ids == ("n1",)
    follower = engine_with("n2", engine.effective, vote=engine.vote, log=[ZERO], committed=ZERO)
    refusal = follower.handle_client_write([b"x"], 0.0)
    assert isinstance(refusal, ForwardToLeader)
    assert (refusal.leader, refusal.leader_node) == ("n1", node("n1"))


def test_a_learner_does_not_take_over() -> None:
    engine = engine_with("n1", membership("n2 n3", learners="n1"), vote=LEADER, log=[ZERO], committed=ZERO)
    engine.handle_transfer_request(TransferLeaderRequest(LEADER, ZERO), 7, 1.1)
    assert engine.take_commands() == [Respond(0, 7, TransferLeaderResponse(ME, False))]


def test_leadership_can_be_given_up_without_writing_anything() -> None:
    engine = leading()
    engine.handle_step_down("maintenance", 10.1)
    assert engine.take_commands() == [QuitLeader(1, "maintenance")]
    assert (engine.is_leader, engine.vote, engine.session) == (False, vote(1, committed=True), 0)


def test_reports_of_a_leadership_that_ended_change_nothing() -> None:
    """§6 item 43."""
    engine = leading()
    engine.handle_step_down("maintenance", 10.1)
    engine.take_commands()
    engine.on_heartbeat_response(1, "n2", 1, 10.0, Success(store_of("n2"), None), 10.2)
    engine.on_replication_failed(1, "n2", 1, 10.2)
    engine.on_transfer_response(1, "n2", None, 10.2)
    engine.handle_trigger_heartbeat(10.2)
    assert engine.take_commands() == []
    assert (engine.last_quorum_acked(10.2), engine.acked_at("n2"), engine.progress) == (None, None, None)


def test_a_node_added_while_leading_is_heard_like_any_other() -> None:
    engine = leading()
    ack(engine, "n2", 1)
    engine.handle_change_membership(AddNodes({"n4": node("n4")}), retain=False, force=False, store_ids={}, now=10.1)
    engine.take_commands()
    heard(engine, "n4", sent_at=10.2)
    assert engine.acked_at("n4") == 10.2
    assert engine.last_quorum_acked(10.3) == 10.0


def test_a_won_election_counts_the_own_grant_only_when_the_vote_is_durable() -> None:
    engine = engine_with("n1", THREE, log=[ZERO], committed=ZERO, settings={"pre_vote": False})
    engine.handle_elect(1.0)
    grant(engine, "n2", vote(1))
    assert not engine.is_leader
    flush(engine, 1.0)
    assert engine.is_leader
