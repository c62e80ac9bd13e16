"""``redis-kv`` beyond the shared clauses: what only a server between node and data can break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from raftkit_core.errors import StorageCorrupt, StorageError, StorageLocked, StoreLostWrites
from raftkit_core.plugins import load_plugins
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.testing.conformance.machine_case import apply, batch_of, batches_of, chunks_of, meta_at, stream
from raftkit_core.types.kv import Get, ListKeys, Put
from raftkit_redis.kv_machine import RedisKvStateMachine
from raftkit_redis.kv_session import VIEWS_MAX


def make(store: Any, *options: str, node_id: str = "n1") -> RedisKvStateMachine:
    url = f"redis-kv{store.url(*options).removeprefix('redis')}"
    machine = load_plugins().state_machine(url, store.context(node_id))
    assert isinstance(machine, RedisKvStateMachine)
    return machine


@asynccontextmanager
async def opened(store: Any, *options: str) -> AsyncIterator[RedisKvStateMachine]:
    machine = make(store, *options)
    await machine.open(store.context())
    try:
        yield machine
    finally:
        await machine.close()


def keys_of(server: Any, store: Any) -> list[bytes]:
    found: list[bytes] = server.command("KEYS", f"{{{store.prefix}}}:kv:*")
    return sorted(key.removeprefix(f"{{{store.prefix}}}:kv:".encode()) for key in found)


def puts(count: int, value: bytes = b"v") -> list[Put]:
    return [Put(f"k{number:06}", value) for number in range(count)]


async def test_a_log_and_a_state_share_a_prefix(store: Any) -> None:
    async with store.opened() as log, opened(store) as machine:
        await apply(machine, batch_of(1, puts(3)))
        assert (await log.read_state()).last_log_id is None
        assert [item.key for item in await machine.query(ListKeys())] == ["k000000", "k000001", "k000002"]


async def test_a_list_of_many_pages_is_of_one_moment_and_leaves_nothing_behind(store: Any, redis_server: Any) -> None:
    async with opened(store) as machine:
        for batch in batches_of(puts(6000), 2000):
            await apply(machine, batch)
        listing = asyncio.ensure_future(machine.query(ListKeys(limit=10_000)))
        index = 6001
        while not listing.done():
            await apply(machine, batch_of(index, [Put(f"k{number:06}", b"new") for number in range(0, 6000, 500)]))
            index += 12
        found = await listing
        assert len(found) == 6000
        revisions = {item.revision for item in found if int(item.key[1:]) % 500 == 0}
        assert max(revisions) - min(revisions) in (11, 5500), "all of one batch, or all of the first ones"
        await apply(machine, batch_of(index, puts(1)))
        assert keys_of(redis_server, store) == [b"data:0", b"keys:0", b"meta"]


async def test_a_list_is_cut_by_its_bytes_as_the_memory_machine_cuts_it(store: Any) -> None:
    memory = KvStateMachine()
    async with opened(store) as machine:
        for batch in batches_of(puts(40, b"x" * 32_000), 10):
            await apply(machine, batch)
            await apply(memory, batch)
        for max_bytes in (1, 64_013, 64_014, 64_015, 600_000, 1 << 40):
            query = ListKeys(max_bytes=max_bytes, limit=30)
            assert await machine.query(query) == memory.query(query), query


async def test_reads_during_restores_find_the_old_state_or_the_new_one(store: Any) -> None:
    source = KvStateMachine()
    await apply(source, batch_of(1, puts(300, b"new")))
    taken = await chunks_of(source)
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(300, b"old")))
        restores = asyncio.ensure_future(_restore_often(machine, taken))
        while not restores.done():
            found = await machine.query(Get("k000007"))
            assert found is not None
            assert found.value in (b"old", b"new")
            assert len(await machine.query(ListKeys())) == 300
        await restores


async def _restore_often(machine: RedisKvStateMachine, taken: list[bytes]) -> None:
    for number in range(10):
        await machine.restore(meta_at(1000 + number), stream(taken))


async def test_a_restore_drops_the_generation_before_it_once_no_view_shows_it(store: Any, redis_server: Any) -> None:
    source = KvStateMachine()
    await apply(source, batch_of(1, puts(10)))
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(5)))
        view = machine.snapshot()
        await machine.restore(meta_at(100), stream(await chunks_of(source)))
        assert keys_of(redis_server, store) == [b"data:0", b"data:1", b"keys:0", b"keys:1", b"meta"]
        assert [chunk async for chunk in view]
        assert keys_of(redis_server, store) == [b"data:1", b"keys:1", b"meta"]


async def test_what_a_dead_process_left_is_removed_when_the_state_is_opened_again(
    store: Any, redis_server: Any
) -> None:
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(50)))
        view = machine.snapshot()
        await apply(machine, batch_of(51, puts(50, b"new")))
        await machine._begin_load()
        await machine._load(1, [b"k", b"x" * 20])
        assert len(keys_of(redis_server, store)) > 5
        view._is_open = False  # as if the process were gone
    async with opened(store) as machine:
        assert keys_of(redis_server, store) == [b"data:0", b"keys:0", b"meta"]
        assert len(await machine.query(ListKeys())) == 50


async def test_a_holder_that_was_fenced_off_changes_nothing_and_shows_nothing(store: Any) -> None:
    async with opened(store) as old:
        await apply(old, batch_of(1, puts(3)))
        async with opened(store, "takeover=true") as new:
            with pytest.raises(StorageLocked):
                await apply(old, batch_of(4, puts(1, b"old")))
            with pytest.raises(StorageLocked):
                await old.query(Get("k000000"))
            await apply(new, batch_of(4, puts(1, b"new")))
            assert (await new.query(Get("k000000"))).value == b"new"


async def test_a_server_that_forgot_stops_the_machine(store: Any, redis_server: Any) -> None:
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(3)))
        for key in keys_of(redis_server, store):
            redis_server.command("DEL", f"{{{store.prefix}}}:kv:".encode() + key)
        for _ in range(2):
            with pytest.raises(StoreLostWrites):
                await apply(machine, batch_of(4, puts(1)))


async def test_cells_without_their_meta_hash_are_refused_untouched(store: Any, redis_server: Any) -> None:
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(3)))
    redis_server.command("DEL", f"{{{store.prefix}}}:kv:meta")
    with pytest.raises(StorageCorrupt) as refused:
        await make(store).open(store.context())
    assert refused.value.hint
    assert keys_of(redis_server, store) == [b"data:0", b"keys:0"]


async def test_a_damaged_cell_is_found_when_it_is_read(store: Any, redis_server: Any) -> None:
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(3)))
        data = f"{{{store.prefix}}}:kv:data:0"
        blob = redis_server.command("HGET", data, "k000001")
        redis_server.command("HSET", data, "k000001", blob[:-1] + b"w")
        with pytest.raises(StorageCorrupt):
            await machine.query(Get("k000001"))
        with pytest.raises(StorageCorrupt):
            await machine.digest()


async def test_a_broken_connection_between_batches_is_replaced(store: Any, redis_server: Any) -> None:
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(3)))
        assert redis_server.kill_connections("raftkit:n1:kv") == 1
        assert redis_server.kill_connections("raftkit:n1:kv:read") == 1
        await apply(machine, batch_of(4, puts(3, b"new")))
        assert (await machine.query(Get("k000002"))).value == b"new"


async def test_a_batch_whose_answer_was_lost_is_made_once(store: Any) -> None:
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(3)))
        link: Any = machine._session._link  # type: ignore[union-attr]
        exchange = link.exchange

        async def lose_the_answer(commands: Any, timeout_s: float) -> Any:
            link.exchange = exchange
            await exchange(commands, timeout_s)
            await link.disconnect()
            raise ConnectionResetError("the answer was lost")

        link.exchange = lose_the_answer
        [result] = await apply(machine, batch_of(4, [Put("k000000", b"new", if_revision=1)]))
        assert result.previous_revision == 1
        assert (await machine.applied_state()).applied is not None


async def test_more_views_than_slots_are_refused_with_words(store: Any) -> None:
    async with opened(store) as machine:
        await apply(machine, batch_of(1, puts(3)))
        views = [machine.snapshot() for _ in range(VIEWS_MAX)]
        with pytest.raises(StorageError, match="snapshots"):
            machine.snapshot()
        for view in views:
            await view.aclose()
        assert await machine.digest()
