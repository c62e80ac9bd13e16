"""A leader and its peers: what is sent, what answers mean, what is committed (openraft.md §2.6, §2.7)."""

from __future__ import annotations

import pytest

from raftkit_core.engine.commands import (
    AppendInputEntries,
    BuildSnapshot,
    Command,
    Commit,
    PurgeLog,
    QuitLeader,
    RebuildReplicationStreams,
    Replicate,
    ReplicateCommitted,
    ReplicateSnapshot,
    Respond,
    SaveVote,
    SendHeartbeat,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.progress import ProgressState
from raftkit_core.errors import ConditionFailed, ForwardToLeader, Overloaded
from raftkit_core.testing.builders import (
    blank,
    elect,
    engine_with,
    entry,
    flush,
    log_id,
    log_ids,
    membership,
    node,
    snapshot_meta,
    store_of,
    vote,
)
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import AddNodes, RemoveNodes, RemoveVoters
from raftkit_core.types.messages import (
    AppendEntriesResponse,
    Busy,
    Conflict,
    HigherVote,
    InstallSnapshotResponse,
    Success,
)
from raftkit_core.types.metrics import ServerState

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
BLANK = log_id(1, "n1", 1)
LEADING = vote(1, "n1", committed=True)


def leading(*answering: str, **settings: object) -> Engine:
    """n1 leads n2 and n3 in term 1 since 0.0; its blank entry 1 is durable and committed, ``answering`` have it."""
    engine = engine_with("n1", THREE, log=[ZERO], committed=ZERO, settings=settings)
    elect(engine)
    flush(engine)
    for peer in answering or ("n2", "n3"):
        answer(engine, peer, Success(store_of(peer), BLANK))
    assert engine.state.committed == BLANK
    engine.on_applied(BLANK, 1.0)
    return engine


def answer(
    engine: Engine,
    peer: str,
    response: AppendEntriesResponse,
    *,
    now: float = 0.0,
    epoch: int | None = None,
    seq: int = 1,
    sent_at: float = 0.0,
    session: int | None = None,
) -> list[Command]:
    """``peer`` answers an append."""
    progress = engine.progress
    assert progress is not None
    epoch = progress[peer].epoch if epoch is None else epoch
    session = engine.session if session is None else session
    engine.on_replication_progress(session, peer, epoch, seq, sent_at, response, now)
    return engine.take_commands()


def ack(engine: Engine, peer: str, index: int, *, now: float = 0.0) -> list[Command]:
    return answer(engine, peer, Success(store_of(peer), engine.log_id_at(index)), now=now)


def write(engine: Engine, count: int = 1, *, now: float = 0.0, payload: bytes = b"x") -> list[Command]:
    first = engine.handle_client_write([payload] * count, now)
    assert isinstance(first, LogId), first
    return engine.take_commands()


def targets(commands: list[Command]) -> dict[str, tuple[LogId | None, int]]:
    """For each peer that is sent entries: what before, and up to where."""
    return {each.target: (each.prev_log_id, each.last_index) for each in commands if isinstance(each, Replicate)}


# --- a new leader ---------------------------------------------------------------------------------------------------


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
            2, 1, peer, progress[peer].epoch, progress[peer].inflight[0].id, seq + offset, 0.25, LEADING, prev, 3,
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


# --- answers --------------------------------------------------------------------------------------------------------


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


# --- windows and probes ---------------------------------------------------------------------------------------------


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


def lagging() -> tuple[Engine, list[Command]]:
    """n2 needs entries that are purged; gives the commands that answer its conflict."""
    at = log_id(1, "n2", 9)
    engine = engine_with(
        "n1",
        THREE,
        vote=vote(1, "n2"),
        log=log_ids(log_id(1, "n2", 10), log_id(1, "n2", 12), purged=at),
        committed=at,
        snapshot=snapshot_meta(log_id(1, "n2", 9), THREE),
    )
    elect(engine)
    flush(engine)
    return engine, answer(engine, "n2", Conflict(store_of("n2"), 12, log_id(1, "n2", 3)))


def test_a_peer_that_needs_purged_entries_is_sent_the_snapshot() -> None:
    engine, commands = lagging()
    progress = engine.progress
    assert progress is not None
    sent = progress["n2"]
    order = commands[0]
    assert isinstance(order, ReplicateSnapshot)
    assert commands == [ReplicateSnapshot(2, 1, "n2", sent.epoch, sent.inflight[0].id, order.seq, 0.0, engine.vote)]
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


# --- heartbeats -----------------------------------------------------------------------------------------------------


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


# --- limits ---------------------------------------------------------------------------------------------------------


def test_overloaded_is_definite_and_ends_when_something_is_committed() -> None:
    engine = leading(max_uncommitted_bytes=10)
    write(engine, payload=b"12345678")
    refusal = engine.handle_client_write([b"123"], 0.0)
    assert isinstance(refusal, Overloaded)
    assert refusal.outcome == "not_applied"
    assert engine.take_commands() == []
    assert engine.state.log.last_index == 2
    flush(engine)
    ack(engine, "n2", 2)
    write(engine, payload=b"123")


def test_one_entry_larger_than_the_limit_still_gets_through_beside_the_blank() -> None:
    engine = engine_with("n1", THREE, log=[ZERO], committed=ZERO, settings={"max_uncommitted_bytes": 10})
    elect(engine)
    write(engine, payload=b"12345678901")


def test_a_follower_says_who_leads_and_appends_nothing() -> None:
    engine = engine_with("n1", THREE, vote=vote(3, "n2", committed=True), log=[ZERO], committed=ZERO)
    refusal = engine.handle_client_write([b"x"], 0.0)
    assert isinstance(refusal, ForwardToLeader)
    assert (refusal.leader, refusal.leader_node) == ("n2", THREE.nodes["n2"])
    assert engine.take_commands() == []


def test_a_node_that_knows_no_leader_names_none() -> None:
    for known in (vote(3, "n2"), vote(3, "n1", committed=True), vote(3, "n9", committed=True)):
        engine = engine_with("n1", THREE, vote=known, log=[ZERO], committed=ZERO)
        refusal = engine.handle_client_write([b"x"], 0.0)
        assert isinstance(refusal, ForwardToLeader)
        assert refusal.leader is None


# --- streams --------------------------------------------------------------------------------------------------------


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


# --- purge ----------------------------------------------------------------------------------------------------------


def test_entries_a_request_in_flight_was_built_on_are_not_purged() -> None:
    """§6 item 45."""
    engine = leading(max_in_snapshot_log_to_keep=0, purge_batch_size=1)
    write(engine, 3)
    flush(engine)
    ack(engine, "n2", 4)
    engine.on_applied(log_id(1, "n1", 4), 1.0)
    engine.on_snapshot_built(snapshot_meta(log_id(1, "n1", 4), THREE), 0.0)
    assert engine.take_commands() == []  # n3 has (1, 4] in flight
    commands = ack(engine, "n3", 4)
    assert PurgeLog(engine.state.io.last_io, log_id(1, "n1", 4)) in commands
    assert engine.state.log.purged == log_id(1, "n1", 4)


def test_a_peer_whose_first_probe_is_answered_late_gets_the_entries_and_no_snapshot() -> None:
    """A slow voter of a new cluster: the others had committed, and the purge waited for its probe alone."""
    engine = leading("n2", max_in_snapshot_log_to_keep=0, purge_batch_size=1)
    write(engine, 3)
    flush(engine)
    ack(engine, "n2", 4)
    engine.on_applied(log_id(1, "n1", 4), 1.0)
    engine.on_snapshot_built(snapshot_meta(log_id(1, "n1", 4), THREE), 0.0)
    assert engine.take_commands() == []  # n3 has (-1, 1] in flight
    commands = ack(engine, "n3", 1)
    assert targets(commands) == {"n3": (BLANK, 4)}
    assert not any(isinstance(command, PurgeLog | ReplicateSnapshot) for command in commands)
    assert ack(engine, "n3", 4)[0] == PurgeLog(engine.state.io.last_io, log_id(1, "n1", 4))


def test_a_peer_that_fails_does_not_hold_up_what_is_about_to_be_purged() -> None:
    engine = leading("n2", max_in_snapshot_log_to_keep=0, purge_batch_size=1)
    write(engine, 3)
    flush(engine)
    ack(engine, "n2", 4)
    engine.on_applied(log_id(1, "n1", 4), 1.0)
    engine.on_snapshot_built(snapshot_meta(log_id(1, "n1", 4), THREE), 0.0)
    assert engine.take_commands() == []
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


# --- writes under a condition ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "is_met"),
    [
        (WriteCondition(), True),
        (WriteCondition(leader_id=LEADING.leader_id, last_log_id=BLANK, membership_log_id=ZERO), True),
        (WriteCondition(leader_id=vote(9).leader_id), False),
        (WriteCondition(last_log_id=ZERO), False),
        (WriteCondition(membership_log_id=BLANK), False),
    ],
)
def test_a_write_whose_condition_is_not_met_enters_no_log(condition: WriteCondition, is_met: bool) -> None:
    engine = leading()
    result = engine.handle_client_write([b"x"], 0.0, condition)
    assert isinstance(result, LogId if is_met else ConditionFailed)
    assert bool(engine.take_commands()) is is_met
