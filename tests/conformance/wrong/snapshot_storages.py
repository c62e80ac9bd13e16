"""Snapshot storages that are wrong on purpose, each in one way, and the case of the kit that must notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from damage import damage_snapshot
from raftkit_core.storage import memory
from raftkit_core.storage.interface import SnapshotSink
from raftkit_core.storage.memory import MemoryDisk, MemorySnapshotStorage
from raftkit_core.testing import SnapshotStorageConformance
from raftkit_core.testing.conformance.kit import PowerSwitch
from raftkit_core.testing.conformance.snapshot_storage import SnapshotOpener
from raftkit_core.types.snapshot import SnapshotMeta, SnapshotSource


class SnapshotDisk(MemoryDisk):
    """``synced`` is what a power loss leaves."""

    synced: tuple[SnapshotMeta, bytes] | None = None
    frozen: tuple[SnapshotMeta, bytes] | None = None

    def cut(self) -> None:
        self.frozen = self.synced

    def restore(self) -> None:
        self.snapshot = self.frozen
        self.crash()


class RightSink(memory._MemorySink):
    _disk: SnapshotDisk

    async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
        published = await super().publish(meta)
        self._disk.synced = self._disk.snapshot
        return published


class RightSnapshots(MemorySnapshotStorage):
    """The reference: nothing is wrong with it."""

    disk: SnapshotDisk
    sink_type: type[RightSink] = RightSink

    async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
        made = await super().sink(snapshot_id, resume=resume)
        assert isinstance(made, memory._MemorySink)
        return self.sink_type(self.disk, snapshot_id, bytes(made._data))


class NotSynced(RightSnapshots):
    """Publishes without a sync."""

    class sink_type(RightSink):  # noqa: N801
        async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
            return await memory._MemorySink.publish(self, meta)


class NotMonotonic(RightSnapshots):
    """The last one published is current, however old it is."""

    class sink_type(RightSink):  # noqa: N801
        async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
            self._disk.snapshot = None
            return await super().publish(meta)


class NotChecked(RightSnapshots):
    """Believes what it was told about the bytes."""

    class sink_type(RightSink):  # noqa: N801
        async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
            self._check_not_done("publish")
            self._is_done = True
            self._disk.snapshot = self._disk.synced = (meta, bytes(self._data))
            return meta


class DigestNotCompared(RightSnapshots):
    """Checks the structure, not what the sender announced."""

    class sink_type(RightSink):  # noqa: N801
        async def publish(self, meta: SnapshotMeta) -> SnapshotMeta:
            return await super().publish(
                SnapshotMeta(meta.last_log_id, meta.membership, meta.snapshot_id, meta.time_ms)
            )


class ReceiveForgotten(RightSnapshots):
    """Keeps nothing of a broken receive."""

    class sink_type(RightSink):  # noqa: N801
        async def abort(self, *, keep: bool = False) -> None:
            await super().abort()


class AnyReceiveResumed(RightSnapshots):
    """Goes on with whatever was kept, of whichever snapshot."""

    async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
        if resume and self.disk.kept is not None:
            self.disk.kept = (snapshot_id, self.disk.kept[1])
        return await super().sink(snapshot_id, resume=resume)


class DamageNotFound(RightSnapshots):
    """Checks when it writes, never when it reads."""

    async def open(self, context: object) -> None:
        return

    async def source(self) -> SnapshotSource | None:
        return None if self.disk.snapshot is None else memory._MemorySource(*self.disk.snapshot)


class UnfinishedIsCurrent(RightSnapshots):
    """Writes in place."""

    class sink_type(RightSink):  # noqa: N801
        async def write(self, chunk: bytes) -> None:
            await super().write(chunk)
            self._disk.snapshot = None


class OffsetIgnored(RightSnapshots):
    """Reads from the beginning, wherever one wants to begin."""

    async def source(self) -> SnapshotSource | None:
        found = await super().source()
        if found is None:
            return None
        made = memory._MemorySource(found.meta, self.disk.snapshot[1] if self.disk.snapshot else b"")
        made.open = lambda offset=0, chunk_bytes=1 << 20: type(made).open(made, 0, chunk_bytes)  # type: ignore[method-assign]
        return made


WRONG_SNAPSHOTS: dict[type[RightSnapshots], str] = {
    NotSynced: "test_n1_a_published_snapshot_survives_a_power_loss",
    NotMonotonic: "test_n2_an_older_snapshot_is_dropped_and_the_current_one_returned",
    NotChecked: "test_n3_bytes_that_do_not_fit_are_refused_and_change_nothing",
    DigestNotCompared: "test_n3_bytes_that_do_not_fit_are_refused_and_change_nothing",
    ReceiveForgotten: "test_n3_a_kept_receive_resumes_where_it_ended",
    AnyReceiveResumed: "test_n3_a_receive_of_another_snapshot_is_not_continued",
    DamageNotFound: "test_n4_damage_that_happens_while_the_store_is_open_is_found",
    UnfinishedIsCurrent: "test_n1_an_unfinished_snapshot_is_never_current",
    OffsetIgnored: "test_n1_a_source_reads_from_any_offset_in_chunks_of_any_size",
}
"""Each wrong storage and the case that names its fault."""


class WrongSnapshots(SnapshotStorageConformance):
    """The kit on one of them; subclassed with ``adapter``."""

    adapter: type[RightSnapshots] = RightSnapshots

    def opener(self) -> SnapshotOpener:
        self.disk = SnapshotDisk("wrong")
        return lambda: self.adapter(self.disk)

    @contextmanager
    def power(self) -> Iterator[PowerSwitch]:
        yield self.disk

    async def damage(self, opener: SnapshotOpener) -> None:
        damage_snapshot(self.disk)
