"""What a leader makes of its peers' answers: late, repeated, in conflict, of another vote."""

from __future__ import annotations

import pytest
from leading import BLANK, ZERO, ack, answer, lagging, leading, targets, write

from raftkit_core.engine.commands import QuitLeader, SaveVote
from raftkit_core.engine.progress import ProgressState
from raftkit_core.testing.builders import elect, engine_with, flush, log_id, membership, store_of, vote
from raftkit_core.types.messages import Busy, Conflict, HigherVote, Success
from raftkit_core.types.metrics import ServerState


def test_an_answer_of_an_earlier_epoch_changes_no_progress_but_is_contact() -> None:
    """§6 item 19: an ack of what was voided must not count."""
    engine = leading()
    write(engine)
    progress = engine.progress
    assert progress is not None
    epoch = progress["n2"].epoch
    engine.on_replication_failed(engine.session, "n2", epoch, 0.0)
    engine.take_commands()
    assert answer(engine, "n2", Success(store_of("n2"), log_id(1, "n1", 2)), epoch=epoch, sent_at=7.0) == []
    assert progress["n2"].matching == BLANK
    assert engine.acked_at("n2") == 7.0


def test_an_answer_of_an_earlier_leadership_is_dropped() -> None:
    engine = leading()
    write(engine)
    assert answer(engine, "n2", Success(store_of("n2"), log_id(1, "n1", 2)), session=engine.session - 1) == []
    assert answer(engine, "n2", HigherVote(store_of("n2"), vote(9, "n3")), session=engine.session - 1) == []
    assert engine.is_leader


def test_a_failure_probes_again_after_matching_and_only_once_per_epoch() -> None:
    engine = leading()
    write(engine, 2)
    progress = engine.progress
    assert progress is not None
    epoch = progress["n2"].epoch
    engine.on_replication_failed(engine.session, "n2", epoch, 0.0)
    assert targets(engine.take_commands()) == {"n2": (BLANK, 3)}
    engine.on_replication_failed(engine.session, "n2", epoch, 0.0)
    assert engine.take_commands() == []


def test_busy_changes_no_progress_and_is_not_asked_again_before_the_back_off_is_over() -> None:
    """A probe at once would ask a full disk in a busy loop; the stream reports the failure when its back-off ends."""
    engine = leading()
    write(engine)
    assert answer(engine, "n2", Busy(store_of("n2")), sent_at=3.0) == []
    progress = engine.progress
    assert progress is not None
    assert (progress["n2"].matching, len(progress["n2"].inflight)) == (BLANK, 1)
    assert engine.acked_at("n2") == 3.0
    engine.on_replication_failed(engine.session, "n2", progress["n2"].epoch, 0.0)
    assert targets(engine.take_commands()) == {"n2": (BLANK, 2)}


def test_a_conflict_in_the_pipeline_probes_again_and_is_no_evidence_of_lost_data() -> None:
    """The first of two requests may be acknowledged before the second's conflict is heard: its prev is matched by then,
    but was not when the peer looked."""
    engine = leading()
    write(engine)
    write(engine)
    progress = engine.progress
    assert progress is not None
    epoch = progress["n2"].epoch
    ack(engine, "n2", 2)
    commands = answer(engine, "n2", Conflict(store_of("n2"), 2, BLANK))
    assert progress["n2"].state is ProgressState.PROBE
    assert progress["n2"].epoch > epoch
    assert targets(commands) == {"n2": (log_id(1, "n1", 2), 3)}


def test_a_conflict_of_a_probe_at_what_was_acknowledged_is_lost_data() -> None:
    engine = leading()
    progress = engine.progress
    assert progress is not None
    engine.on_replication_failed(engine.session, "n2", progress["n2"].epoch, 0.0)
    engine.take_commands()
    assert answer(engine, "n2", Conflict(store_of("n2"), 1, None)) == []
    assert progress["n2"].state is ProgressState.REVERTED


def test_a_heartbeat_conflict_is_evidence_of_lost_data() -> None:
    """§6 item 32: an idle cluster must notice a peer that lost its log."""
    engine = leading()
    engine.on_heartbeat_response(engine.session, "n2", 9, 1.0, Conflict(store_of("n2"), 1, None), 1.0)
    progress = engine.progress
    assert progress is not None
    assert progress["n2"].state is ProgressState.REVERTED


def test_what_a_reverted_peer_acknowledged_counts_for_no_further_commit() -> None:
    engine = leading()
    write(engine)
    ack(engine, "n2", 2)
    assert engine.state.committed == BLANK
    engine.on_heartbeat_response(engine.session, "n2", 9, 1.0, Conflict(store_of("n2"), 2, None), 1.0)
    engine.take_commands()
    flush(engine)
    assert engine.state.committed == BLANK, "n2 no longer holds entry 2: the leader alone is no quorum"


def test_an_unbound_peer_that_lost_its_log_starts_over() -> None:
    """What ``bind=False`` gives up: the loss is repaired, not refused."""
    members = membership("n1 n2 n3", bound=False)
    engine = engine_with("n1", members, log=[ZERO], committed=ZERO)
    elect(engine)
    flush(engine)
    ack(engine, "n2", 1)
    engine.on_heartbeat_response(engine.session, "n2", 9, 1.0, Conflict("other", 1, None), 1.0)
    progress = engine.progress
    assert progress is not None
    assert (progress["n2"].state, progress["n2"].matching) == (ProgressState.PROBE, None)
    assert targets(engine.take_commands()) == {"n2": (BLANK, 1)}


def test_an_answer_repeated_while_a_snapshot_is_sent_changes_nothing() -> None:
    engine, _ = lagging()
    assert answer(engine, "n2", Conflict(store_of("n2"), 9, None)) == []
    progress = engine.progress
    assert progress is not None
    assert (progress["n2"].state, len(progress["n2"].inflight)) == (ProgressState.SNAPSHOT, 1)


@pytest.mark.parametrize("reported", [vote(3, "n3"), vote(3, "n3", committed=True)])
def test_a_higher_vote_ends_leadership_and_is_taken_uncommitted(reported: object) -> None:
    engine = leading()
    commands = answer(engine, "n2", HigherVote(store_of("n2"), reported))  # type: ignore[arg-type]
    io_id = engine.state.io.last_io
    assert commands == [SaveVote(io_id, vote(3, "n3")), QuitLeader(1, "T3-n3- is greater")]
    assert (engine.state.server_state, engine.known_leader) == (ServerState.FOLLOWER, None)


def test_the_vote_of_a_store_that_is_no_member_ends_nothing() -> None:
    engine = leading()
    assert answer(engine, "n2", HigherVote("wiped", vote(3, "n3"))) == []
    assert engine.is_leader


def test_a_former_leader_waits_a_whole_timeout_before_it_campaigns() -> None:
    """Its own timer ran out long ago; campaigning at once would fight whoever replaces it."""
    engine = leading()
    answer(engine, "n2", HigherVote(store_of("n2"), vote(3, "n3")), now=30.0)
    engine.handle_tick(30.1)
    assert engine.take_commands() == []
    engine.handle_tick(30.6)
    assert engine.take_commands() != []
