"""A leader replicates and commits: whole lists of orders, commits, notices, heartbeats."""

from __future__ import annotations

from leading import BLANK, LEADING, THREE, ZERO, ack, answer, lagging, leading, write

from raftkit_core.engine.commands import (
    AppendInputEntries,
    Command,
    Commit,
    Replicate,
    ReplicateCommitted,
    SaveVote,
    SendHeartbeat,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import blank, elect, engine_with, entry, flush, log_id, membership, store_of, vote
from raftkit_core.types.log_id import LogId
from raftkit_core.types.messages import Success
from raftkit_core.types.metrics import ServerState

# --- a new leader -----------------------------------------------------------------------------------------------------


def test_a_write_is_one_append_then_one_order_per_peer_that_matches() -> None:
    engine = leading()
    seq = 3
    first = engine.handle_client_write([b"a", b"bc"], 0.25)
    assert first == log_id(1, "n1", 2)
    commands = engine.take_commands()
    prev, committed = BLANK, BLANK
    io_id = engine.state.io.last_io
    progress = engine.progress
    assert progress is not None
    assert commands[0] == AppendInputEntries(
        io_id,
        [entry(log_id(1, "n1", 2), b"a", time_ms=250), entry(log_id(1, "n1", 3), b"bc", time_ms=250)],
    )
    seq = commands[1].seq  # type: ignore[union-attr]
    assert commands[1:] == [
        Replicate(
            2, 1, peer, progress[peer].epoch, seq + offset, 0.25, LEADING, prev, 3,
            committed, False,
        )
        for offset, peer in enumerate(("n2", "n3"))
    ]  # fmt: skip


def test_a_single_voter_commits_only_what_is_flushed() -> None:
    engine = engine_with("n1", membership("n1"), log=[ZERO], committed=ZERO)
    assert engine.state.server_state is ServerState.CANDIDATE
    engine.handle_tick(0.0)
    assert engine.take_commands() == []  # the campaign of the start is still waiting for its vote's write
    commands = flush(engine)
    noop = log_id(1, "n1", 1)
    assert commands[0] == SaveVote(2, LEADING)
    assert commands[-1] == AppendInputEntries(3, [blank(noop)])
    assert engine.state.committed == ZERO
    engine.on_log_flushed(2, 0.0)
    assert engine.take_commands() == []
    assert flush(engine) == [Commit(1, noop)]


def test_entries_of_an_earlier_term_are_committed_only_by_one_of_the_own() -> None:
    """The paper's figure 8: a quorum for an old entry alone proves nothing."""
    old = log_id(1, "n2", 2)
    engine = engine_with(
        "n1", THREE, vote=vote(1, "n2", committed=True), log=[ZERO, log_id(1, "n2", 1), old], committed=ZERO
    )
    elect(engine)
    flush(engine)
    assert ack(engine, "n2", 2) != []
    assert engine.state.committed == ZERO
    commands = ack(engine, "n2", 3)
    noop = log_id(2, "n1", 3)
    assert commands[0] == Commit(1, noop)


def test_the_own_flush_is_one_ack_like_any_other() -> None:
    """§6 item 8: followers alone may commit, and then nothing is applied here before it is durable here."""
    engine = leading()
    write(engine)
    at = log_id(1, "n1", 2)
    assert ack(engine, "n2", 2) == []
    commands = ack(engine, "n3", 2)
    assert engine.state.committed == at
    assert not any(isinstance(each, Commit) for each in commands)
    assert flush(engine) == [Commit(2, at)]


def test_one_follower_and_the_own_flush_are_a_quorum_of_three() -> None:
    engine = leading()
    write(engine)
    at = log_id(1, "n1", 2)
    assert flush(engine) == []
    assert ack(engine, "n2", 2)[0] == Commit(2, at)


def test_d01_a_voter_that_acknowledges_twice_does_not_commit_for_a_quorum() -> None:
    """Acks 1, 2, 6, 3 of a, b, a, c on five voters: the seed reported 3, which only two held."""
    engine = engine_with("n1", membership("n1 n2 n3 n4 n5"), log=[ZERO], committed=ZERO)
    elect(engine)
    write(engine, 6)  # not flushed here: the leader holds nothing
    for peer, index in (("n2", 1), ("n3", 2), ("n2", 6), ("n4", 3)):
        ack(engine, peer, index)
    assert engine.state.committed == log_id(1, "n1", 2)


def quiet_leader() -> Engine:
    """Leads, and every peer has heard of what is committed."""
    engine = leading()
    engine.handle_tell_committed(0.0)
    engine.take_commands()
    return engine


def notices(commands: list[Command]) -> list[tuple[str, LogId | None]]:
    """Who is told of which commit by a message of its own."""
    beats = [each for each in commands if isinstance(each, SendHeartbeat)]
    return [(target, beat.leader_commit) for beat in beats for target, _ in beat.peers]


def commit_notices(engine: Engine) -> list[tuple[str, LogId | None]]:
    engine.on_commit_notice_due(0.0)
    return notices(engine.take_commands())


def test_a_peer_with_nothing_in_flight_hears_of_a_commit_soon() -> None:
    engine = quiet_leader()
    write(engine)
    flush(engine)
    at = log_id(1, "n1", 2)
    assert ack(engine, "n2", 2) == [Commit(2, at), ReplicateCommitted(1)]
    assert commit_notices(engine) == [("n2", at)]
    assert ack(engine, "n3", 2) == [ReplicateCommitted(1)]  # its answer raised nothing, but leaves it idle
    assert commit_notices(engine) == [("n3", at)]
    (second,) = [each for each in write(engine) if isinstance(each, Replicate) and each.target == "n3"]
    assert second.leader_commit == at


def test_one_notice_is_ordered_for_all_peers_and_all_commits_until_it_is_due() -> None:
    engine = quiet_leader()
    write(engine, 2)
    flush(engine)
    assert ReplicateCommitted(1) in ack(engine, "n2", 2)
    at = log_id(1, "n1", 3)
    assert ack(engine, "n3", 3) == [Commit(3, at)]
    assert ack(engine, "n2", 3) == []
    assert commit_notices(engine) == [("n2", at), ("n3", at)]


def test_a_commit_that_appends_have_told_needs_no_notice_and_a_later_one_gets_its_own() -> None:
    engine = quiet_leader()
    write(engine)
    flush(engine)
    ack(engine, "n2", 2)
    ack(engine, "n3", 2)
    write(engine)  # tells both of them of entry 2
    flush(engine)
    ack(engine, "n2", 3)
    ack(engine, "n3", 3)
    engine.on_commit_notice_due(0.0)
    assert engine.take_commands() == [ReplicateCommitted(1)]
    at = log_id(1, "n1", 3)
    assert commit_notices(engine) == [("n2", at), ("n3", at)]
    assert commit_notices(engine) == []


def test_whoever_is_about_to_be_looked_at_is_told_at_once() -> None:
    engine = quiet_leader()
    write(engine)
    flush(engine)
    ack(engine, "n2", 2)
    engine.handle_tell_committed(0.0)
    assert notices(engine.take_commands()) == [("n2", log_id(1, "n1", 2))]  # n3 has an append in flight


def test_a_heartbeat_tells_nothing_to_a_peer_whose_entries_are_still_on_their_way() -> None:
    """It takes another lane and may overtake them: then it commits nothing there, and the append says too little."""
    engine = quiet_leader()
    write(engine)
    flush(engine)
    ack(engine, "n2", 2)
    engine.handle_trigger_heartbeat(0.0)
    engine.take_commands()
    assert commit_notices(engine) == []  # n2 was idle and knows it
    assert ack(engine, "n3", 2) == [ReplicateCommitted(1)]
    assert commit_notices(engine) == [("n3", log_id(1, "n1", 2))]


def test_who_does_not_lead_owes_no_notice() -> None:
    engine = engine_with("n1", membership("n1 n2 n3"), log=[ZERO], committed=ZERO)
    engine.on_commit_notice_due(0.0)
    engine.handle_tell_committed(0.0)
    assert engine.take_commands() == []


# --- heartbeats -------------------------------------------------------------------------------------------------------


def test_d10_heartbeats_go_to_peers_with_requests_in_flight_too() -> None:
    """The seed sent none while an append or a snapshot was under way, and the peer's lease ended (§6 item 34)."""
    engine, _ = lagging()
    write(engine)
    engine.handle_tick(0.1)
    (beat,) = engine.take_commands()
    assert beat == SendHeartbeat(
        2, 1, (("n2", None), ("n3", None)), beat.seq, 0.1, engine.vote, log_id(1, "n2", 9)  # type: ignore[union-attr]
    )  # fmt: skip


def test_d13_heartbeats_keep_their_grid_and_make_up_for_nothing() -> None:
    """A beat that is late by 30 ms does not move the next one; ten missed beats are one (§6 item 50)."""
    engine = leading()

    def beats(now: float) -> int:
        engine.handle_tick(now)
        return sum(type(each) is SendHeartbeat for each in engine.take_commands())

    assert [beats(now) for now in (0.0, 0.13, 0.19, 0.21, 0.29, 0.32)] == [1, 1, 0, 1, 0, 1]
    for peer in ("n2", "n3"):
        answer(engine, peer, Success(store_of(peer), BLANK), sent_at=1.3)
    assert [beats(now) for now in (1.35, 1.36, 1.41)] == [1, 0, 1]


def test_heartbeats_can_be_switched_off_and_asked_for() -> None:
    engine = leading(enable_heartbeat=False)
    engine.handle_tick(0.2)
    assert engine.take_commands() == []
    engine.handle_trigger_heartbeat(0.2)
    (beat,) = engine.take_commands()
    assert isinstance(beat, SendHeartbeat)
