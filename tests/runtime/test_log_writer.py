"""The log lane: what is joined, in which order, and what a failure means."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.engine.commands import (
    AppendInputEntries,
    DeleteConflictLog,
    LogCommand,
    PurgeLog,
    SaveLease,
    SaveVote,
)
from raftkit_core.errors import StorageError
from raftkit_core.runtime import log_writer
from raftkit_core.runtime.log_writer import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, LogTail, LogWriter
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.builders import entry, log_id, vote
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import NORMAL, Entries, Entry, payload_bytes

pytestmark = pytest.mark.virtual_time


class Held(MemoryLogStorage):
    """Remembers every batch; with ``gate`` closed a write is finished later."""

    def __init__(self, disk: MemoryDisk) -> None:
        super().__init__(disk)
        self.batches: list[LogBatch] = []
        self.as_they_came: list[list[Entry]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def write(self, batch: LogBatch) -> Awaitable[None] | None:  # type: ignore[override]
        self.batches.append(batch)
        self.as_they_came.append(list(batch.entries))
        if self.gate.is_set():
            return super().write(batch)
        return self._later(batch)

    async def _later(self, batch: LogBatch) -> None:
        await self.gate.wait()
        super().write(batch)


class Lane:
    """A writer over a held storage, and what it told."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.storage = Held(self.disk)
        self.flushed: list[int] = []
        self.failures: list[BaseException] = []
        self.leases: list[int] = []
        self.writer = LogWriter(self.storage, self._save_lease, self.flushed.append, self.failures.append)
        self._io_id = 0

    async def _save_lease(self, lease_ms: int) -> None:
        self.leases.append(lease_ms)

    async def open(self) -> Lane:
        await self.storage.open(AdapterContext("n1", clock=VirtualClock()))
        return self

    def io(self) -> int:
        self._io_id += 1
        return self._io_id

    def submit(self, *commands: LogCommand) -> None:
        for command in commands:
            self.writer.submit(command)
        self.writer.kick()
        if self.writer.written > max(self.flushed, default=0):
            self.flushed.append(self.writer.written)

    def append(self, term: int, first: int, last: int, size: int = 1) -> AppendInputEntries:
        return AppendInputEntries(
            self.io(), [entry(log_id(term, "n1", index), b"x" * size) for index in range(first, last + 1)]
        )

    def append_together(self, term: int, first: int, last: int) -> AppendInputEntries:
        payloads = [b"%d" % index for index in range(first, last + 1)]
        return AppendInputEntries(self.io(), Entries(log_id(term, "n1", first), term, NORMAL, payloads))

    def vote(self, term: int) -> SaveVote:
        return SaveVote(self.io(), vote(term))

    def truncate(self, since: int) -> DeleteConflictLog:
        return DeleteConflictLog(self.io(), since)

    def purge(self, term: int, upto: int) -> PurgeLog:
        return PurgeLog(self.io(), log_id(term, "n1", upto))

    def commit(self, term: int, index: int) -> None:
        self.writer.save_committed(log_id(term, "n1", index))


async def test_a_write_that_finishes_at_once_is_reported_in_the_same_turn() -> None:
    lane = await Lane().open()
    lane.submit(lane.vote(1), lane.append(1, 0, 2))
    assert lane.flushed == [2]
    assert len(lane.storage.batches) == 1


@pytest.mark.parametrize("takes_columns", [False, True])
async def test_a_storage_is_given_lists_unless_it_takes_columns(takes_columns: bool) -> None:
    lane = await Lane().open()
    lane.storage.takes_columns = takes_columns
    one, two, three = (Entries(log_id(1, "n1", first), first, NORMAL, [b"a", b"b"]) for first in (0, 2, 4))
    lane.storage.gate.clear()
    lane.submit(AppendInputEntries(lane.io(), one))
    lane.submit(AppendInputEntries(lane.io(), two), AppendInputEntries(lane.io(), three))
    lane.storage.gate.set()
    await lane.writer.close()
    given = [batch.entries for batch in lane.storage.batches]
    assert [type(entries) for entries in given] == [Entries if takes_columns else list] * 2
    assert given == [list(one), [*two, *three]]


class Keeps(Held):
    """Takes the lists it is given for its own."""

    takes_columns = False

    def __init__(self, disk: MemoryDisk) -> None:
        super().__init__(disk)
        self.kept: list[Entry] = []

    def write(self, batch: LogBatch) -> Awaitable[None] | None:  # type: ignore[override]
        assert isinstance(batch.entries, list) or not batch.entries
        if not self.kept and isinstance(batch.entries, list):
            self.kept = batch.entries
        else:
            self.kept += batch.entries
        super().write(LogBatch(batch.vote, batch.truncate_since, batch.purge_upto, [*batch.entries], batch.committed))
        return None


@pytest.mark.parametrize("together", [False, True])
async def test_a_storage_that_takes_no_columns_may_keep_and_change_the_lists_it_gets(together: bool) -> None:
    lane = await Lane().open()
    lane.storage = storage = Keeps(lane.disk)
    lane.disk.crash()
    await storage.open(AdapterContext("n1", clock=VirtualClock()))
    lane.writer = LogWriter(storage, lane._save_lease, lane.flushed.append, lane.failures.append)
    for index in range(4):
        appends = [lane.append(1, 2 * index, 2 * index), lane.append(1, 2 * index + 1, 2 * index + 1)]
        if together:
            lane.submit(*appends)
        else:
            for append in appends:
                lane.submit(append)
    expected = [entry(log_id(1, "n1", index)) for index in range(8)]
    assert storage.kept == expected
    assert lane.writer.tail.read(0, 100, 1000) == expected
    assert lane.failures == []


async def test_what_gathers_during_a_write_becomes_one_batch() -> None:
    lane = await Lane().open()
    lane.storage.gate.clear()
    lane.submit(lane.append(1, 0, 0))
    await asyncio.sleep(0)
    for index in range(1, 6):
        lane.submit(lane.append(1, index, index))
    assert lane.flushed == []
    lane.storage.gate.set()
    await asyncio.sleep(0.1)
    assert [len(batch.entries) for batch in lane.storage.batches] == [1, 5]
    assert lane.flushed == [1, 6]


async def test_a_batch_is_cut_by_entries_and_by_bytes_even_within_one_command() -> None:
    lane = await Lane().open()
    lane.submit(lane.append(1, 0, 2 * MAX_BATCH_ENTRIES))
    assert [len(batch.entries) for batch in lane.storage.batches] == [MAX_BATCH_ENTRIES, MAX_BATCH_ENTRIES, 1]
    assert lane.flushed == [1], "the command is done when its last entry is"
    lane.storage.batches.clear()
    start = 2 * MAX_BATCH_ENTRIES + 1
    lane.submit(lane.append(1, start, start + 9, size=1024 * 1024))
    assert [sum(len(e.payload) for e in batch.entries) for batch in lane.storage.batches] == [
        MAX_BATCH_BYTES,
        MAX_BATCH_BYTES,
        2 * 1024 * 1024,
    ]
    lane.storage.batches.clear()
    lane.submit(lane.append(1, start + 10, start + 10, size=2 * MAX_BATCH_BYTES))
    assert len(lane.storage.batches) == 1, "one entry always passes"


async def test_committed_never_causes_a_write_and_rides_with_the_next() -> None:
    lane = await Lane().open()
    lane.submit(lane.append(1, 0, 3))
    lane.commit(1, 2)
    lane.commit(1, 3)
    lane.submit()
    assert len(lane.storage.batches) == 1
    assert lane.disk.committed is None
    lane.submit(lane.vote(2))
    assert lane.disk.committed == log_id(1, "n1", 3)
    lane.submit(lane.vote(3))
    assert lane.storage.batches[-1].committed is None, "saved once"


async def test_committed_is_saved_at_close() -> None:
    lane = await Lane().open()
    lane.submit(lane.append(1, 0, 3))
    lane.commit(1, 3)
    await lane.writer.close()
    assert lane.disk.committed == log_id(1, "n1", 3)


async def test_committed_is_not_saved_before_the_entries_it_names_are_written() -> None:
    """The lane holds [purge, truncate, append]: the first batch can hold the purge alone. Were what is to be appended
    saved as committed in it, a crash after it would leave the old tail as committed."""
    lane = await Lane().open()
    lane.submit(lane.vote(1), lane.append(1, 0, 9))
    lane.storage.gate.clear()
    lane.submit(lane.vote(2))
    await asyncio.sleep(0)
    lane.submit(lane.purge(1, 3), lane.truncate(5), lane.append(2, 5, 7))
    with pytest.raises(AssertionError, match="is not durable"):
        lane.commit(2, 10)
    lane.commit(1, 3)
    lane.storage.gate.set()
    await asyncio.sleep(0.1)
    assert lane.failures == []
    saved = [(batch.purge_upto, batch.truncate_since, batch.committed) for batch in lane.storage.batches[2:]]
    assert saved == [(log_id(1, "n1", 3), None, log_id(1, "n1", 3)), (None, 5, None)]
    lane.commit(2, 7)
    lane.submit(lane.vote(3))
    assert lane.disk.committed == log_id(2, "n1", 7)


async def test_committed_is_never_ahead_of_the_log_after_a_truncation_without_appends() -> None:
    lane = await Lane().open()
    lane.submit(lane.vote(1), lane.append(1, 0, 9))
    lane.submit(lane.truncate(5), SaveLease(lane.io(), 500), lane.append(2, 5, 7))
    lane.commit(1, 4)
    await asyncio.sleep(0.1)
    assert lane.disk.committed == log_id(1, "n1", 4)
    lane.commit(2, 7)
    lane.submit(lane.vote(3))
    assert lane.failures == []
    assert lane.leases == [500]
    assert lane.disk.committed == log_id(2, "n1", 7)
    assert lane.writer.durable_index == 7


async def test_a_lease_is_saved_in_its_turn() -> None:
    lane = await Lane().open()
    lane.submit(lane.vote(1), SaveLease(lane.io(), 700), lane.vote(2))
    assert lane.flushed == [1]
    await asyncio.sleep(0.1)
    assert lane.flushed == [1, 2, 3]
    assert lane.leases == [700]


async def test_after_a_failed_write_nothing_is_written_and_nothing_is_reported() -> None:
    lane = await Lane().open()
    lane.disk.fail_writes = StorageError("disk full")
    lane.submit(lane.append(1, 0, 0))
    lane.submit(lane.append(1, 1, 1))
    await lane.writer.close()
    assert [str(error) for error in lane.failures] == ["disk full"]
    assert (lane.flushed, lane.disk.entries, len(lane.storage.batches)) == ([], [], 1)


async def test_a_failed_write_that_was_awaited_stops_the_lane_too() -> None:
    lane = await Lane().open()
    lane.storage.gate.clear()
    lane.submit(lane.append(1, 0, 0))
    await asyncio.sleep(0)
    lane.submit(lane.append(1, 1, 1))
    lane.disk.fail_writes = StorageError("disk full")
    lane.storage.gate.set()
    await asyncio.sleep(0.1)
    assert len(lane.failures) == 1
    assert (lane.flushed, len(lane.storage.batches)) == ([], 1)


async def test_a_halted_lane_finishes_the_write_under_way_and_vouches_for_nothing() -> None:
    lane = await Lane().open()
    lane.storage.gate.clear()
    lane.submit(lane.append(1, 0, 0))
    await asyncio.sleep(0)
    lane.submit(lane.append(1, 1, 1))
    lane.writer.halt()
    lane.storage.gate.set()
    await lane.writer.close()
    assert lane.flushed == []
    assert [e.index for e in lane.disk.entries] == [0]


async def test_entries_are_readable_before_they_are_durable_and_d12_a_gap_in_the_storage_is_an_error() -> None:
    lane = await Lane().open()
    lane.storage.gate.clear()
    lane.submit(lane.append(1, 0, 9))
    assert [e.index for e in await lane.writer.read(3, 6, 1000)] == [3, 4, 5]
    lane.storage.gate.set()
    await asyncio.sleep(0.1)

    class Gaps(MemoryLogStorage):
        async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
            found = await super().read(start, stop, max_bytes)
            return found[:0] if start == 1 else [found[0], *found[2:]]

    storage = Gaps(lane.disk)
    lane.disk.crash()
    await storage.open(AdapterContext("n1", clock=VirtualClock()))
    writer = LogWriter(storage, lane._save_lease, lane.flushed.append, lane.failures.append)
    writer.start_at(0, 10)
    for start in (1, 2):
        with pytest.raises(StorageError, match="for entries"):
            await writer.read(start, 10, 1000)


def model(commands: list[LogCommand]) -> list[Entry | None]:
    """What the log is after doing ``commands`` one by one; purged entries are None."""
    log: list[Entry | None] = []
    for command in commands:
        match command:
            case AppendInputEntries(entries=entries):
                log.extend(entries)
            case DeleteConflictLog(since=since):
                del log[since:]
            case PurgeLog(upto=upto):
                log[: upto.index + 1] = [None] * (upto.index + 1)
            case _:
                pass
    return log


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
async def test_joined_batches_mean_the_same_as_the_commands_one_by_one(seed: int) -> None:
    random = Random(seed)
    lane = await Lane().open()
    lane.storage.takes_columns = random.random() < 0.5
    done: list[LogCommand] = []
    given: list[tuple[Sequence[Entry], list[Entry]]] = []
    term, end, purged, committed = 1, 0, 0, 0
    for _ in range(random.randrange(1, 40)):
        commands: list[LogCommand] = []
        for _ in range(random.randrange(1, 5)):
            kind = random.randrange(6)
            if kind <= 1:
                count = random.choice([1, 2, 5])
                append = lane.append_together if random.random() < 0.5 else lane.append
                commands.append(append(term, end, end + count - 1))
                end += count
            elif kind == 2 and end > committed:
                term += 1
                end = random.randrange(committed, end)
                commands += [lane.vote(term), lane.truncate(end)]
            elif kind == 3 and committed > purged:
                purged = random.randrange(purged, committed)
                commands.append(lane.purge(1, purged))
                purged += 1
            elif kind == 4 and end > committed and lane.flushed[-1:] == [lane._io_id]:
                committed = random.randrange(committed, end) + 1
                held = model(done + commands)[committed - 1]
                assert held is not None
                lane.writer.save_committed(held.log_id)
            else:
                commands.append(SaveLease(lane.io(), 500 + lane._io_id))
        if random.random() < 0.4:
            lane.storage.gate.clear()
        done += commands
        given += [(each.entries, list(each.entries)) for each in commands if isinstance(each, AppendInputEntries)]
        lane.submit(*commands)
        read_anywhere(lane.writer.tail, model(done), random, given)
        await asyncio.sleep(0)
        if random.random() < 0.5:
            lane.storage.gate.set()
            await asyncio.sleep(0.01)
        check_committed(lane, model(done))
    lane.storage.gate.set()
    await lane.writer.close()
    assert lane.failures == []
    expected = model(done)
    assert lane.disk.entries == [e for e in expected if e is not None]
    assert lane.writer.durable_index == len(expected) - 1
    assert lane.flushed == sorted(lane.flushed)
    check_committed(lane, expected)
    given += [
        (batch.entries, came) for batch, came in zip(lane.storage.batches, lane.storage.as_they_came, strict=True)
    ]
    for theirs, as_it_was in given:
        assert list(theirs) == as_it_was, "what the lane was given, gave to the storage or handed out has changed"


def read_anywhere(
    tail: LogTail,
    expected: list[Entry | None],
    random: Random,
    given: list[tuple[Sequence[Entry], list[Entry]]],
    first: int = 0,
) -> None:
    """The tail holds what the log ends with; what it gives is added to ``given``. ``first``: it may begin there."""
    start = random.randrange(len(expected) + 1)
    stop, max_bytes = random.randrange(start, len(expected) + 1) + 1, random.choice([0, 3, 1000])
    found = tail.read(start, stop, max_bytes)
    if start == len(expected) or expected[start] is None or (found is None and start < first):
        assert found is None
        return
    assert found, "it is there, and one at least is given"
    assert list(found) == expected[start : start + len(found)]
    assert start + len(found) <= max(stop, start + 1)
    assert payload_bytes(found) <= max_bytes or len(found) == 1
    given.append((found, list(found)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_tail_is_the_end_of_the_log_whatever_is_cut_off_and_holds_what_is_not_durable(seed: int) -> None:
    random = Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in (("TAIL_BYTES", 40), ("TRIM_ABOVE_BYTES", 50), ("READ_ENTRIES", random.choice([3, 4096]))):
            patch.setattr(log_writer, name, limit)
        start = random.choice([0, 3])
        tail = LogTail(start)
        expected: list[Entry | None] = [None] * start
        given: list[tuple[Sequence[Entry], list[Entry]]] = []
        term, durable, first = 1, start - 1, start
        for _ in range(random.randrange(1, 40)):
            end = len(expected)
            match random.randrange(8):
                case 0 | 1 | 2:
                    payloads = [b"x" * random.randrange(12) for _ in range(random.choice([1, 1, 2, 6]))]
                    entries: Sequence[Entry] = Entries(log_id(term, "n1", end), term, NORMAL, payloads)
                    if random.random() < 0.5:
                        entries = list(entries)
                    tail.append(entries)
                    given.append((entries, list(entries)))
                    expected += entries
                case 3 if end > start:
                    since = random.randrange(max(start, 1), end + 1)
                    term += 1
                    tail.truncate(since)
                    del expected[since:]
                    durable, first = min(durable, since - 1), min(first, since)
                case 4:
                    upto = random.randrange(end + 2)
                    tail.purge(upto)
                    expected[: upto + 1] = [None] * (upto + 1)
                    start = max(start, upto + 1)
                    durable, first = max(durable, upto), max(first, start)
                case 5 | 6:
                    durable = random.randrange(durable, len(expected))
                    tail.trim(durable)
                    first = max(first, durable + 1)
                case _:
                    pass
            for _ in range(4):
                read_anywhere(tail, expected, random, given, first)
            held = [each for each in expected[tail._first :] if each is not None]
            assert tail.end_bytes - tail._begin_bytes == payload_bytes(held)
        for theirs, as_it_was in given:
            assert theirs == as_it_was


def check_committed(lane: Lane, expected: list[Entry | None]) -> None:
    """What is saved as committed is in the durable log, or purged."""
    saved = lane.disk.committed
    if saved is not None:
        held = {e.index: e.log_id for e in lane.disk.entries}
        assert held.get(saved.index, saved) == saved
        assert lane.disk.last_log_id is not None
        assert saved.index <= lane.disk.last_log_id.index


def test_the_tail_reads_what_it_holds_and_says_none_for_what_it_does_not() -> None:
    tail = LogTail(5)
    tail.append([entry(log_id(1, "n1", index), b"x" * 10) for index in range(5, 15)])
    assert tail.read(4, 6, 100) is None
    assert [e.index for e in tail.read(5, 8, 1000) or []] == [5, 6, 7]
    assert [e.index for e in tail.read(5, 15, 25) or []] == [5, 6]
    assert [e.index for e in tail.read(5, 15, 0) or []] == [5], "one at least"
    tail.truncate(10)
    assert tail.read(10, 11, 100) is None
    tail.purge(7)
    assert [e.index for e in tail.read(8, 20, 1000) or []] == [8, 9]
    tail.purge(20)
    tail.append([entry(log_id(2, "n1", 21), b"y")])
    assert [e.index for e in tail.read(21, 22, 1000) or []] == [21]
    tail.truncate(3)
    assert tail.read(3, 22, 1000) is None
