"""What servers, connections and people do to a log that is open, or was (faults R1 to R11)."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from raftkit_core.clock import SystemClock
from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError, StorageFull, StoreLostWrites
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId, Vote
from raftkit_redis.plugin import make_log_storage
from raftkit_redis.translate import translate

IDENTITY = StoreIdentity(node_id="n1", store_id="cd" * 16, cluster="test")
VOTE = Vote(LeaderId(7, "n1"), True)
WRITER = "raftkit:n1"


def entries(start: int, stop: int) -> list[Entry]:
    return [Entry(LogId(LeaderId(1, "n1"), index), 0, NORMAL, b"x") for index in range(start, stop)]


def last(stop: int) -> LogId:
    return LogId(LeaderId(1, "n1"), stop - 1)


def hurry(log: Any, seconds: float) -> None:
    """From now on ``log`` waits no longer than that for its server; a busy one had the time it needed before."""
    session = log._session
    session.options = session._link._options = replace(session.options, timeout_s=seconds)


async def becomes_clean(log: Any) -> bool:
    """Give the loop the turns it takes to see a closed connection."""
    for _ in range(1000):
        if not await log._session._link.is_clean():
            return False
        await asyncio.sleep(0)
    return True


async def fill(store: Any) -> None:
    async with store.opened() as log:
        await log.save_identity(IDENTITY)
        await log.write(LogBatch(vote=VOTE, entries=entries(0, 10)))


async def test_kill_9_of_the_server_keeps_everything_and_the_open_handle_goes_on(
    start_redis: Any, store_at: Any
) -> None:
    server = start_redis()
    store = store_at(server)
    async with store.opened() as log:
        await log.save_identity(IDENTITY)
        for index in range(50):
            await log.write(LogBatch(vote=VOTE if index == 0 else None, entries=entries(index, index + 1)))
        server.kill()
        server.start()
        assert await log.read_state() == LogState(VOTE, None, None, last(50))
        await log.write(LogBatch(entries=entries(50, 51)))
        assert (await log.info()).details["reconnects"] == "1"
    server.kill()
    server.start()
    async with store.opened() as log:
        assert await log.read(0, 51, 1 << 20) == entries(0, 51)


async def test_a_server_that_stays_away_ends_the_handle_within_the_deadline(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    async with store_at(server).opened() as log:
        server.kill()
        hurry(log, 0.3)
        with pytest.raises(StorageError, match="no connection"):
            await log.write(LogBatch(vote=VOTE))
        server.start()
        with pytest.raises(StorageError, match="failed before"):
            await log.write(LogBatch(vote=VOTE))


async def test_flushall_under_an_open_handle_is_lost_writes(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    store = store_at(server)
    async with store.opened() as log:
        await log.write(LogBatch(vote=VOTE))
        server.command("FLUSHALL")
        with pytest.raises(StoreLostWrites):
            await log.write(LogBatch(entries=entries(0, 1)))
        with pytest.raises(StoreLostWrites, match="failed before"):
            await log.write(LogBatch(entries=entries(0, 1)))


async def test_flushall_under_a_reader_is_lost_writes_for_the_writer_too(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    async with store_at(server).opened() as log:
        await log.write(LogBatch(entries=entries(0, 1)))
        server.command("FLUSHALL")
        with pytest.raises(StoreLostWrites):
            await log.read(0, 1, 1)
        with pytest.raises(StoreLostWrites):
            await log.write(LogBatch(entries=entries(1, 2)))


async def test_a_store_emptied_while_nobody_looked_is_lost_writes_at_open(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    store = store_at(server)
    await fill(store)
    server.command("FLUSHALL")
    for _ in range(2):
        with pytest.raises(StoreLostWrites) as caught:
            async with store.opened():
                pass
        assert "remove the node from the cluster" in str(caught.value.hint)
    assert server.command("DBSIZE") == 0


async def test_a_server_restarted_without_its_file_is_lost_writes(start_redis: Any, store_at: Any) -> None:
    server = start_redis(appendonly="no")
    store = store_at(server)
    async with store.opened("durability=relaxed") as log:
        await log.write(LogBatch(vote=VOTE))
        server.kill()
        server.start()
        with pytest.raises(StoreLostWrites):
            await log.write(LogBatch(entries=entries(0, 1)))
    with pytest.raises(StoreLostWrites):
        async with store.opened("durability=relaxed"):
            pass


async def test_an_older_copy_that_lacks_one_write_is_lost_writes(store: Any, redis_server: Any) -> None:
    await fill(store)
    keys = [f"{{{store.prefix}}}:meta", f"{{{store.prefix}}}:log"]
    copy = [redis_server.command("DUMP", key) for key in keys]
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(10, 11)))
    for key, dump in zip(keys, copy, strict=True):
        redis_server.command("RESTORE", key, 0, dump, "REPLACE")
    with pytest.raises(StoreLostWrites, match="is at change 2, but it had confirmed change 3"):
        async with store.opened():
            pass


async def test_a_vote_taken_back_is_lost_writes_although_nothing_else_changed(store: Any, redis_server: Any) -> None:
    await fill(store)
    redis_server.command("HSET", f"{{{store.prefix}}}:meta", "vote", b"")
    with pytest.raises(StoreLostWrites, match="another vote or log"):
        async with store.opened():
            pass


async def test_a_crash_between_redis_and_the_witness_accuses_nobody(store: Any) -> None:
    await fill(store)
    (witness,) = store.data_dir.glob("*.witness")
    before = witness.read_bytes()
    async with store.opened() as log:
        await log.write(LogBatch(truncate_since=3))
    witness.write_bytes(before)  # as if the last notes had not been made
    async with store.opened() as log:
        assert (await log.read_state()).last_log_id == last(3)


async def test_a_torn_witness_slot_is_survived_and_two_are_refused(store: Any) -> None:
    await fill(store)
    (witness,) = store.data_dir.glob("*.witness")
    data = bytearray(witness.read_bytes())
    data[20] ^= 1
    witness.write_bytes(data)
    async with store.opened():
        pass
    data[20 + 1024] ^= 1
    witness.write_bytes(data)
    with pytest.raises(StorageCorrupt, match="witness file"):
        async with store.opened():
            pass


async def test_a_witness_of_another_store_is_an_identity_error(store: Any, redis_server: Any) -> None:
    await fill(store)
    prefix = store.prefix
    store.prefix = prefix + "-b"
    folder, store.data_dir = store.data_dir, None
    async with store.opened() as log:
        await log.save_identity(StoreIdentity(node_id="n1", store_id="ef" * 16, cluster="test"))
    store.data_dir = folder
    with pytest.raises(IdentityError, match="belongs to store cdcd"):
        async with store.opened():
            pass


async def test_a_connection_killed_while_idle_is_replaced(store: Any, redis_server: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 1)))
        assert redis_server.kill_connections(WRITER) == 1
        assert redis_server.kill_connections(WRITER + ":read") <= 1
        assert not await becomes_clean(log)
        await log.write(LogBatch(entries=entries(1, 2)))
        assert await log.read(0, 2, 1 << 20) == entries(0, 2)


async def test_a_write_that_was_made_but_not_answered_is_found_out(store: Any, redis_server: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 1)))
        link = log._session._link
        exchange, calls = link.exchange, []

        async def break_after_sending(commands: Any, timeout_s: float) -> Any:
            answers = await exchange(commands, timeout_s)
            if not calls:
                calls.append(1)
                await link.disconnect()
                raise ConnectionResetError("the answer was lost")
            return answers

        link.exchange = break_after_sending
        await log.write(LogBatch(vote=VOTE, truncate_since=1, entries=entries(1, 3)))
        assert await log.read_state() == LogState(VOTE, None, None, last(3))
        await log.write(LogBatch(entries=entries(3, 4)))
    async with store.opened() as log:
        assert await log.read(0, 4, 1 << 20) == entries(0, 4)


async def test_a_write_that_was_not_made_is_told_and_never_tried_again(store: Any, redis_server: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 1)))
        link = log._session._link
        exchange, calls = link.exchange, []

        async def break_before_sending(commands: Any, timeout_s: float) -> Any:
            if not calls:
                calls.append(1)
                await link.disconnect()
                raise ConnectionResetError("the command was lost")
            return await exchange(commands, timeout_s)

        link.exchange = break_before_sending
        with pytest.raises(StorageError, match="was not made"):
            await log.write(LogBatch(entries=entries(1, 2)))
        with pytest.raises(StorageError, match="failed before"):
            await log.write(LogBatch(entries=entries(1, 2)))
    async with store.opened() as log:
        assert (await log.read_state()).last_log_id == last(1)


async def test_a_paused_server_ends_the_write_within_two_deadlines(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    async with store_at(server).opened() as log:
        server.pause()
        hurry(log, 0.2)
        try:
            with pytest.raises(StorageError, match=r"did not answer in time|no connection"):
                await log.write(LogBatch(vote=VOTE))
        finally:
            server.resume()


async def test_a_forgotten_script_is_sent_again(store: Any, redis_server: Any) -> None:
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 1)))
        redis_server.command("SCRIPT", "FLUSH")
        await log.write(LogBatch(entries=entries(1, 2)))
        assert (await log.info()).details["reconnects"] == "0"


async def test_a_server_out_of_memory_is_storage_full_and_changes_nothing(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    store = store_at(server)
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 3)))
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StorageFull, match="memory limit") as caught:
            await log.write(LogBatch(vote=VOTE, truncate_since=1, entries=entries(1, 2)))
        assert "maxmemory" in str(caught.value.hint)
        server.command("CONFIG", "SET", "maxmemory", "0")
        assert await log.read_state() == LogState(None, None, None, last(3))


async def test_a_server_that_becomes_a_replica_stops_the_writer(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    async with store_at(server).opened() as log:
        server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StorageError, match="became a replica"):
            await log.write(LogBatch(vote=VOTE))


CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from raftkit_core.clock import SystemClock
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.storage.interface import LogBatch
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.vote import LeaderId, Vote
from raftkit_redis.plugin import make_log_storage

async def main(url, folder):
    context = AdapterContext("n1", clock=SystemClock(), cluster="test", data_dir=Path(folder))
    log = make_log_storage(AdapterUrl.parse(url), context)
    await log.open(context)
    await log.write(LogBatch(vote=Vote(LeaderId(7, "n1"), True)))
    print("ready", flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_the_claim_of_a_killed_process_is_taken_and_that_of_a_living_one_is_not(store: Any) -> None:
    arguments = [sys.executable, "-c", CHILD, store.url(), str(store.data_dir)]
    child = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n"
        with pytest.raises(StorageError, match=f"held by node n1, process {child.pid} on "):
            async with store.opened():
                pass
        await child.communicate(b"x")
        async with store.opened() as log:
            assert (await log.read_state()).vote == VOTE
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_a_claim_whose_release_failed_does_not_lock_this_process_out(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    store = store_at(server)
    async with store.opened() as log:
        server.kill()
        hurry(log, 0.2)
    server.start()
    async with store.opened():
        pass


async def test_a_server_busy_with_somebody_s_script_ends_the_write_and_changes_nothing(
    start_redis: Any, store_at: Any
) -> None:
    """R6. The script ran into its time limit, so the server answers BUSY at once."""
    server = start_redis(lua_time_limit="10")
    store = store_at(server)
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 3)))
        with ThreadPoolExecutor(1) as thread:
            script = "while true do end"
            busy = thread.submit(server.command, "EVAL", script, 0)
            try:
                while not await asyncio.to_thread(is_busy, server):
                    assert not busy.done()
                with pytest.raises(StorageError, match="busy with somebody"):
                    await log.write(LogBatch(entries=entries(3, 4)))
            finally:
                server.command("SCRIPT", "KILL")
                assert busy.exception(10) is not None
    async with store.opened() as log:
        assert await log.read_state() == LogState(None, None, None, last(3))


def is_busy(server: Any) -> bool:
    try:
        server.command("GET", "x")
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


async def test_an_entry_larger_than_the_server_takes_is_told_and_changes_nothing(
    start_redis: Any, store_at: Any
) -> None:
    """R10. The server closes the connection over it; the settings are looked at again before anything is sent."""
    server = start_redis()
    store = store_at(server)
    async with store.opened() as log:
        await log.write(LogBatch(entries=entries(0, 3)))
        server.command("CONFIG", "SET", "proto-max-bulk-len", "1mb")
        with pytest.raises(StorageError, match=r"takes values of at most|invalid bulk length"):
            await log.write(LogBatch(entries=[Entry(last(4), 0, NORMAL, b"x" * (2 << 20))]))
    server.command("CONFIG", "SET", "proto-max-bulk-len", "512mb")
    async with store.opened() as log:
        assert await log.read_state() == LogState(None, None, None, last(3))


async def test_a_server_without_tls_is_told_apart_from_one_that_is_down(redis_server: Any, tmp_path: Path) -> None:
    """R9. No handshake with it, and no silent fall back to plain text."""
    url = AdapterUrl.parse(f"rediss://127.0.0.1:{redis_server.port}/0?prefix=tls&timeout_ms=500ms")
    context = AdapterContext("n1", clock=SystemClock(), cluster="test", data_dir=tmp_path)
    log = make_log_storage(url, context)
    with pytest.raises(StorageError, match=r"no connection|did not answer") as caught:
        await log.open(context)
    assert "rediss" in caught.value.message


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'", "memory limit"),
        ("MISCONF Redis is configured to save RDB snapshots, but it is unable to persist to disk", "cannot persist"),
        ("READONLY You can't write against a read only replica.", "became a replica"),
        ("NOREPLICAS Not enough good replicas to write.", "too few replicas"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", "may not run"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "not a raftkit log"),
        ("LOADING Redis is loading the dataset in memory", "still loading"),
        ("BUSY Redis is busy running a script.", "busy with somebody"),
        ("ERR something new", "answered"),
    ],
)
def test_every_reply_that_refuses_has_words_and_what_to_do(reply: str, words: str) -> None:
    told = translate(redis.ResponseError(reply), location="redis://h:1/0", subject="log", verb="write")
    assert words in told.message
    assert told.subject == "log"
    assert told.hint or words == "answered"
