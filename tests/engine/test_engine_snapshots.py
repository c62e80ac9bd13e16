"""Building snapshots and purging behind them, also behind a durable machine."""

from __future__ import annotations

import pytest
from following import LEADER, THREE, ZERO, following
from msgspec.structs import replace
from snapshot_checks import DONE, installed, receive

from raftkit_core.config import LogBytesSinceLast, LogsSinceLast, Never
from raftkit_core.engine.commands import BuildSnapshot, Commit, DeleteConflictLog, PurgeLog, Respond
from raftkit_core.engine.engine import Engine
from raftkit_core.engine.handlers.snapshot import PURGE_STEP_ENTRIES
from raftkit_core.errors import StorageCorrupt
from raftkit_core.testing.builders import entry, flush, log_id, log_ids, snapshot_meta
from raftkit_core.types.messages import AppendEntriesRequest


def commit(engine: Engine, index: int) -> list[object]:
    prev = engine.state.last_log_id
    assert prev is not None
    items = [entry(log_id(3, "n3", number)) for number in range(prev.index + 1, index + 1)]
    engine.handle_append_entries(AppendEntriesRequest(LEADER, prev, items, log_id(3, "n3", index), 500), 7, 1.0)
    return list(engine.take_commands())


# --- build ------------------------------------------------------------------------------------------------------------


def test_the_policy_counts_committed_entries_since_the_last_snapshot() -> None:
    engine = following(settings={"snapshot_policy": LogsSinceLast(8)})
    assert BuildSnapshot() not in commit(engine, 6)
    assert commit(engine, 7)[1] == BuildSnapshot()
    assert BuildSnapshot() not in commit(engine, 16)
    engine.on_applied(log_id(3, "n3", 7), 1.0)
    engine.on_snapshot_built(snapshot_meta(log_id(3, "n3", 7), THREE), 1.0)
    assert engine.take_commands() == [], "nothing more is applied: another build would give the same again"
    engine.on_applied(log_id(3, "n3", 16), 1.0)
    assert BuildSnapshot() in engine.take_commands(), "nine more were committed while it was built"


def test_the_policy_counts_bytes_since_the_last_snapshot() -> None:
    engine = following(settings={"snapshot_policy": LogBytesSinceLast(3)})
    assert BuildSnapshot() not in commit(engine, 7)
    assert BuildSnapshot() in commit(engine, 8)
    engine.on_snapshot_built(snapshot_meta(log_id(3, "n3", 8), THREE), 1.0)
    assert engine.take_commands() == []
    assert BuildSnapshot() not in commit(engine, 10)
    assert BuildSnapshot() in commit(engine, 11)


@pytest.mark.parametrize("policy", [Never(), LogsSinceLast(1000)])
def test_d05_a_trigger_during_a_build_is_remembered(policy: object) -> None:
    """The seed dropped it, and on a quiet node nothing asked again (openraft #1829)."""
    engine = following(settings={"snapshot_policy": policy})
    engine.handle_trigger_snapshot()
    assert engine.take_commands() == [BuildSnapshot()]
    commit(engine, 7)
    engine.handle_trigger_snapshot()
    assert engine.take_commands() == []
    engine.on_snapshot_built(snapshot_meta(log_id(1, "n1", 2), THREE), 1.0)
    assert engine.take_commands() == [BuildSnapshot()]
    engine.on_snapshot_built(snapshot_meta(log_id(3, "n3", 7), THREE), 1.0)
    assert engine.take_commands() == []


def test_d05_a_trigger_during_an_install_is_remembered() -> None:
    engine = following(settings={"snapshot_policy": Never()})
    meta = snapshot_meta(log_id(3, "n3", 9), THREE)
    receive(engine, meta)
    engine.handle_trigger_snapshot()
    assert engine.take_commands() == []
    engine.on_snapshot_install_failed(7, StorageCorrupt("no", subject="snapshot", verb="write"))
    assert BuildSnapshot() in engine.take_commands()


def test_a_trigger_that_the_finished_build_satisfies_builds_no_second_one() -> None:
    engine = following(settings={"snapshot_policy": Never()})
    engine.handle_trigger_snapshot()
    engine.handle_trigger_snapshot()
    engine.take_commands()
    engine.on_snapshot_built(snapshot_meta(log_id(1, "n1", 2), THREE), 1.0)
    assert engine.take_commands() == []


def test_a_build_that_gave_nothing_is_asked_for_again_by_the_policy() -> None:
    engine = following(settings={"snapshot_policy": LogBytesSinceLast(2)})
    assert BuildSnapshot() in commit(engine, 7)
    engine.on_snapshot_built(None, 1.0)
    assert engine.take_commands() == []
    assert BuildSnapshot() in commit(engine, 8)


def test_d14_two_snapshots_at_one_position_keep_the_first() -> None:
    """The seed asserted that every build advances (§6 item 53)."""
    engine = following(settings={"max_in_snapshot_log_to_keep": 0, "purge_batch_size": 1})
    first = snapshot_meta(log_id(1, "n1", 2), THREE, snapshot_id="a1")
    for meta in (first, snapshot_meta(log_id(1, "n1", 2), THREE, snapshot_id="b2")):
        engine.handle_trigger_snapshot()
        engine.on_snapshot_built(meta, 1.0)
    assert engine.state.snapshot == first
    assert engine.take_commands() == [BuildSnapshot(), PurgeLog(1, log_id(1, "n1", 2)), BuildSnapshot()]


def test_an_older_snapshot_than_the_current_one_changes_nothing() -> None:
    current = snapshot_meta(log_id(1, "n1", 2), THREE)
    engine = following(snapshot=current)
    engine.on_snapshot_built(snapshot_meta(log_id(1, "n1", 1), THREE), 1.0)
    assert engine.state.snapshot == current


# --- purge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "batch", "purged"),
    [
        (0, 1, 4),
        (1, 1, 3),
        (2, 3, 2),
        (2, 4, None),  # three entries may go, four make a batch
        (5, 1, None),
        (9, 1, None),
    ],
)
def test_behind_a_snapshot_some_entries_are_kept_and_the_rest_go_in_batches(
    keep: int, batch: int, purged: int | None
) -> None:
    engine = following(
        committed=log_id(2, "n2", 5), settings={"max_in_snapshot_log_to_keep": keep, "purge_batch_size": batch}
    )
    engine.on_snapshot_built(snapshot_meta(log_id(2, "n2", 4), THREE), 1.0)
    upto = None if purged is None else engine.log_id_at(purged)
    assert engine.take_commands() == ([] if upto is None else [PurgeLog(1, upto)])


@pytest.mark.parametrize(("index", "purged"), [(0, 0), (3, 3), (4, 4), (99, 4), (-1, None)])
def test_a_purge_on_request_stops_at_the_snapshot(index: int, purged: int | None) -> None:
    engine = following(committed=log_id(2, "n2", 5), snapshot=snapshot_meta(log_id(2, "n2", 4), THREE))
    upto = None if purged is None else engine.log_id_at(purged)
    engine.handle_trigger_purge(index, 1.0)
    assert engine.take_commands() == ([] if upto is None else [PurgeLog(1, upto)])


def test_without_a_snapshot_nothing_is_purged() -> None:
    engine = following()
    engine.handle_trigger_purge(2, 1.0)
    assert engine.take_commands() == []


def test_a_purge_below_what_is_purged_writes_nothing() -> None:
    at = log_id(1, "n1", 2)
    engine = following(
        log=log_ids(log_id(2, "n2", 3), log_id(2, "n2", 5), purged=at),
        committed=log_id(2, "n2", 4),
        snapshot=snapshot_meta(log_id(2, "n2", 4), THREE),
    )
    engine.handle_trigger_purge(1, 1.0)
    assert engine.take_commands() == []


def test_a_build_that_met_a_snapshot_under_installation_purges_nothing_of_this_log() -> None:
    """What the storage holds then is the leader's; this log has entries of its own there that nobody committed. Found
    by the simulator: the log was purged up to one of those, and the next append stopped the node."""
    engine = following(settings={"max_in_snapshot_log_to_keep": 0, "purge_batch_size": 1})
    engine.handle_trigger_snapshot()
    assert BuildSnapshot() in engine.take_commands()
    assert engine.log_id_at(4) == log_id(2, "n2", 4)
    published = snapshot_meta(log_id(3, "n3", 4), THREE)
    receive(engine, published)
    engine.on_snapshot_built(published, 1.0)
    assert engine.take_commands() == []
    assert (engine.state.snapshot, engine.state.log.purged) == (None, None)
    assert installed(engine, published) == [
        DeleteConflictLog(1, 3),
        PurgeLog(2, log_id(3, "n3", 4)),
        Respond(2, 7, DONE, LEADER),
    ]
    assert engine.state.snapshot == published


def long_log(last: int) -> Engine:
    """n1 follows n3 with ``last`` entries, all committed, and keeps none behind a snapshot."""
    return following(
        log=[ZERO, log_id(2, "n2", 1), log_id(2, "n2", last)],
        committed=log_id(2, "n2", last),
        settings={"max_in_snapshot_log_to_keep": 0, "purge_batch_size": 1, "enable_elect": False},
    )


def test_a_long_purge_goes_in_steps_each_after_the_one_before_is_durable() -> None:
    """At once it takes a store seconds to delete, and whoever writes meanwhile waits for it."""
    engine = long_log(3000)
    step = PURGE_STEP_ENTRIES
    engine.on_snapshot_built(snapshot_meta(log_id(2, "n2", 3000), THREE), 1.0)
    assert engine.take_commands() == [PurgeLog(1, log_id(2, "n2", step - 1))]
    engine.handle_trigger_purge(3000, 1.1)
    assert engine.take_commands() == [], "the first step is not durable yet"
    assert flush(engine, 1.2) == [PurgeLog(2, log_id(2, "n2", 2 * step - 1))]
    assert flush(engine, 1.3) == [PurgeLog(3, log_id(2, "n2", 3000))]
    assert flush(engine, 1.4) == []
    assert engine.state.log.purged == log_id(2, "n2", 3000)


def test_a_store_that_finishes_at_once_purges_one_step_at_a_time_all_the_same() -> None:
    engine = long_log(3000)
    engine.on_snapshot_built(snapshot_meta(log_id(2, "n2", 3000), THREE), 1.0)
    engine.take_commands()
    assert flush(engine, 1.0) == [], "in the same turn"
    engine.handle_tick(1.1)
    assert engine.take_commands() == [PurgeLog(2, log_id(2, "n2", 2 * PURGE_STEP_ENTRIES - 1))]


def test_a_long_purge_that_an_install_overtakes_ends() -> None:
    engine = long_log(3000)
    engine.on_snapshot_built(snapshot_meta(log_id(2, "n2", 3000), THREE), 1.0)
    engine.take_commands()
    at = log_id(3, "n3", 5000)
    meta = snapshot_meta(at, THREE)
    receive(engine, meta)
    assert PurgeLog(2, at) in installed(engine, meta)
    assert flush(engine, 2.0) == []


def durable(**settings: object) -> Engine:
    defaults = {"max_in_snapshot_log_to_keep": 1, "purge_batch_size": 1}
    return following(machine_is_durable=True, settings=defaults | settings)


def applied(engine: Engine, index: int) -> list[object]:
    at = engine.log_id_at(index)
    assert at is not None
    engine.on_applied(at, 1.0)
    return list(engine.take_commands())


# --- a durable machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [LogsSinceLast(4), LogBytesSinceLast(4)])
def test_a_durable_machine_builds_nothing_by_policy_and_purges_behind_what_it_has_applied(policy: object) -> None:
    engine = durable(snapshot_policy=policy)
    commands = commit(engine, 9)
    assert BuildSnapshot() not in commands
    assert not any(isinstance(command, PurgeLog) for command in commands), "committed, but not applied yet"
    assert applied(engine, 9) == [PurgeLog(engine.state.io.last_io, log_id(3, "n3", 8))], "one entry is kept"
    assert engine.state.snapshot is None
    engine.state.check()
    assert [applied(commit_to(engine, index), index) for index in (10, 11, 12)] == [[], [], []]
    assert applied(commit_to(engine, 13), 13) == [PurgeLog(engine.state.io.last_io, log_id(3, "n3", 12))]


def commit_to(engine: Engine, index: int) -> Engine:
    commit(engine, index)
    return engine


def test_the_purge_behind_a_durable_machine_goes_no_further_than_it_has_applied() -> None:
    engine = durable(snapshot_policy=LogsSinceLast(4), max_in_snapshot_log_to_keep=0)
    commit(engine, 20)
    assert applied(engine, 6) == [PurgeLog(engine.state.io.last_io, log_id(3, "n3", 6))]


def test_never_purges_nothing_behind_a_durable_machine_until_somebody_asks() -> None:
    engine = durable(snapshot_policy=Never())
    commit(engine, 20)
    assert applied(engine, 18) == []
    engine.handle_trigger_purge(99, 1.0)
    assert engine.take_commands() == [PurgeLog(engine.state.io.last_io, log_id(3, "n3", 18))]


def test_a_snapshot_asked_of_a_durable_machine_is_built() -> None:
    engine = durable(snapshot_policy=LogsSinceLast(4))
    engine.handle_trigger_snapshot()
    assert engine.take_commands() == [BuildSnapshot()]


def test_while_a_durable_machine_gives_a_snapshot_nothing_is_purged_by_policy() -> None:
    """What follows the snapshot must be there for the peer that gets it; else it needs the next one, endlessly."""
    engine = durable(snapshot_policy=LogsSinceLast(4))
    engine.handle_trigger_snapshot()
    commit(engine, 20)
    assert applied(engine, 20) == []
    engine.on_snapshot_built(snapshot_meta(log_id(1, "n1", 2), THREE), 1.0)
    assert engine.take_commands() == [PurgeLog(engine.state.io.last_io, log_id(1, "n1", 1))], "behind the snapshot only"
    commit(engine, 21)
    assert applied(engine, 21) == [PurgeLog(engine.state.io.last_io, log_id(3, "n3", 20))]


def test_the_bytes_kept_behind_a_durable_machine_are_those_of_its_last_snapshot_at_least() -> None:
    engine = durable(snapshot_policy=LogBytesSinceLast(2), max_in_snapshot_log_to_keep=0)
    engine.handle_trigger_snapshot()
    meta = replace(snapshot_meta(log_id(1, "n1", 2), THREE), size_bytes=10)
    engine.on_snapshot_built(meta, 1.0)
    engine.take_commands()
    commit(engine, 14)
    assert applied(engine, 14) == [], "nine bytes since the view of ten was taken"
    commit(engine, 15)
    assert applied(engine, 15) == [PurgeLog(engine.state.io.last_io, log_id(3, "n3", 15))]


# --- apply ------------------------------------------------------------------------------------------------------------


def test_what_a_restart_found_committed_and_not_applied_is_applied_at_the_start() -> None:
    engine = following(applied=ZERO, started=False)
    engine.startup(0.0)
    assert engine.take_commands() == [Commit(1, log_id(1, "n1", 2))]


def test_applied_never_falls() -> None:
    engine = following()
    engine.on_applied(log_id(1, "n1", 1), 1.0)
    assert engine.state.applied == log_id(1, "n1", 2)
