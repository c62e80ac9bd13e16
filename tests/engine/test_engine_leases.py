"""Holds, check-quorum, reads and hand-over: who may rely on what, and until when (DESIGN §4)."""

from __future__ import annotations

import pytest

from raftkit_core.engine.commands import (
    Command,
    ConfirmRead,
    QuitLeader,
    Respond,
    SaveVote,
    SendHeartbeat,
    SendPreVote,
    SendTransferLeader,
    SendVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.errors import ForwardToLeader, QuorumNotEnough, TransferFailed
from raftkit_core.testing.builders import (
    elect,
    engine_with,
    flush,
    grant,
    log_id,
    membership,
    membership_entry,
    node,
    store_of,
    vote,
)
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import AddNodes, AddVoterIds, Membership, RemoveVoters
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    HeartbeatRequest,
    Success,
    TransferLeaderRequest,
    TransferLeaderResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import Vote

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
NOOP = log_id(1, "n1", 1)
ME = store_of("n1")
LEADER = vote(3, "n3", committed=True)


def leading(members: Membership = THREE, **settings: object) -> Engine:
    """n1 leads in term 1 since 10.0; its blank is durable here; nobody has answered yet."""
    engine = engine_with("n1", members, log=[ZERO], committed=ZERO, settings=settings, now=9.0)
    elect(engine, 10.0)
    flush(engine, 10.0)
    return engine


def heard(engine: Engine, peer: str, *, seq: int = 0, sent_at: float, now: float | None = None) -> list[Command]:
    """``peer`` answers a heartbeat that was sent at ``sent_at``."""
    now = sent_at if now is None else now
    engine.on_heartbeat_response(engine.session, peer, seq, sent_at, Success(store_of(peer), None), now)
    return engine.take_commands()


def ack(engine: Engine, peer: str, index: int, *, sent_at: float = 10.0, now: float = 10.0) -> list[Command]:
    progress = engine.progress
    assert progress is not None
    engine.on_replication_progress(
        engine.session, peer, progress[peer].epoch, 0, sent_at, Success(store_of(peer), engine.log_id_at(index)), now
    )
    return engine.take_commands()


def following(**kwargs: object) -> Engine:
    """n1 follows n3, which it heard at 1.0."""
    engine = engine_with("n1", THREE, vote=LEADER, log=[ZERO], committed=ZERO, **kwargs)  # type: ignore[arg-type]
    engine.handle_heartbeat(HeartbeatRequest(LEADER, None, None, 500), 1, 1.0)
    flush(engine, 1.0)
    return engine


def ask(engine: Engine, now: float, *, transfer_of: Vote | None = None, pre_vote: bool = False) -> bool:
    """Whether n2 would get this vote for term 4."""
    handle = engine.handle_pre_vote if pre_vote else engine.handle_vote
    handle(VoteRequest(vote(4, "n2"), log_id(3, "n3", 9), transfer_of), store_of("n2"), 7, now)
    answer = engine.take_commands()[-1]
    assert isinstance(answer, Respond)
    assert isinstance(answer.response, VoteResponse)
    return answer.response.granted


# --- holds ----------------------------------------------------------------------------------------------------------


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


# --- check-quorum ---------------------------------------------------------------------------------------------------


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


# --- reads ----------------------------------------------------------------------------------------------------------


def read(engine: Engine, now: float, *ids: int, by_lease: bool = False) -> list[Command]:
    engine.handle_read(list(ids) or [7], by_lease, now)
    return engine.take_commands()


def test_a_read_is_confirmed_only_by_messages_that_left_after_it_arrived() -> None:
    """§6 item 6, and S21."""
    engine = leading()
    before = heard_seq(engine)
    (round_,) = read(engine, 10.1)
    assert isinstance(round_, ConfirmRead)
    assert round_ == ConfirmRead(2, 1, (("n2", None), ("n3", None)), before + 1, 10.1, vote(1, committed=True), ZERO)
    assert heard(engine, "n2", seq=before, sent_at=10.0) == []
    assert heard(engine, "n2", seq=before + 1, sent_at=10.1) == [Respond(0, 7, NOOP)]


def heard_seq(engine: Engine) -> int:
    """The number of the last message this leader sent."""
    engine.handle_trigger_heartbeat(10.0)
    (beat,) = engine.take_commands()
    assert isinstance(beat, SendHeartbeat)
    return beat.seq


def test_reads_that_arrive_during_a_round_share_the_next_one() -> None:
    engine = leading()
    (first,) = read(engine, 10.1, 1, 2)
    assert read(engine, 10.1, 3) == []
    assert read(engine, 10.1, 4) == []
    assert isinstance(first, ConfirmRead)
    commands = heard(engine, "n2", seq=first.seq, sent_at=10.1)
    assert commands[:2] == [Respond(0, 1, NOOP), Respond(0, 2, NOOP)]
    (second,) = commands[2:]
    assert isinstance(second, ConfirmRead)
    assert heard(engine, "n3", seq=second.seq, sent_at=10.1) == [Respond(0, 3, NOOP), Respond(0, 4, NOOP)]


def test_a_read_before_the_blank_is_committed_waits_for_the_blank() -> None:
    """Only own entries prove what is committed: the id is the blank's or a later one (paper §8)."""
    engine = leading(membership("n1", learners="n2"))
    assert read(engine, 10.1) == [Respond(0, 7, log_id(2, "n1", 1))]
    engine.handle_client_write([b"x"], 10.1)
    flush(engine, 10.1)
    assert read(engine, 10.1) == [Respond(0, 7, log_id(2, "n1", 2))]


def test_a_late_round_is_repeated_and_a_read_nobody_confirms_ends() -> None:
    engine = leading(enable_heartbeat=False)
    read(engine, 10.1)
    engine.handle_tick(10.25)
    (again,) = engine.take_commands()
    assert isinstance(again, ConfirmRead)
    engine.handle_tick(11.1)
    (refusal, *_) = engine.take_commands()
    assert isinstance(refusal, Respond)
    assert isinstance(refusal.response, QuorumNotEnough)


def test_reads_that_wait_when_leadership_ends_are_sent_to_the_next_leader() -> None:
    engine = leading()
    read(engine, 10.1)
    engine.handle_heartbeat(HeartbeatRequest(vote(2, "n2", committed=True), None, None, 500), 9, 10.2)
    refusals = [each for each in engine.take_commands() if isinstance(each, Respond) and each.request_id == 7]
    assert [(type(each.response), each.response.leader) for each in refusals] == [(ForwardToLeader, "n2")]


def test_a_follower_reads_nothing() -> None:
    (refusal,) = read(following(), 1.0)
    assert isinstance(refusal, Respond)
    assert isinstance(refusal.response, ForwardToLeader)
    assert refusal.response.leader == "n3"


def test_a_lease_read_is_answered_at_once_within_the_lease_less_the_drift() -> None:
    assert [type(each) for each in read(leading(), 10.1, by_lease=True)] == [ConfirmRead], "no quorum has answered yet"
    engine = leading()
    heard(engine, "n2", sent_at=11.0)
    assert read(engine, 11.44, by_lease=True) == [Respond(0, 7, NOOP)]
    assert [type(each) for each in read(engine, 11.46, by_lease=True)] == [ConfirmRead]


def test_a_leader_whose_quorum_lease_ended_refuses_lease_reads() -> None:
    engine = leading()
    heard(engine, "n2", sent_at=11.0)
    (refusal,) = read(engine, 11.5, by_lease=True)
    assert isinstance(refusal, Respond)
    assert isinstance(refusal.response, QuorumNotEnough)


def test_a_single_voter_reads_without_asking_anybody() -> None:
    engine = leading(membership("n1"))
    noop = engine.state.last_log_id
    assert read(engine, 99.0) == [Respond(0, 7, noop)]
    assert read(engine, 99.0, by_lease=True) == [Respond(0, 7, noop)]


# --- hand-over ------------------------------------------------------------------------------------------------------


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
