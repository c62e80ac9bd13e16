"""File snapshots: atomic, monotonic, resumable, and whole or refused, whatever a crash left behind."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import StorageCorrupt, StorageError, StorageFull
from raftkit_core.storage import file_snapshots
from raftkit_core.storage.file_snapshots import CURRENT, FileSnapshotStorage, in_thread
from raftkit_core.storage.snapshot_format import SnapshotHeader, encode_snapshot
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource
from raftkit_core.types.vote import LeaderId

CONTEXT = AdapterContext("n1", clock=SystemClock())


@asynccontextmanager
async def _storage(folder: Path) -> AsyncIterator[FileSnapshotStorage]:
    storage = FileSnapshotStorage(folder / "snapshots")
    await storage.open(CONTEXT)
    try:
        yield storage
    finally:
        await storage.close()


def _meta(index: int, snapshot_id: str = "aa-01") -> SnapshotMeta:
    return SnapshotMeta(LogId(LeaderId(1, "n1"), index), StoredMembership(), snapshot_id, time_ms=9)


async def _container(meta: SnapshotMeta, machine: bytes = b"state") -> bytes:
    async def chunks() -> AsyncIterator[bytes]:
        yield machine

    header = SnapshotHeader.of(meta, cluster_id="cd" * 16, machine="kv/1")
    return b"".join([piece async for piece in encode_snapshot(header, b"sys", chunks())])


async def _publish(storage: FileSnapshotStorage, meta: SnapshotMeta, machine: bytes = b"state") -> SnapshotMeta:
    sink = await storage.sink(meta.snapshot_id)
    await sink.write(await _container(meta, machine))
    return await sink.publish(meta)


async def _read_all(source: SnapshotSource, offset: int = 0, chunk_bytes: int = 1024 * 1024) -> bytes:
    return b"".join([chunk async for chunk in source.open(offset, chunk_bytes)])


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "snapshots").iterdir())


async def test_an_empty_folder_has_no_snapshot(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        assert await storage.current() is None
        assert await storage.source() is None


async def test_a_published_snapshot_survives_a_restart(tmp_path: Path) -> None:
    data = await _container(_meta(5), b"x" * 3_000_000)
    async with _storage(tmp_path) as storage:
        published = await _publish(storage, _meta(5), b"x" * 3_000_000)
        assert (published.size_bytes, published.last_log_id) == (len(data), _meta(5).last_log_id)
    assert _files(tmp_path) == [CURRENT]
    async with _storage(tmp_path) as storage:
        assert await storage.current() == published
        assert await storage.size_bytes() == len(data)
        source = await storage.source()
        assert source is not None
        assert source.meta == published
        assert await _read_all(source) == data
        assert await _read_all(source, 1_000_000, 77_777) == data[1_000_000:]


async def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        await _publish(storage, _meta(5))
        folder = tmp_path / "snapshots"
        assert (folder.stat().st_mode & 0o777, (folder / CURRENT).stat().st_mode & 0o777) == (0o700, 0o600)


async def test_an_older_snapshot_does_not_replace_the_current_one(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        newer = await _publish(storage, _meta(7, "bb"))
        assert await _publish(storage, _meta(5, "aa")) == newer
        assert await storage.current() == newer
        assert _files(tmp_path) == [CURRENT]


async def test_a_source_stays_readable_after_its_snapshot_was_replaced(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        await _publish(storage, _meta(5), b"old")
        source = await storage.source()
        assert source is not None
        await _publish(storage, _meta(6, "bb"), b"new")
        assert await _read_all(source) == await _container(_meta(5), b"old")
        await source.close()
        with pytest.raises(StorageError, match="closed"):
            await _read_all(source)


async def test_a_receive_resumes_where_it_broke_off_also_after_a_restart(tmp_path: Path) -> None:
    data = await _container(_meta(5))
    async with _storage(tmp_path) as storage:
        sink = await storage.sink("aa-01")
        await sink.write(data[:30])
        await sink.abort(keep=True)
    async with _storage(tmp_path) as storage:
        sink = await storage.sink("aa-01", resume=True)
        assert sink.offset == 30
        await sink.write(data[30:])
        await sink.publish(_meta(5))
        assert _files(tmp_path) == [CURRENT]


async def test_another_snapshot_and_a_fresh_start_do_not_resume(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        sink = await storage.sink("aa-01")
        await sink.write(b"12345")
        await sink.abort(keep=True)
        other = await storage.sink("bb", resume=True)
        assert other.offset == 0
        fresh = await storage.sink("aa-01")
        assert fresh.offset == 0
        with pytest.raises(StorageError, match="already being written"):
            await storage.sink("aa-01")


async def test_receives_that_broke_off_do_not_pile_up(tmp_path: Path) -> None:
    """Each new snapshot of a leader has another id; what was received of the former ones is of no use."""
    async with _storage(tmp_path) as storage:
        for snapshot_id in ("aa", "bb", "cc"):
            sink = await storage.sink(snapshot_id, resume=True)
            await sink.write(b"half")
            await sink.abort(keep=True)
        assert _files(tmp_path) == ["cc.part"]
        assert (await storage.sink("cc", resume=True)).offset == 4


async def test_what_is_free_is_what_the_file_system_says_if_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _storage(tmp_path) as storage:
        free = await storage.free_bytes()
        assert free is not None
        assert 0 < free < 2**60
        monkeypatch.setattr(file_snapshots.shutil, "disk_usage", lambda folder: SimpleNamespace(total=0, free=0))
        assert await storage.free_bytes() is None


async def test_what_a_crash_left_is_cleared_at_open_and_the_newest_receive_kept(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        published = await _publish(storage, _meta(5))
    folder = tmp_path / "snapshots"
    for name, age in (("dd.tmp", 1), ("ee.part", 50), ("ff.part", 10)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (1_000_000 - age, 1_000_000 - age))
    async with _storage(tmp_path) as storage:
        assert _files(tmp_path) == [CURRENT, "ff.part"]
        assert await storage.current() == published
        assert (await storage.sink("ff", resume=True)).offset == 4


async def test_a_crash_before_the_rename_leaves_the_old_snapshot_current(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        old = await _publish(storage, _meta(5))
    (tmp_path / "snapshots" / "bb.tmp").write_bytes(await _container(_meta(9, "bb")))  # written, synced, not renamed
    async with _storage(tmp_path) as storage:
        assert await storage.current() == old
        assert _files(tmp_path) == [CURRENT]


async def test_a_crash_after_the_rename_leaves_the_new_snapshot_current(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        await _publish(storage, _meta(5))
    (tmp_path / "snapshots" / CURRENT).write_bytes(await _container(_meta(9, "bb")))  # renamed, nothing else done
    async with _storage(tmp_path) as storage:
        current = await storage.current()
        assert current is not None
        assert current.last_log_id == _meta(9).last_log_id


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "longer"])
async def test_a_damaged_snapshot_is_found_at_open_and_when_read(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "snapshots" / CURRENT
    async with _storage(tmp_path) as storage:
        await _publish(storage, _meta(5))
        data = bytearray(path.read_bytes())
        if damage == "flipped":
            data[len(data) // 2] ^= 4
        path.write_bytes({"truncated": data[:-5], "flipped": data, "empty": b"", "longer": data + b"x"}[damage])
        with pytest.raises(StorageCorrupt, match=CURRENT):
            await storage.source()
    with pytest.raises(StorageCorrupt, match=CURRENT) as caught:
        await FileSnapshotStorage(tmp_path / "snapshots").open(CONTEXT)
    assert "rejoin" in (caught.value.hint or "")
    assert path.exists()


async def test_bytes_that_do_not_fit_their_meta_are_not_published(tmp_path: Path) -> None:
    good = await _container(_meta(5))
    async with _storage(tmp_path) as storage:
        old = await _publish(storage, _meta(4, "cc"))
        for data, meta in (
            (good[:-1], _meta(5)),
            (good[:60] + bytes([good[60] ^ 1]) + good[61:], _meta(5)),
            (good, _meta(6)),
            (good, _meta(5, "bb")),
            (good, msgspec.structs.replace(_meta(5), sha256="00" * 32)),
            (good, msgspec.structs.replace(_meta(5), size_bytes=len(good) + 1)),
        ):
            sink = await storage.sink("aa-01")
            await sink.write(data)
            with pytest.raises(StorageCorrupt):
                await sink.publish(meta)
            assert (await storage.current(), _files(tmp_path)) == (old, [CURRENT])


@pytest.mark.parametrize("snapshot_id", ["../../etc/x", "a\0b", "", "A", "a" * 65, "current.snapshot"])
async def test_an_id_that_is_no_safe_file_name_is_refused(tmp_path: Path, snapshot_id: str) -> None:
    async with _storage(tmp_path) as storage:
        with pytest.raises(StorageCorrupt, match="no snapshot id"):
            await storage.sink(snapshot_id)


async def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    async with _storage(tmp_path) as storage:
        (tmp_path / "snapshots" / "aa-01.tmp").symlink_to(victim)
        (tmp_path / "snapshots" / "aa-01.part").symlink_to(victim)
        sink = await storage.sink("aa-01", resume=True)
        assert sink.offset == 0
        await sink.write(b"overwritten?")
    assert victim.read_text() == "precious"
    (tmp_path / "snapshots" / CURRENT).symlink_to(victim)
    with pytest.raises(StorageError, match="cannot open"):
        await FileSnapshotStorage(tmp_path / "snapshots").open(CONTEXT)


async def test_a_full_disk_ends_the_sink_and_keeps_the_old_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with _storage(tmp_path) as storage:
        old = await _publish(storage, _meta(4, "cc"))
        sink = await storage.sink("aa-01")
        with monkeypatch.context() as patch:
            patch.setattr(file_snapshots.os, "pwrite", no_space)
            with pytest.raises(StorageFull, match="No space left"):
                await sink.write(b"data")
        with pytest.raises(StorageError, match="already finished"):
            await sink.write(b"data")
        assert (await storage.current(), _files(tmp_path)) == (old, [CURRENT])


async def test_a_file_that_grows_is_synced_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the whole of it is written at the end, and the log of the node waits for the disk meanwhile."""
    synced_at: list[int] = []
    monkeypatch.setattr(file_snapshots, "SYNC_BYTES", 1000)
    monkeypatch.setattr(file_snapshots, "_sync_data", lambda fd: synced_at.append(os.fstat(fd).st_size))
    async with _storage(tmp_path) as storage:
        sink = await storage.sink("aa-01")
        for _ in range(5):
            await sink.write(b"x" * 600)
    assert synced_at == [1200, 2400]


async def test_a_cancelled_caller_leaves_its_thread_no_work(tmp_path: Path) -> None:
    steps: list[str] = []
    started, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> str:
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        steps.append("thread ended")
        return "result"

    task = asyncio.create_task(in_thread(work, undo=steps.append))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["thread ended", "result"]


@pytest.mark.virtual_time
async def test_file_snapshots_work_in_virtual_time(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        published = await _publish(storage, _meta(5))
        assert await storage.current() == published


async def test_closing_ends_open_sinks_and_sources(tmp_path: Path) -> None:
    async with _storage(tmp_path) as storage:
        await _publish(storage, _meta(5))
        source = await storage.source()
        sink = await storage.sink("bb")
    assert source is not None
    with pytest.raises(StorageError):
        await sink.write(b"x")
    with pytest.raises(StorageError):
        await storage.sink("cc")
    assert _files(tmp_path) == [CURRENT]
