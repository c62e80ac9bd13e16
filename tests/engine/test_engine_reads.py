"""Reads of a leader: confirmed by a round, or by its lease."""

from __future__ import annotations

from lease_checks import NOOP, ZERO, following, heard, leading, read

from raftkit_core.engine.commands import ConfirmRead, Respond, SendHeartbeat
from raftkit_core.engine.engine import Engine
from raftkit_core.errors import ForwardToLeader, QuorumNotEnough
from raftkit_core.testing.builders import flush, log_id, membership, vote
from raftkit_core.types.messages import HeartbeatRequest


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
