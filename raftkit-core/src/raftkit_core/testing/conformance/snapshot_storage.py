"""Clauses N1 to N4 of :class:`~raftkit_core.storage.interface.RaftSnapshotStorage`, each as named tests.

::

    class TestMySnapshots(SnapshotStorageConformance):
        url = "mystore:snapshots"  # of an installed plugin, or: def opener(self): return lambda: MySnapshots(…)
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import msgspec
import pytest

from raftkit_core.errors import RaftError, StorageCorrupt, StorageError
from raftkit_core.plugins import load_plugins
from raftkit_core.storage.interface import RaftSnapshotStorage
from raftkit_core.storage.snapshot_format import SnapshotHeader, encode_snapshot
from raftkit_core.testing.conformance.kit import ConformanceKit, same_bytes
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource
from raftkit_core.types.vote import LeaderId

SnapshotOpener: TypeAlias = Callable[[], RaftSnapshotStorage]


def snapshot_meta(index: int | None, snapshot_id: str = "aa-01") -> SnapshotMeta:
    """A meta without size and digest, which promises nothing about the bytes."""
    last = None if index is None else LogId(LeaderId(1, "n1"), index)
    return SnapshotMeta(last, StoredMembership(), snapshot_id, time_ms=9)


async def container(meta: SnapshotMeta, state: bytes = b"state") -> bytes:
    """The bytes of a snapshot with this meta."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(state), 1 << 20):
            yield state[start : start + (1 << 20)]

    header = SnapshotHeader.of(meta, cluster_id="cd" * 16, machine="kv/1")
    return b"".join([piece async for piece in encode_snapshot(header, b"system", chunks())])


def promised(meta: SnapshotMeta, data: bytes) -> SnapshotMeta:
    """``meta`` with size and digest, as a sender announces it."""
    return msgspec.structs.replace(meta, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


async def published(storage: RaftSnapshotStorage, meta: SnapshotMeta, state: bytes = b"state") -> SnapshotMeta:
    """Write and publish a snapshot."""
    sink = await storage.sink(meta.snapshot_id)
    await sink.write(await container(meta, state))
    return await sink.publish(meta)


async def contents(source: SnapshotSource, offset: int = 0, chunk_bytes: int = 1 << 20) -> bytes:
    return b"".join([chunk async for chunk in source.open(offset, chunk_bytes)])


class SnapshotStorageConformance(ConformanceKit):
    """Give ``url`` or :meth:`opener`; the other methods prove more if you can give them."""

    interface = RaftSnapshotStorage
    url: str | None = None

    def opener(self) -> SnapshotOpener:
        """A new, empty place, and how to get a handle on it. What is published must be there in the next handle."""
        if self.url is None:
            raise NotImplementedError("give url = '…' or opener() in the subclass")
        url, at = self.url, self.context()
        return lambda: load_plugins().snapshot_storage(url, at)

    async def damage(self, opener: SnapshotOpener) -> None:
        """Change some bits of the published snapshot of a closed store, behind the adapter's back."""
        pytest.skip("this adapter gives no way to damage a snapshot (damage)")

    @asynccontextmanager
    async def opened(self, opener: SnapshotOpener) -> AsyncIterator[RaftSnapshotStorage]:
        storage = opener()
        await storage.open(self.context())
        try:
            yield storage
        finally:
            await storage.close()

    async def _bytes_of_current(self, storage: RaftSnapshotStorage) -> bytes:
        source = await storage.source()
        assert source is not None
        try:
            return await contents(source)
        finally:
            await source.close()

    # --- N1: publishing is atomic -------------------------------------------------------------------------------------

    async def test_n1_a_new_store_has_no_snapshot(self) -> None:
        async with self.opened(self.opener()) as storage:
            assert await storage.current() is None
            assert await storage.source() is None

    async def test_n1_what_is_published_is_current_with_its_size_and_digest(self) -> None:
        async with self.opened(self.opener()) as storage:
            data = await container(snapshot_meta(5))
            assert await published(storage, snapshot_meta(5)) == promised(snapshot_meta(5), data)
            assert await storage.current() == promised(snapshot_meta(5), data)

    async def test_n1_the_bytes_read_are_the_bytes_written(self) -> None:
        async with self.opened(self.opener()) as storage:
            state = bytes(range(256)) * 12_000  # about 3 MiB
            await published(storage, snapshot_meta(5), state)
            assert await self._bytes_of_current(storage) == await container(snapshot_meta(5), state)

    async def test_n1_a_published_snapshot_is_there_after_reopening(self) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            current = await published(storage, snapshot_meta(5))
        for _ in range(2):
            async with self.opened(opener) as storage:
                assert await storage.current() == current
                assert await self._bytes_of_current(storage) == await container(snapshot_meta(5))

    async def test_n1_a_newer_snapshot_replaces_the_older(self) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            for index in (3, 7, 20):
                await published(storage, snapshot_meta(index, f"aa-{index}"), b"%d" % index)
        async with self.opened(opener) as storage:
            current = await storage.current()
            assert current is not None
            assert current.snapshot_id == "aa-20"
            assert await self._bytes_of_current(storage) == await container(snapshot_meta(20, "aa-20"), b"20")

    async def test_n1_an_unfinished_snapshot_is_never_current(self) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            old = await published(storage, snapshot_meta(3, "aa-03"))
            sink = await storage.sink("bb-09")
            await sink.write(await container(snapshot_meta(9, "bb-09")))
            assert await storage.current() == old
        async with self.opened(opener) as storage:
            assert await storage.current() == old

    async def test_n1_an_aborted_snapshot_leaves_the_old_one(self) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            old = await published(storage, snapshot_meta(3, "aa-03"))
            sink = await storage.sink("bb-09")
            await sink.write(await container(snapshot_meta(9, "bb-09")))
            await sink.abort()
            await sink.abort()
            assert await storage.current() == old
            assert await published(storage, snapshot_meta(9, "bb-09")) == await storage.current()

    async def test_n1_aborting_after_publishing_takes_nothing_back(self) -> None:
        async with self.opened(self.opener()) as storage:
            sink = await storage.sink("aa-05")
            await sink.write(await container(snapshot_meta(5, "aa-05")))
            current = await sink.publish(snapshot_meta(5, "aa-05"))
            await sink.abort()
            assert await storage.current() == current

    @pytest.mark.parametrize("turns", [0, 1, 2, 5])
    async def test_n1_a_cancelled_publish_leaves_the_old_or_the_new_snapshot(self, turns: int) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            old = await published(storage, snapshot_meta(3, "aa-03"))
            sink = await storage.sink("bb-09")
            data = await container(snapshot_meta(9, "bb-09"))
            await sink.write(data)
            task = asyncio.ensure_future(sink.publish(snapshot_meta(9, "bb-09")))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            current = await storage.current()
        async with self.opened(opener) as storage:
            assert current in (old, promised(snapshot_meta(9, "bb-09"), data))
            assert await storage.current() == current

    async def test_n1_a_published_snapshot_survives_a_power_loss(self) -> None:
        opener = self.opener()
        with self.power() as power:
            storage = opener()
            await storage.open(self.context())
            await published(storage, snapshot_meta(3, "aa-03"))
            current = await published(storage, snapshot_meta(8, "aa-08"), b"x" * 100_000)
            power.cut()
            await storage.close()
            power.restore()
        async with self.opened(opener) as after:
            assert await after.current() == current
            assert await self._bytes_of_current(after) == await container(snapshot_meta(8, "aa-08"), b"x" * 100_000)

    async def test_n1_a_power_loss_before_publishing_leaves_the_old_one(self) -> None:
        opener = self.opener()
        with self.power() as power:
            storage = opener()
            await storage.open(self.context())
            old = await published(storage, snapshot_meta(3, "aa-03"))
            sink = await storage.sink("bb-09")
            await sink.write(await container(snapshot_meta(9, "bb-09")))
            power.cut()
            await storage.close()
            power.restore()
        async with self.opened(opener) as after:
            assert await after.current() == old
            assert await self._bytes_of_current(after) == await container(snapshot_meta(3, "aa-03"))

    async def test_n1_a_reader_of_the_old_snapshot_reads_it_to_the_end(self) -> None:
        async with self.opened(self.opener()) as storage:
            await published(storage, snapshot_meta(3, "aa-03"), b"old" * 100_000)
            source = await storage.source()
            assert source is not None
            await published(storage, snapshot_meta(9, "bb-09"), b"new")
            try:
                assert same_bytes(
                    await contents(source, 0, 10_000), await container(snapshot_meta(3, "aa-03"), b"old" * 100_000)
                )
            finally:
                await source.close()

    @pytest.mark.parametrize("offset", [0, 1, 1000, 299_999])
    async def test_n1_a_source_reads_from_any_offset_in_chunks_of_any_size(self, offset: int) -> None:
        async with self.opened(self.opener()) as storage:
            await published(storage, snapshot_meta(3), bytes(range(250)) * 1200)
            data = await container(snapshot_meta(3), bytes(range(250)) * 1200)
            source = await storage.source()
            assert source is not None
            assert source.meta == await storage.current()
            for chunk_bytes in (4_096, 1 << 20):
                chunks = [chunk async for chunk in source.open(offset, chunk_bytes)]
                assert same_bytes(b"".join(chunks), data[offset:])
                assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)
            await source.close()

    async def test_n1_an_empty_state_is_a_snapshot_too(self) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            current = await published(storage, snapshot_meta(0), b"")
        async with self.opened(opener) as storage:
            assert await storage.current() == current

    # --- N2: publishing is monotonic ----------------------------------------------------------------------------------

    async def test_n2_an_older_snapshot_is_dropped_and_the_current_one_returned(self) -> None:
        async with self.opened(self.opener()) as storage:
            current = await published(storage, snapshot_meta(9, "bb-09"), b"newer")
            assert await published(storage, snapshot_meta(3, "aa-03"), b"older") == current
            assert await storage.current() == current
            assert await self._bytes_of_current(storage) == await container(snapshot_meta(9, "bb-09"), b"newer")

    async def test_n2_an_older_snapshot_is_dropped_after_reopening_too(self) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            current = await published(storage, snapshot_meta(9, "bb-09"))
        async with self.opened(opener) as storage:
            assert await published(storage, snapshot_meta(8, "aa-08")) == current

    async def test_n2_older_is_said_of_log_ids_not_of_indexes(self) -> None:
        async with self.opened(self.opener()) as storage:
            newer = msgspec.structs.replace(snapshot_meta(5, "cc-05"), last_log_id=LogId(LeaderId(7, "n2"), 5))
            current = await published(storage, newer)
            assert await published(storage, snapshot_meta(6, "aa-06")) == current

    async def test_n2_a_snapshot_of_nothing_is_older_than_any(self) -> None:
        async with self.opened(self.opener()) as storage:
            first = await published(storage, snapshot_meta(None, "aa-00"))
            assert await storage.current() == first
            second = await published(storage, snapshot_meta(0, "bb-00"))
            assert await published(storage, snapshot_meta(None, "cc-00")) == second

    async def test_n2_the_same_position_may_be_published_again(self) -> None:
        """After a restart a node may build what it has; the answer says which of the two is current."""
        async with self.opened(self.opener()) as storage:
            await published(storage, snapshot_meta(5, "aa-05"))
            answer = await published(storage, snapshot_meta(5, "bb-05"))
            assert answer == await storage.current()
            assert answer.last_log_id == snapshot_meta(5).last_log_id

    # --- N3: a receive resumes, and is checked whole ------------------------------------------------------------------

    async def _partly(self, storage: RaftSnapshotStorage, snapshot_id: str, data: bytes) -> None:
        sink = await storage.sink(snapshot_id, resume=True)
        await sink.write(data)
        await sink.abort(keep=True)

    async def test_n3_a_kept_receive_resumes_where_it_ended(self) -> None:
        async with self.opened(self.opener()) as storage:
            meta = snapshot_meta(9, "bb-09")
            data = await container(meta, b"s" * 5000)
            for start in (0, 1000, 2000):
                sink = await storage.sink("bb-09", resume=True)
                assert sink.offset == start
                await sink.write(data[start : start + 1000])
                assert sink.offset == start + 1000
                await sink.abort(keep=True)
            sink = await storage.sink("bb-09", resume=True)
            await sink.write(data[3000:])
            assert await sink.publish(promised(meta, data)) == promised(meta, data)
            assert same_bytes(await self._bytes_of_current(storage), data)

    async def test_n3_what_a_restart_leaves_of_a_receive_is_a_beginning_of_it(self) -> None:
        """A store may forget a broken receive, but never make something else of it."""
        opener, meta = self.opener(), snapshot_meta(9, "bb-09")
        data = await container(meta, b"s" * 5000)
        async with self.opened(opener) as storage:
            await self._partly(storage, "bb-09", data[:2000])
        async with self.opened(opener) as storage:
            sink = await storage.sink("bb-09", resume=True)
            assert sink.offset in (0, 2000)
            await sink.write(data[sink.offset :])
            assert await sink.publish(promised(meta, data)) == promised(meta, data)

    async def test_n3_a_receive_that_was_not_kept_begins_anew(self) -> None:
        async with self.opened(self.opener()) as storage:
            sink = await storage.sink("bb-09", resume=True)
            await sink.write(b"nothing of use")
            await sink.abort()
            sink = await storage.sink("bb-09", resume=True)
            assert sink.offset == 0
            await sink.abort()

    async def test_n3_without_resume_a_sink_begins_anew(self) -> None:
        async with self.opened(self.opener()) as storage:
            await self._partly(storage, "bb-09", b"left over")
            sink = await storage.sink("bb-09")
            assert sink.offset == 0
            await sink.write(await container(snapshot_meta(9, "bb-09")))
            await sink.publish(snapshot_meta(9, "bb-09"))
            assert await self._bytes_of_current(storage) == await container(snapshot_meta(9, "bb-09"))

    async def test_n3_a_receive_of_another_snapshot_is_not_continued(self) -> None:
        async with self.opened(self.opener()) as storage:
            await self._partly(storage, "bb-09", b"of another snapshot")
            sink = await storage.sink("cc-10", resume=True)
            assert sink.offset == 0
            await sink.write(await container(snapshot_meta(10, "cc-10")))
            assert (await sink.publish(snapshot_meta(10, "cc-10"))).snapshot_id == "cc-10"

    @pytest.mark.parametrize(
        "fault", ["cut short", "a bit flipped", "bytes behind the end", "empty", "another size", "another digest"]
    )
    async def test_n3_bytes_that_do_not_fit_are_refused_and_change_nothing(self, fault: str) -> None:
        opener, meta = self.opener(), snapshot_meta(9, "bb-09")
        data = await container(meta, b"s" * 5000)
        announced = promised(meta, data)
        middle = len(data) // 2
        broken = {
            "cut short": data[:-10],
            "a bit flipped": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :],
            "bytes behind the end": data + b"more",
            "empty": b"",
        }.get(fault, data)
        if fault == "another size":
            announced = msgspec.structs.replace(announced, size_bytes=len(data) + 1)
        elif fault == "another digest":
            announced = msgspec.structs.replace(announced, sha256="0" * 64)
        async with self.opened(opener) as storage:
            old = await published(storage, snapshot_meta(3, "aa-03"))
            sink = await storage.sink("bb-09")
            await sink.write(broken)
            with pytest.raises(StorageCorrupt):
                await sink.publish(announced)
            assert await storage.current() == old
        async with self.opened(opener) as storage:
            assert await storage.current() == old
            assert await published(storage, meta, b"s" * 5000) == promised(meta, data)

    async def test_n3_bytes_of_another_snapshot_are_refused(self) -> None:
        """The header names the position; what a sender claims does not make it so."""
        async with self.opened(self.opener()) as storage:
            sink = await storage.sink("bb-09")
            await sink.write(await container(snapshot_meta(4, "bb-09")))
            with pytest.raises(StorageCorrupt):
                await sink.publish(snapshot_meta(9, "bb-09"))
            assert await storage.current() is None

    async def test_n3_a_snapshot_is_published_under_its_own_id(self) -> None:
        async with self.opened(self.opener()) as storage:
            sink = await storage.sink("bb-09")
            await sink.write(await container(snapshot_meta(9, "cc-09")))
            with pytest.raises(StorageCorrupt):
                await sink.publish(snapshot_meta(9, "cc-09"))
            assert await storage.current() is None

    @pytest.mark.parametrize("snapshot_id", ["", "../../etc/passwd", "a/b", "A" * 65, "x\0y"])
    async def test_n3_an_id_that_no_snapshot_has_is_refused(self, snapshot_id: str) -> None:
        """Ids come from peers and may become file names."""
        async with self.opened(self.opener()) as storage:
            with pytest.raises(RaftError):
                await storage.sink(snapshot_id, resume=True)

    async def test_n3_a_finished_sink_takes_nothing_more(self) -> None:
        async with self.opened(self.opener()) as storage:
            sink = await storage.sink("aa-05")
            await sink.write(await container(snapshot_meta(5, "aa-05")))
            await sink.publish(snapshot_meta(5, "aa-05"))
            with pytest.raises(StorageError):
                await sink.write(b"more")
            with pytest.raises(StorageError):
                await sink.publish(snapshot_meta(5, "aa-05"))

    # --- N4: damage ---------------------------------------------------------------------------------------------------

    async def test_n4_a_damaged_snapshot_is_found_and_is_never_an_absent_one(self) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            await published(storage, snapshot_meta(5), b"s" * 50_000)
        await self.damage(opener)
        with pytest.raises(StorageCorrupt):
            await self._read_again(opener)

    async def _read_again(self, opener: SnapshotOpener) -> None:
        async with self.opened(opener) as storage:
            assert await self._bytes_of_current(storage)

    async def test_n4_damage_that_happens_while_the_store_is_open_is_found(self) -> None:
        opener = self.opener()
        async with self.opened(opener) as storage:
            await published(storage, snapshot_meta(5), b"s" * 50_000)
            await self.damage(opener)
            with pytest.raises(StorageCorrupt):
                await storage.source()

    # --- The rest -----------------------------------------------------------------------------------------------------

    async def test_n1_the_size_covers_what_is_published(self) -> None:
        async with self.opened(self.opener()) as storage:
            current = await published(storage, snapshot_meta(5), b"s" * 50_000)
            assert await storage.size_bytes() >= current.size_bytes

    async def test_n1_closing_is_idempotent_and_loses_nothing(self) -> None:
        opener = self.opener()
        storage = opener()
        await storage.close()  # before it was opened
        await storage.open(self.context())
        current = await published(storage, snapshot_meta(5))
        await storage.close()
        await storage.close()
        async with self.opened(opener) as again:
            assert await again.current() == current
