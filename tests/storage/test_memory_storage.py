"""The memory log and memory snapshots keep the clauses of ``storage/interface.py``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import pytest

from raftkit_core import load_plugins
from raftkit_core.clock import SystemClock
from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError, StorageLocked
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage, MemorySnapshotStorage, available_memory
from raftkit_core.storage.snapshot_format import SnapshotHeader, encode_snapshot
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import BLANK, Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote

VOTE = Vote(LeaderId(2, "n1"), True)
IDENTITY = StoreIdentity("n1", "ab" * 16, "default")


def _context(node_id: str = "n1", group: str = "default") -> AdapterContext:
    return AdapterContext(node_id, clock=SystemClock(), group=group)


def _log_id(index: int, term: int = 1) -> LogId:
    return LogId(LeaderId(term, "n1"), index)


def _entry(index: int, term: int = 1, payload: bytes = b"x") -> Entry:
    return Entry(_log_id(index, term), 0, BLANK, payload)


async def _opened(disk: MemoryDisk | None = None) -> MemoryLogStorage:
    storage = MemoryLogStorage(disk)
    await storage.open(_context())
    return storage


async def test_a_new_store_has_no_identity_and_an_empty_log() -> None:
    storage = MemoryLogStorage()
    assert await storage.open(_context()) is None
    assert await storage.read_state() == LogState()
    await storage.close()


async def test_a_reopened_disk_holds_what_was_written() -> None:
    disk = MemoryDisk("d")
    storage = await _opened(disk)
    await storage.save_identity(IDENTITY)
    storage.write(LogBatch(vote=VOTE, entries=[_entry(0), _entry(1)], committed=_log_id(0)))
    await storage.close()
    await storage.close()

    again = MemoryLogStorage(disk)
    assert await again.open(_context()) == IDENTITY
    assert await again.read_state() == LogState(VOTE, _log_id(0), None, _log_id(1))
    assert await again.read(0, 2, 100) == [_entry(0), _entry(1)]
    await again.close()


async def test_a_second_opener_is_refused_and_told_who_holds_it() -> None:
    disk = MemoryDisk("d")
    first = await _opened(disk)
    with pytest.raises(StorageLocked, match=r"memory:d is held by node n1"):
        await MemoryLogStorage(disk).open(_context())
    await first.close()
    await (await _opened(disk)).close()


async def test_after_a_crash_the_disk_opens_again_and_the_old_handle_is_dead() -> None:
    disk = MemoryDisk()
    old = await _opened(disk)
    disk.crash()
    new = await _opened(disk)
    with pytest.raises(StorageError, match="not open"):
        old.write(LogBatch(vote=VOTE))
    await old.close()
    new.write(LogBatch(vote=VOTE))
    await new.close()


@pytest.mark.parametrize(("node_id", "group"), [("n2", "default"), ("n1", "other")])
async def test_a_store_of_another_node_or_group_is_refused(node_id: str, group: str) -> None:
    disk = MemoryDisk()
    storage = await _opened(disk)
    await storage.save_identity(IDENTITY)
    await storage.close()
    with pytest.raises(IdentityError, match="belongs to"):
        await MemoryLogStorage(disk).open(_context(node_id, group))
    assert disk.holder is None


async def test_a_hole_is_refused_before_anything_is_written() -> None:
    storage = await _opened()
    storage.write(LogBatch(entries=[_entry(0), _entry(1)]))
    for batch in (
        LogBatch(vote=VOTE, entries=[_entry(3)]),
        LogBatch(vote=VOTE, entries=[_entry(1)]),
        LogBatch(vote=VOTE, entries=[_entry(2), _entry(4)]),
        LogBatch(vote=VOTE, truncate_since=1, entries=[_entry(2)]),
        LogBatch(vote=VOTE, committed=_log_id(2)),
    ):
        with pytest.raises(StorageError):
            storage.write(batch)
        assert await storage.read_state() == LogState(None, None, None, _log_id(1))


async def test_one_batch_truncates_purges_and_appends_in_this_order() -> None:
    storage = await _opened()
    storage.write(LogBatch(entries=[_entry(index) for index in range(6)]))
    storage.write(LogBatch(truncate_since=4, purge_upto=_log_id(1), entries=[_entry(4, 2)], committed=_log_id(2)))
    assert await storage.read_state() == LogState(None, _log_id(2), _log_id(1), _log_id(4, 2))
    assert await storage.read(2, 10, 1000) == [_entry(2), _entry(3), _entry(4, 2)]


async def test_a_purge_beyond_the_last_entry_leaves_an_empty_log_that_goes_on_after_it() -> None:
    storage = await _opened()
    storage.write(LogBatch(entries=[_entry(0)]))
    storage.write(LogBatch(purge_upto=_log_id(9)))
    assert await storage.read_state() == LogState(None, None, _log_id(9), _log_id(9))
    storage.write(LogBatch(purge_upto=_log_id(3), entries=[_entry(10)]))
    assert await storage.read_state() == LogState(None, None, _log_id(9), _log_id(10))
    assert (await storage.info()).size_bytes == 1


async def test_a_truncation_takes_committed_along() -> None:
    storage = await _opened()
    storage.write(LogBatch(entries=[_entry(0), _entry(1)], committed=_log_id(1)))
    storage.write(LogBatch(truncate_since=1))
    assert (await storage.read_state()).committed == _log_id(0)


async def test_a_read_gives_a_prefix_and_at_least_one_entry() -> None:
    storage = await _opened()
    storage.write(LogBatch(entries=[_entry(index, payload=b"12345") for index in range(4)]))
    assert len(await storage.read(0, 4, 0)) == 1
    assert len(await storage.read(0, 4, 10)) == 2
    assert len(await storage.read(1, 99, 1000)) == 3


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (5, 6), (3, 3)])
async def test_a_read_of_what_is_not_there_is_an_error(start: int, stop: int) -> None:
    storage = await _opened()
    storage.write(LogBatch(entries=[_entry(index) for index in range(5)]))
    storage.write(LogBatch(purge_upto=_log_id(0)))
    with pytest.raises(StorageError):
        await storage.read(start, stop, 100)


async def test_after_a_failed_write_every_later_one_fails() -> None:
    disk = MemoryDisk()
    storage = await _opened(disk)
    disk.fail_writes = StorageError("out of ink", subject="log")
    with pytest.raises(StorageError, match="out of ink"):
        storage.write(LogBatch(vote=VOTE))
    with pytest.raises(StorageError, match="an earlier write failed: out of ink"):
        storage.write(LogBatch(vote=VOTE))
    assert (await storage.read_state()).vote is None


# --- Snapshots --------------------------------------------------------------------------------------------------------


def _meta(index: int, snapshot_id: str = "aa") -> SnapshotMeta:
    return SnapshotMeta(_log_id(index), StoredMembership(), snapshot_id)


async def _container(meta: SnapshotMeta, machine: bytes = b"state") -> bytes:
    async def chunks() -> AsyncIterator[bytes]:
        yield machine

    header = SnapshotHeader.of(meta, cluster_id=None, machine="kv/1")
    return b"".join([piece async for piece in encode_snapshot(header, b"", chunks())])


async def _publish(storage: MemorySnapshotStorage, meta: SnapshotMeta) -> SnapshotMeta:
    sink = await storage.sink(meta.snapshot_id)
    await sink.write(await _container(meta))
    return await sink.publish(meta)


async def test_a_published_memory_snapshot_is_current_and_readable_after_a_restart() -> None:
    disk = MemoryDisk()
    published = await _publish(MemorySnapshotStorage(disk), _meta(5))
    data = await _container(_meta(5))
    assert published.size_bytes == len(data)

    again = MemorySnapshotStorage(disk)
    await again.open(_context())
    assert await again.current() == published
    source = await again.source()
    assert source is not None
    assert b"".join([chunk async for chunk in source.open(3, 10)]) == data[3:]


async def test_an_older_memory_snapshot_does_not_replace_the_current_one() -> None:
    storage = MemorySnapshotStorage()
    newer = await _publish(storage, _meta(7, "bb"))
    assert await _publish(storage, _meta(5, "aa")) == newer
    assert await storage.current() == newer


async def test_a_memory_receive_resumes_where_it_was_kept() -> None:
    storage = MemorySnapshotStorage()
    data = await _container(_meta(5))
    sink = await storage.sink("aa")
    await sink.write(data[:20])
    await sink.abort(keep=True)
    assert (await storage.sink("bb", resume=True)).offset == 0
    sink = await storage.sink("aa", resume=True)
    assert sink.offset == 20
    await sink.write(data[20:])
    assert (await sink.publish(_meta(5))).size_bytes == len(data)


async def test_a_damaged_memory_snapshot_is_refused_and_the_old_one_stays() -> None:
    storage = MemorySnapshotStorage()
    published = await _publish(storage, _meta(5))
    sink = await storage.sink("bb")
    await sink.write((await _container(_meta(6, "bb")))[:-1])
    with pytest.raises(StorageCorrupt):
        await sink.publish(_meta(6, "bb"))
    assert await storage.current() == published


@pytest.mark.parametrize("mib", [0, 9])
async def test_a_large_snapshot_is_checked_like_a_small_one_and_sent_as_it_is(mib: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(mib):
            yield bytes([number]) * 1024 * 1024

    meta = SnapshotMeta(_log_id(4), StoredMembership(), "aa-01", time_ms=9)
    header = SnapshotHeader.of(meta, cluster_id="cd" * 16, machine="kv/1")
    data = b"".join([piece async for piece in encode_snapshot(header, b"sys", chunks())])
    storage = MemorySnapshotStorage()
    damaged = await storage.sink("aa-01")
    await damaged.write(data[:-10] + b"0123456789")
    with pytest.raises(StorageCorrupt):
        await damaged.publish(meta)
    sink = await storage.sink("aa-01")
    await sink.write(data)
    published = await sink.publish(meta)
    assert published.size_bytes == len(data)
    source = await storage.source()
    assert source is not None
    sent = [chunk async for chunk in source.open(7)]
    assert b"".join(sent) == data[7:]
    assert {type(chunk) for chunk in sent} == {bytes}


async def test_what_is_free_is_what_whoever_made_it_says_and_for_a_node_the_machine_s_memory() -> None:
    assert await MemorySnapshotStorage().free_bytes() is None
    assert await MemorySnapshotStorage(free=lambda: 5).free_bytes() == 5
    made = load_plugins().snapshot_storage("memory:", _context())
    free, now = await made.free_bytes(), available_memory()
    if sys.platform == "linux":
        assert free is not None
        assert now is not None
        assert 0 < free < 2**60
        assert 0.1 < free / now < 10
