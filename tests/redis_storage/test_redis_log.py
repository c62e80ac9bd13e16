"""The clauses L1–L11 as Redis could break them, on every server found."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError, StorageLocked
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId, Vote

IDENTITY = StoreIdentity(node_id="n1", store_id="ab" * 16, cluster="test")


def log_id(index: int, term: int = 1) -> LogId:
    return LogId(LeaderId(term, "n1"), index)


def entry(index: int, payload: bytes = b"x", term: int = 1) -> Entry:
    return Entry(log_id(index, term), index * 10, NORMAL, payload)


def entries(start: int, stop: int, term: int = 1) -> list[Entry]:
    return [entry(index, term=term) for index in range(start, stop)]


def vote(term: int, committed: bool = False) -> Vote:
    return Vote(LeaderId(term, "n1"), committed)


async def test_one_batch_of_every_part_is_what_is_read_back(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 10)))
        await log.write(
            LogBatch(
                vote=vote(2),
                truncate_since=8,
                purge_upto=log_id(2),
                entries=entries(8, 12, term=2),
                committed=log_id(5),
            )
        )
    async with store.opened() as log:
        assert await log.read_state() == LogState(vote(2), log_id(5), log_id(2), log_id(11, term=2))
        assert await log.read(3, 100, 1 << 20) == [*entries(3, 8), *entries(8, 12, term=2)]


async def test_a_batch_of_4096_entries_is_one_write(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 4096)))
        found = await log.read(0, 4096, 1 << 20)
        assert found == entries(0, 4096)
        assert (await log.info()).details["changes"] == "1"


async def test_indexes_beyond_1e14_keep_every_digit(store: Any) -> None:
    far = 2**52 + 1
    async with store.opened() as log:
        await log.write(LogBatch(purge_upto=log_id(far - 1)))
        await log.write(LogBatch(entries=entries(far, far + 3)))
        assert (await log.read_state()).last_log_id == log_id(far + 2)
        assert await log.read(far + 1, far + 3, 1) == [entry(far + 1)]


async def test_a_purge_beyond_the_end_leaves_an_empty_log_that_goes_on_after_it(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 3)))
        await log.write(LogBatch(purge_upto=log_id(20)))
        state = await log.read_state()
        assert (state.last_purged, state.last_log_id) == (log_id(20), log_id(20))
        await log.write(LogBatch(entries=entries(21, 22)))
    async with store.opened() as log:
        assert (await log.read_state()).last_log_id == log_id(21)


async def test_committed_is_never_ahead_of_the_log(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 5), committed=log_id(4)))
        await log.write(LogBatch(truncate_since=3))
        assert (await log.read_state()).committed is None
        await log.write(LogBatch(committed=log_id(9)))
        assert (await log.read_state()).committed is None


async def test_a_hole_is_refused_before_anything_is_written(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 3)))
        with pytest.raises(StorageError, match="next index is 3"):
            await log.write(LogBatch(vote=vote(9), entries=entries(4, 6)))
    async with store.opened() as log:
        state = await log.read_state()
        assert (state.vote, state.last_log_id) == (None, log_id(2))


async def test_a_vote_of_a_lower_term_is_refused(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(vote=vote(5)))
        with pytest.raises(StorageError, match="lower term"):
            await log.write(LogBatch(vote=vote(4)))
        assert (await log.read_state()).vote == vote(5)


async def test_a_refused_write_leaves_the_handle_dead(store: Any) -> None:
    async with store.opened() as log:
        with pytest.raises(StorageError):
            await log.write(LogBatch(entries=entries(1, 2)))
        with pytest.raises(StorageError, match="failed before"):
            await log.write(LogBatch(entries=entries(0, 1)))


async def test_a_read_gives_one_whole_entry_however_small_the_budget(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=[entry(index, bytes(1000)) for index in range(200)]))
        assert len(await log.read(0, 200, 1)) == 1
        assert 1 < len(await log.read(0, 200, 10_000)) <= 10
        with pytest.raises(StorageError, match="not there"):
            await log.read(200, 201, 1)


async def test_a_cancelled_writer_leaves_a_whole_write(store: Any) -> None:
    async with store.opened() as log:
        writing = asyncio.create_task(log.write(LogBatch(entries=entries(0, 100))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await log.write(LogBatch(entries=entries(100, 101)))
        assert len(await log.read(0, 101, 1 << 20)) == 101


async def test_a_cancelled_reader_spoils_no_later_answer(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 100)))
        for turns in range(1, 12):
            reading = asyncio.create_task(log.read(0, 100, 1 << 20))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            assert await log.read(7, 8, 1) == [entry(7)]


async def test_a_cancelled_open_leaves_no_claim_behind(store: Any) -> None:
    for turns in (1, 3, 10, 30):
        opening = asyncio.create_task(store.make().open(store.context()))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
    async with store.opened():
        pass


async def test_a_second_opener_is_refused_and_told_who_holds_the_store(store: Any) -> None:
    async with store.opened():
        with pytest.raises(StorageLocked, match=r"held by node n1, process \d+ on .*, since 20"):
            async with store.opened():
                pass
    async with store.opened():
        pass


async def test_after_a_takeover_the_old_holder_is_fenced(store: Any) -> None:
    async with store.opened() as old:
        await old.write(LogBatch(entries=entries(0, 1)))
        async with store.opened("takeover=true") as new:
            await new.write(LogBatch(entries=entries(1, 2)))
            with pytest.raises(StorageLocked, match="taken over by node n1"):
                await old.write(LogBatch(entries=entries(1, 3)))
            with pytest.raises(StorageLocked):
                await old.read(0, 1, 1)
            with pytest.raises(StorageError, match="failed before"):
                await old.write(LogBatch(vote=vote(1)))
            assert (await new.read_state()).last_log_id == log_id(1)
        await old.close()  # must not release what is no longer its own
    async with store.opened() as log:
        assert (await log.read_state()).last_log_id == log_id(1)


async def test_the_store_of_another_node_is_refused_and_left_untouched(store: Any, redis_server: Any) -> None:
    async with store.opened() as log:
        await log.save_identity(IDENTITY)
    key = f"{{{store.prefix}}}:meta"
    before = redis_server.command("HGETALL", key)
    with pytest.raises(IdentityError, match="n1"):
        async with store.opened(node_id="n2"):
            pass
    assert redis_server.command("HGETALL", key) == before


async def test_the_identity_is_given_back(store: Any) -> None:
    async with store.opened() as log:
        await log.save_identity(IDENTITY)
    log = store.make()
    assert await log.open(store.context()) == IDENTITY
    await log.close()
    await log.close()


@pytest.mark.parametrize("field", ["vote", "purged", "identity"])
async def test_a_damaged_or_missing_field_is_never_a_default(store: Any, redis_server: Any, field: str) -> None:
    async with store.opened() as log:
        await log.save_identity(IDENTITY)
        await log.write(LogBatch(vote=vote(3), purge_upto=log_id(4)))
    key = f"{{{store.prefix}}}:meta"
    good = redis_server.command("HGET", key, field)
    store.data_dir = None  # without a witness, which would notice it first
    redis_server.command("HSET", key, field, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StorageCorrupt, match="damaged"):
        async with store.opened():
            pass
    redis_server.command("HDEL", key, field)
    with pytest.raises(StorageError, match="neither is ours"):
        async with store.opened():
            pass
    redis_server.command("HSET", key, field, good)
    async with store.opened() as log:
        assert (await log.read_state()).vote == vote(3)


async def test_a_damaged_entry_is_found_when_read(store: Any, redis_server: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 5)))
        key = f"{{{store.prefix}}}:log"
        good = redis_server.command("LINDEX", key, 2)
        redis_server.command("LSET", key, 2, good[:-1] + b"y")
        with pytest.raises(StorageCorrupt, match="entry 2"):
            await log.read(0, 5, 1 << 20)
        redis_server.command("LSET", key, 2, redis_server.command("LINDEX", key, 3))
        with pytest.raises(StorageCorrupt, match="entry 2"):
            await log.read(2, 5, 1 << 20)
        redis_server.command("LPOP", key)
        with pytest.raises(StorageCorrupt, match="does not fit its bounds"):
            await log.read(3, 5, 1 << 20)


async def test_close_ends_every_thread_and_connection(store: Any, redis_server: Any) -> None:
    threads = set(threading.enumerate())
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 1)))
    assert set(threading.enumerate()) <= threads
    assert not [name for _, name in redis_server.connections() if name.startswith("raftkit:")]
    with pytest.raises(StorageError, match="not open"):
        await log.write(LogBatch(entries=entries(1, 2)))


async def test_two_prefixes_do_not_meet(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 3)))
        store.prefix, store.data_dir = store.prefix + "-b", None
        async with store.opened() as other:
            assert (await other.read_state()).last_log_id is None


async def test_info_tells_size_durability_and_no_more(store: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 100)))
        info = await log.info()
        assert info.adapter == "redis"
        assert info.size_bytes > 1000
        assert info.durability.startswith("appendfsync always")
        assert info.location == f"redis://127.0.0.1:{store.port}/0?prefix={store.prefix}"
