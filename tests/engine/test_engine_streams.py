"""Windows, probes and streams: what a peer is sent, what is kept for it, and when it is let go."""

from __future__ import annotations

from leading import BLANK, THREE, ZERO, ack, answer, lagging, leading, targets, write

from raftkit_core.engine.commands import (
    BuildSnapshot,
    PurgeLog,
    RebuildReplicationStreams,
    Replicate,
    ReplicateSnapshot,
    Respond,
    SendHeartbeat,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.progress import ProgressState
from raftkit_core.testing.builders import (
    elect,
    engine_with,
    flush,
    log_id,
    log_ids,
    node,
    snapshot_meta,
    store_of,
    vote,
)
from raftkit_core.types.membership import AddNodes, RemoveNodes, RemoveVoters
from raftkit_core.types.messages import Conflict, HigherVote, InstallSnapshotResponse, Success

# --- windows and probes -----------------------------------------------------------------------------------------------


def test_the_window_holds_no_more_than_max_inflight_requests() -> None:
    engine = leading(max_inflight=2, max_payload_entries=2)
    assert [each.last_index for each in write(engine, 7) if isinstance(each, Replicate) and each.target == "n2"] == [
        3,
        5,
    ]
    (third,) = [each for each in ack(engine, "n2", 3) if isinstance(each, Replicate)]
    assert (third.prev_log_id, third.last_index, third.single) == (log_id(1, "n1", 5), 7, False)


def test_a_probe_that_failed_carries_no_entries() -> None:
    engine = engine_with(
        "n1", THREE, vote=vote(1, "n2"), log=[ZERO, log_id(1, "n2", 1), log_id(1, "n2", 40)], committed=ZERO
    )
    commands = elect(engine)
    assert targets(commands)["n2"] == (log_id(1, "n2", 40), 41)
    (probe,) = [
        each for each in answer(engine, "n2", Conflict(store_of("n2"), 40, ZERO)) if isinstance(each, Replicate)
    ]
    assert (probe.prev_log_id, probe.last_index, probe.single) == (ZERO, 0, True)
    commands = ack(engine, "n2", 0)
    assert targets(commands) == {"n2": (ZERO, 41)}


def test_a_peer_that_needs_purged_entries_is_sent_the_snapshot() -> None:
    engine, commands = lagging()
    progress = engine.progress
    assert progress is not None
    sent = progress["n2"]
    order = commands[0]
    assert isinstance(order, ReplicateSnapshot)
    assert commands == [ReplicateSnapshot(2, 1, "n2", sent.epoch, order.seq, 0.0, engine.vote)]
    assert sent.state is ProgressState.SNAPSHOT
    engine.on_snapshot_sent(
        1,
        "n2",
        sent.epoch,
        order.seq,
        0.0,
        log_id(1, "n2", 9),
        InstallSnapshotResponse(store_of("n2"), engine.vote),
        1.0,
    )
    assert targets(engine.take_commands()) == {"n2": (log_id(1, "n2", 9), 13)}


def test_a_snapshot_transfer_that_failed_is_started_again() -> None:
    engine, _ = lagging()
    progress = engine.progress
    assert progress is not None
    engine.on_replication_failed(1, "n2", progress["n2"].epoch, 1.0)
    (again,) = engine.take_commands()
    assert isinstance(again, ReplicateSnapshot)


def test_a_snapshot_answer_with_another_vote_ends_this_leadership() -> None:
    engine, _ = lagging()
    progress = engine.progress
    assert progress is not None
    response = InstallSnapshotResponse(store_of("n2"), vote(5, "n3", committed=True))
    engine.on_snapshot_sent(1, "n2", progress["n2"].epoch, 9, 0.0, log_id(1, "n2", 9), response, 1.0)
    assert not engine.is_leader
    assert engine.vote == vote(5, "n3")


def test_a_snapshot_answer_extends_no_lease() -> None:
    """It carries no lease: the peer promised at most its own, which may be shorter than this leader's."""
    engine, _ = lagging()
    before = engine.acked_at("n2")
    progress = engine.progress
    assert progress is not None
    response = InstallSnapshotResponse(store_of("n2"), engine.vote)
    engine.on_snapshot_sent(1, "n2", progress["n2"].epoch, 99, 5.0, log_id(1, "n2", 9), response, 6.0)
    assert engine.acked_at("n2") == before


def test_d04_when_everything_is_purged_a_probe_still_finds_out() -> None:
    """The seed had nothing to send and the peer stayed behind for ever (openraft #1828)."""
    at = log_id(1, "n2", 9)
    engine = engine_with(
        "n1", THREE, vote=vote(1, "n2"), log=log_ids(purged=at), committed=at, snapshot=snapshot_meta(at, THREE)
    )
    commands = elect(engine)
    assert targets(commands)["n2"] == (at, 10)
    (order,) = answer(engine, "n2", Conflict(store_of("n2"), 9, None))
    assert isinstance(order, ReplicateSnapshot)


def test_without_a_snapshot_one_is_built_and_then_sent() -> None:
    at = log_id(1, "n2", 9)
    engine = engine_with("n1", THREE, vote=vote(1, "n2"), log=log_ids(purged=at), committed=at)
    elect(engine)
    assert answer(engine, "n2", Conflict(store_of("n2"), 9, None)) == [BuildSnapshot()]
    engine.on_snapshot_built(snapshot_meta(at, THREE), 1.0)
    (order,) = engine.take_commands()
    assert isinstance(order, ReplicateSnapshot)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_removed_node_keeps_its_stream_until_it_knows() -> None:
    """It hears of the commit of its removal, or two election timeouts pass."""
    engine = leading()
    engine.handle_change_membership(RemoveVoters(("n3",)), retain=False, force=False, store_ids={}, now=0.0)
    flush(engine)
    ack(engine, "n2", 2)  # joint
    ack(engine, "n3", 2)
    engine.take_commands()
    engine.handle_change_membership(RemoveVoters(("n3",)), retain=False, force=False, store_ids={}, now=0.0)
    commands = engine.take_commands()
    (streams,) = [each for each in commands if isinstance(each, RebuildReplicationStreams)]
    assert dict(streams.targets) == {"n2": node("n2"), "n3": node("n3")}
    assert targets(commands)["n3"] == (log_id(1, "n1", 2), 3)
    flush(engine)
    ack(engine, "n3", 3)
    ack(engine, "n2", 3)
    assert engine.state.committed == log_id(1, "n1", 3)
    engine.handle_tick(0.0)
    (beat,) = engine.take_commands()
    assert isinstance(beat, SendHeartbeat), "n3 holds the entry but has not heard that it is committed"
    engine.on_heartbeat_response(1, "n3", beat.seq, 0.0, Success(store_of("n3"), log_id(1, "n1", 3)), 0.05)
    engine.take_commands()
    engine.handle_tick(0.06)
    assert engine.take_commands() == [RebuildReplicationStreams(1, (("n2", node("n2")),))]


def test_the_stream_of_a_silent_removed_node_ends_after_two_timeouts() -> None:
    engine = leading()
    engine.handle_change_membership(AddNodes({"n4": node("n4")}), retain=False, force=False, store_ids={}, now=0.0)
    flush(engine)
    ack(engine, "n2", 2)
    engine.handle_change_membership(RemoveNodes(("n4",)), retain=False, force=False, store_ids={}, now=0.0)
    flush(engine)
    ack(engine, "n2", 3)
    # Another change rebuilds the streams: the one that lingers keeps the address it had.
    engine.handle_change_membership(AddNodes({"n5": node("n5")}), retain=False, force=False, store_ids={}, now=0.0)
    (streams,) = [each for each in engine.take_commands() if isinstance(each, RebuildReplicationStreams)]
    assert dict(streams.targets) == {peer: node(peer) for peer in ("n2", "n3", "n4", "n5")}
    for now in (0.5, 1.0, 1.5, 1.99):
        answer(engine, "n2", Success(store_of("n2"), BLANK), sent_at=now)
        engine.handle_tick(now)
    assert engine.progress is not None
    assert "n4" in engine.progress
    engine.take_commands()
    engine.handle_tick(2.0)
    assert RebuildReplicationStreams(1, tuple((peer, node(peer)) for peer in ("n2", "n3", "n5"))) in (
        engine.take_commands()
    )


def test_a_node_that_was_removed_and_added_again_has_acknowledged_nothing() -> None:
    """It may come back with an empty store: what the former one held must not count towards a quorum."""
    engine = leading()
    engine.handle_change_membership(AddNodes({"n4": node("n4")}), retain=False, force=False, store_ids={}, now=0.0)
    flush(engine)
    ack(engine, "n2", 2)
    ack(engine, "n4", 2)
    engine.handle_change_membership(RemoveNodes(("n4",)), retain=False, force=False, store_ids={}, now=0.0)
    flush(engine)
    ack(engine, "n2", 3)
    rejoined = {"n4": node("n4", bound=False)}
    engine.handle_change_membership(AddNodes(rejoined), retain=False, force=False, store_ids={"n4": "another"}, now=0.0)
    progress = engine.progress
    assert progress is not None
    assert progress["n4"].matching is None
    assert engine.effective.nodes["n4"].store_id == "another"


# --- purge ------------------------------------------------------------------------------------------------------------


def about_to_purge(*probed: str) -> Engine:
    """A leader with a snapshot of all it has, and n2 has all of it; n3 still has a request in flight."""
    engine = leading(*probed, max_in_snapshot_log_to_keep=0, purge_batch_size=1)
    write(engine, 3)
    flush(engine)
    ack(engine, "n2", 4)
    engine.on_applied(log_id(1, "n1", 4), 1.0)
    engine.on_snapshot_built(snapshot_meta(log_id(1, "n1", 4), THREE), 0.0)
    assert engine.take_commands() == []
    return engine


def test_entries_a_request_in_flight_was_built_on_are_not_purged() -> None:
    """§6 item 45."""
    engine = about_to_purge("n2", "n3")  # n3 has (1, 4] in flight
    commands = ack(engine, "n3", 4)
    assert PurgeLog(engine.state.io.last_io, log_id(1, "n1", 4)) in commands
    assert engine.state.log.purged == log_id(1, "n1", 4)


def test_a_peer_whose_first_probe_is_answered_late_gets_the_entries_and_no_snapshot() -> None:
    """A slow voter of a new cluster: the others had committed, and the purge waited for its probe alone."""
    engine = about_to_purge("n2")  # n3 has (-1, 1] in flight
    commands = ack(engine, "n3", 1)
    assert targets(commands) == {"n3": (BLANK, 4)}
    assert not any(isinstance(command, PurgeLog | ReplicateSnapshot) for command in commands)
    assert ack(engine, "n3", 4)[0] == PurgeLog(engine.state.io.last_io, log_id(1, "n1", 4))


def test_a_peer_that_fails_does_not_hold_up_what_is_about_to_be_purged() -> None:
    engine = about_to_purge("n2")
    progress = engine.progress
    assert progress is not None
    engine.on_replication_failed(engine.session, "n3", progress["n3"].epoch, 1.0)
    sent, purge = engine.take_commands()
    assert isinstance(sent, ReplicateSnapshot)
    assert purge == PurgeLog(engine.state.io.last_io, log_id(1, "n1", 4))


def test_an_answer_to_a_caller_that_waits_is_never_part_of_a_truncation() -> None:
    engine = leading()
    write(engine)
    commands = answer(engine, "n2", HigherVote(store_of("n2"), vote(2, "n2")))
    assert not any(isinstance(each, Respond) for each in commands)
