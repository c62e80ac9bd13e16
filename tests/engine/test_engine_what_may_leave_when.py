"""The table "what may leave when" (DESIGN §4), one test per row and cell.

``leaves`` plays the runtime: a command leaves when its ``when`` is flushed, and an answer made under a vote only while
that is still the node's vote.
"""

from __future__ import annotations

from raftkit_core.engine.commands import (
    Commit,
    Replicate,
    ReplicateSnapshot,
    Respond,
    SendHeartbeat,
    SendPreVote,
    SendVote,
)
from raftkit_core.engine.engine import Engine
from raftkit_core.testing.builders import (
    elect,
    engine_with,
    entry,
    flush,
    grant,
    log_id,
    log_ids,
    membership,
    snapshot_meta,
    store_of,
    vote,
)
from raftkit_core.types.log_id import LogId
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    Conflict,
    HeartbeatRequest,
    HigherVote,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Success,
    VoteRequest,
    VoteResponse,
)

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
LAST = log_id(1, "n1", 2)
ME = store_of("n1")
OLD = vote(1, "n1", committed=True)
LEADER = vote(3, "n3", committed=True)


def voter(**kwargs: object) -> Engine:
    """n1, with entries up to 2 of term 1, all durable; the lease it grants was acknowledged before."""
    defaults: dict[str, object] = {"vote": OLD, "log": [ZERO, log_id(1, "n1", 1), LAST], "committed": ZERO}
    return engine_with("n1", THREE, largest_lease_ms=500, **(defaults | kwargs))  # type: ignore[arg-type]


def leaves(engine: Engine, command: object) -> bool:
    """Whether the runtime would let ``command`` go now."""
    if getattr(command, "when", 0) > engine.flushed_io:
        return False
    under = getattr(command, "under", None)
    return under is None or under == engine.vote


def io_of(engine: Engine) -> int:
    return engine.state.io.last_io


def append(engine: Engine, prev: LogId | None, *indexes: int, request_id: int = 7) -> Respond:
    entries = [entry(log_id(3, "n3", index)) for index in indexes]
    engine.handle_append_entries(AppendEntriesRequest(LEADER, prev, entries, None, 500), request_id, 1.0)
    answer = engine.take_commands()[-1]
    assert isinstance(answer, Respond)
    return answer


# --- append / probe / heartbeat Success -----------------------------------------------------------------------------


def test_append_success_leaves_when_the_vote_and_its_entries_are_flushed() -> None:
    engine = voter()
    answer = append(engine, LAST, 3, 4)
    assert answer.response == Success(ME, log_id(3, "n3", 4))
    assert not leaves(engine, answer)
    engine.on_log_flushed(1, 1.0)  # the vote
    assert not leaves(engine, answer)
    engine.on_log_flushed(2, 1.0)  # the entries
    assert leaves(engine, answer)


def test_success_of_an_append_that_wrote_nothing_waits_for_entries_accepted_before_it() -> None:
    engine = voter()
    append(engine, LAST, 3, 4)
    engine.on_log_flushed(1, 1.0)
    repeated = append(engine, LAST, 3, 4)
    partial = append(engine, LAST, 3)
    assert not leaves(engine, repeated)
    assert not leaves(engine, partial)
    flush(engine, 1.0)
    assert leaves(engine, repeated)


def test_success_waits_only_for_entries_up_to_what_it_says() -> None:
    engine = voter()
    append(engine, LAST, 3)
    io_id = io_of(engine)
    append(engine, log_id(3, "n3", 3), 4)
    engine.on_log_flushed(io_id, 1.0)
    assert leaves(engine, append(engine, LAST, 3))
    assert not leaves(engine, append(engine, log_id(3, "n3", 3), 4))


def test_probe_success_waits_for_the_entry_it_found() -> None:
    engine = voter()
    append(engine, LAST, 3)
    probe = append(engine, log_id(3, "n3", 3))
    assert probe.response == Success(ME, log_id(3, "n3", 3))
    assert not leaves(engine, probe)
    flush(engine, 1.0)
    assert leaves(engine, probe)


def test_heartbeat_success_waits_for_the_vote_and_the_entries_up_to_its_prev() -> None:
    engine = voter()
    append(engine, LAST, 3)
    engine.handle_heartbeat(HeartbeatRequest(LEADER, log_id(3, "n3", 3), None, 500), 7, 1.0)
    (answer,) = engine.take_commands()
    assert not leaves(engine, answer)
    flush(engine, 1.0)
    assert leaves(engine, answer)


def test_success_for_an_entry_written_again_waits_for_the_second_write() -> None:
    """ "Flushed" is asked of the write, never of the index."""
    engine = voter()
    append(engine, LAST, 3)
    first = io_of(engine)
    greater = vote(4, "n2", committed=True)
    again = entry(log_id(4, "n2", 3))
    engine.handle_append_entries(AppendEntriesRequest(greater, LAST, [again], None, 500), 8, 1.0)
    answer = engine.take_commands()[-1]
    engine.on_log_flushed(first, 1.0)
    assert not leaves(engine, answer)
    flush(engine, 1.0)
    assert leaves(engine, answer)


def test_an_answer_under_a_vote_that_is_no_longer_ours_never_leaves() -> None:
    engine = voter()
    answer = append(engine, LAST, 3)
    engine.handle_heartbeat(HeartbeatRequest(vote(4, "n2", committed=True), None, None, 500), 8, 1.0)
    engine.take_commands()
    flush(engine, 1.0)
    assert not leaves(engine, answer)


def test_an_acknowledgement_waits_for_the_lease_it_grants() -> None:
    engine = voter()
    engine.handle_heartbeat(HeartbeatRequest(LEADER, None, None, 900), 7, 1.0)
    answer = engine.take_commands()[-1]
    engine.on_log_flushed(io_of(engine) - 1, 1.0)
    assert not leaves(engine, answer)
    flush(engine, 1.0)
    assert leaves(engine, answer)


# --- the other append answers ---------------------------------------------------------------------------------------


def test_conflict_leaves_when_the_vote_is_flushed() -> None:
    engine = voter()
    answer = append(engine, log_id(3, "n3", 9))
    assert answer == Respond(1, 7, Conflict(ME, 9, LAST), LEADER)
    assert not leaves(engine, answer)
    engine.on_log_flushed(1, 1.0)
    assert leaves(engine, answer)


def test_higher_vote_leaves_when_the_vote_it_reports_is_flushed() -> None:
    engine = voter()
    engine.handle_vote(VoteRequest(vote(5, "n2"), LAST), store_of("n2"), 6, 1.0)
    engine.take_commands()
    answer = append(engine, LAST, 3)
    assert answer == Respond(1, 7, HigherVote(ME, vote(5, "n2")), vote(5, "n2"))
    assert not leaves(engine, answer)
    engine.on_log_flushed(1, 1.0)
    assert leaves(engine, answer)


def test_busy_leaves_when_the_vote_it_accepted_is_flushed() -> None:
    engine = voter()
    meta = snapshot_meta(log_id(3, "n3", 9), THREE)
    engine.handle_install_snapshot(InstallSnapshotRequest(LEADER, meta), 6, 1.0)
    engine.take_commands()
    answer = append(engine, LAST, 3)
    assert answer == Respond(1, 7, Busy(ME), LEADER)
    assert not leaves(engine, answer)
    engine.on_log_flushed(1, 1.0)
    assert leaves(engine, answer)


# --- votes ----------------------------------------------------------------------------------------------------------


def test_a_grant_leaves_when_its_vote_is_flushed() -> None:
    engine = voter()
    engine.handle_vote(VoteRequest(vote(5, "n2"), LAST), store_of("n2"), 7, 1.0)
    answer = engine.take_commands()[-1]
    assert answer == Respond(1, 7, VoteResponse(ME, vote(5, "n2"), True, LAST))
    assert not leaves(engine, answer)
    engine.on_log_flushed(1, 1.0)
    assert leaves(engine, answer)


def test_a_grant_waits_for_every_entry_up_to_the_last_log_id_compared() -> None:
    """Also one granted again: entries may have been accepted since the vote was written."""
    engine = voter()
    append(engine, LAST, 3)
    engine.on_log_flushed(1, 1.0)
    at = log_id(3, "n3", 3)
    engine.handle_vote(VoteRequest(vote(5, "n2"), at), store_of("n2"), 8, 9.0)
    answer = engine.take_commands()[-1]
    assert isinstance(answer, Respond)
    assert answer.when >= 2
    engine.on_log_flushed(3, 9.0)
    assert leaves(engine, answer)


def test_a_grant_leaves_even_if_the_vote_has_moved_on() -> None:
    """It was true and is durable; the candidate's term is simply over sooner."""
    engine = voter()
    engine.handle_vote(VoteRequest(vote(5, "n2"), LAST), store_of("n2"), 7, 1.0)
    answer = engine.take_commands()[-1]
    engine.handle_vote(VoteRequest(vote(6, "n3"), LAST), store_of("n3"), 8, 1.0)
    engine.take_commands()
    flush(engine, 1.0)
    assert leaves(engine, answer)


def test_a_vote_rejection_leaves_at_once() -> None:
    engine = voter()
    append(engine, LAST, 3)
    engine.handle_vote(VoteRequest(vote(2, "n2"), LAST), store_of("n2"), 8, 9.0)
    (answer,) = engine.take_commands()
    assert leaves(engine, answer)


def test_pre_vote_answers_leave_at_once() -> None:
    engine = voter()
    append(engine, LAST, 3)
    for term in (2, 9):
        engine.handle_pre_vote(VoteRequest(vote(term, "n2"), log_id(3, "n3", 3)), store_of("n2"), 8, 9.0)
        (answer,) = engine.take_commands()
        assert leaves(engine, answer)


def test_send_pre_vote_leaves_at_once() -> None:
    engine = voter()
    engine.handle_elect(9.0)
    (command,) = engine.take_commands()
    assert isinstance(command, SendPreVote)
    assert leaves(engine, command)


def test_send_vote_leaves_when_the_own_uncommitted_vote_is_flushed() -> None:
    engine = voter(settings={"pre_vote": False})
    engine.handle_elect(9.0)
    command = engine.take_commands()[-1]
    assert isinstance(command, SendVote)
    assert not leaves(engine, command)
    engine.on_log_flushed(1, 9.0)
    assert leaves(engine, command)


def test_the_own_grant_counts_only_as_an_event_after_its_flush() -> None:
    engine = voter(settings={"pre_vote": False})
    engine.handle_elect(9.0)
    grant(engine, "n2", vote(2, "n1"), 9.0)
    assert not engine.is_leader
    engine.on_log_flushed(1, 9.0)
    assert engine.is_leader


# --- leaders --------------------------------------------------------------------------------------------------------


def test_replicate_and_heartbeat_leave_when_the_leaders_vote_is_flushed_and_before_its_entries_are() -> None:
    engine = voter()
    commands = elect(engine, 9.0)
    engine.handle_trigger_heartbeat(9.0)
    engine.handle_read([5], False, 9.0)
    commands += engine.take_commands()
    sent = [each for each in commands if isinstance(each, Replicate | SendHeartbeat)]
    assert [type(each).__name__ for each in sent] == ["Replicate", "Replicate", "SendHeartbeat", "ConfirmRead"]
    assert not any(leaves(engine, each) for each in sent)
    engine.on_log_flushed(engine.flushed_io + 1, 9.0)
    assert all(leaves(engine, each) for each in sent)
    assert engine.state.io.flushed_log_id == LAST, "the blank is not durable yet"


def test_a_snapshot_leaves_when_the_leaders_vote_is_flushed() -> None:
    """n2's conflict cannot be heard before the vote is flushed: the order names that write all the same."""
    engine = voter(log=log_ids(purged=LAST), committed=LAST, snapshot=snapshot_meta(LAST, THREE))
    elect(engine, 9.0)
    engine.on_replication_progress(1, "n2", 1, 1, 9.0, Conflict(store_of("n2"), 2, None), 9.0)
    (order,) = engine.take_commands()
    assert isinstance(order, ReplicateSnapshot)
    assert not leaves(engine, order)
    engine.on_log_flushed(engine.flushed_io + 1, 9.0)
    assert leaves(engine, order)


def test_an_entry_is_applied_when_it_is_committed_and_flushed_here() -> None:
    engine = voter()
    engine.handle_append_entries(
        AppendEntriesRequest(LEADER, LAST, [entry(log_id(3, "n3", 3))], log_id(3, "n3", 3), 500), 7, 1.0
    )
    commands = engine.take_commands()
    assert engine.state.committed == log_id(3, "n3", 3)
    assert Commit(1, LAST) in commands, "what is durable may be applied"
    assert flush(engine, 1.0) == [Commit(3, log_id(3, "n3", 3))]


# --- snapshots ------------------------------------------------------------------------------------------------------


def test_snapshot_success_leaves_when_it_is_published_restored_and_the_log_follows() -> None:
    engine = voter()
    meta = snapshot_meta(log_id(3, "n3", 9), THREE)
    engine.handle_install_snapshot(InstallSnapshotRequest(LEADER, meta), 7, 1.0)
    assert not any(isinstance(each, Respond) for each in engine.take_commands())
    engine.on_snapshot_installed(meta, 7, 1.0)
    answer = engine.take_commands()[-1]
    assert isinstance(answer, Respond)
    assert answer.response == InstallSnapshotResponse(ME, LEADER)
    assert not leaves(engine, answer)
    flush(engine, 1.0)
    assert leaves(engine, answer)


def test_snapshot_refusal_leaves_when_the_vote_it_reports_is_flushed() -> None:
    engine = voter()
    engine.handle_vote(VoteRequest(vote(5, "n2"), LAST), store_of("n2"), 6, 1.0)
    engine.take_commands()
    engine.handle_install_snapshot(InstallSnapshotRequest(LEADER, snapshot_meta(log_id(3, "n3", 9), THREE)), 7, 1.0)
    (answer,) = engine.take_commands()
    assert not leaves(engine, answer)
    engine.on_log_flushed(1, 1.0)
    assert leaves(engine, answer)
