"""Random batches, restarts and cancellations against a plain list: the log is never anything else."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftkit_core.errors import StorageError
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.testing.conformance.log_storage import context, entry, read_all, vote
from raftkit_core.types.entry import BLANK, NORMAL, Entry
from raftkit_core.types.entry_log import EntryLog
from raftkit_core.types.log_id import LogId, index_of, next_index
from raftkit_core.types.vote import LeaderId
from raftkit_sqlite import SqliteLogStorage
from raftkit_sqlite.records import entry_of, place, rows_of


class Model:
    """The contract in its plainest form: a list, and what was purged before it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.state = LogState()

    def apply(self, batch: LogBatch) -> bool:
        """Do ``batch`` as a whole; False, and nothing done, if it would leave a hole."""
        kept, purged = list(self.entries), self.state.last_purged
        if batch.truncate_since is not None:
            kept = [item for item in kept if item.index < batch.truncate_since]
        if batch.purge_upto is not None and batch.purge_upto.index > index_of(purged):
            purged = batch.purge_upto
            kept = [item for item in kept if item.index > purged.index]
        last = kept[-1].log_id if kept else purged
        for item in batch.entries:
            if item.index != next_index(last):
                return False
            kept.append(item)
            last = item.log_id
        self.entries = kept
        self.state = LogState(
            vote=self.state.vote if batch.vote is None else batch.vote, last_purged=purged, last_log_id=last
        )
        return True


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5), st.integers(0, 2)),
        st.tuples(st.just("truncate"), st.integers(0, 12), st.integers(0, 3)),
        st.tuples(st.just("purge"), st.integers(0, 8), st.integers(0, 3)),
        st.tuples(st.just("vote"), st.integers(1, 9), st.just(0)),
        st.tuples(st.just("hole"), st.integers(1, 3), st.just(1)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 4), st.integers(1, 4)),
    ),
    max_size=14,
)


def batch_of(model: Model, action: str, size: int, count: int, term: int) -> LogBatch:
    last, first = index_of(model.state.last_log_id), next_index(model.state.last_purged)
    start, since, upto = last + 1, None, None
    if action == "truncate":
        since = max(first, last + 1 - size)
        start = min(start, since)
    elif action == "purge":
        index = first + size
        old = next((item.log_id for item in model.entries if item.index == index), None)
        upto = entry(term, index).log_id if old is None else old
        start = max(start, index + 1)
    elif action == "hole":
        start += size
    made = [entry(term, index, b"%d/%d" % (term, index)) for index in range(start, start + count)]
    return LogBatch(vote(size) if action == "vote" else None, since, upto, made)


async def run(path: Path, actions: list[tuple[str, int, int]]) -> None:
    model = Model()
    storage = SqliteLogStorage(path)
    await storage.open(context())
    try:
        for term, (action, size, count) in enumerate(actions, 1):
            if action == "reopen":
                await storage.close()
                storage = SqliteLogStorage(path)
                await storage.open(context())
            elif action == "cancel":
                batch = batch_of(model, "truncate", 2, count, term)
                task = asyncio.ensure_future(storage.write(batch))
                for _ in range(size):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if await differs(storage, model):
                    model.apply(batch)
            else:
                batch = batch_of(model, action, size, count, term)
                try:
                    await storage.write(batch)
                    refused = False
                except StorageError:
                    refused = True
                assert refused != model.apply(batch), (action, size, count)
            assert not await differs(storage, model), (action, size, count)
            assert next_index(model.state.last_purged) + len(model.entries) == next_index(_last(model))
    finally:
        await storage.close()


def _last(model: Model) -> LogId | None:
    return model.state.last_log_id


async def differs(storage: SqliteLogStorage, model: Model) -> bool:
    if await storage.read_state() != model.state:
        return True
    if not model.entries:
        return False
    found = await read_all(storage, model.entries[0].index, model.entries[-1].index + 1, 64)
    return found != model.entries


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
async def test_any_sequence_of_batches_restarts_and_cancellations_is_a_plain_list(
    actions: list[tuple[str, int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await run(Path(folder) / "n1.db", actions)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from([BLANK, NORMAL, NORMAL])), min_size=1))
def test_columns_are_stored_as_the_rows_of_their_entries(steps: list[tuple[int, int, int]]) -> None:
    term, time_ms, entries = 1, 0, list[Entry]()
    for index, (elections, passed, kind) in enumerate(steps, 7):
        term, time_ms = term + elections, time_ms + passed
        entries.append(Entry(LogId(LeaderId(term, f"n{term % 3}"), index), time_ms, kind, b"%d" % index))
    start = place("n1", "default")
    rows = rows_of(entries, start)
    assert rows_of(EntryLog(entries)[:], start) == rows
    assert [entry_of(row, start, index) for index, row in enumerate(rows, 7)] == entries
