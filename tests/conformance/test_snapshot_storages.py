"""``file:`` and ``memory:`` keep the contract of snapshot storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from damage import damage_snapshot
from raftkit_core.storage.file_snapshots import CURRENT, FileSnapshotStorage
from raftkit_core.storage.memory import MemoryDisk, MemorySnapshotStorage
from raftkit_core.testing import SnapshotStorageConformance
from raftkit_core.testing.conformance.kit import PowerSwitch
from raftkit_core.testing.conformance.snapshot_storage import SnapshotOpener


class TestFileSnapshots(SnapshotStorageConformance):
    url = "file:snapshots"
    python_files = True

    async def damage(self, opener: SnapshotOpener) -> None:
        path = self.folder / "snapshots" / CURRENT
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def test_the_url_makes_file_snapshots(self) -> None:
        assert type(self.opener()()) is FileSnapshotStorage


class _Disk(MemoryDisk):
    def cut(self) -> None:
        """A memory disk is durable at once: nothing is lost with the power."""

    def restore(self) -> None:
        self.crash()


class TestMemorySnapshots(SnapshotStorageConformance):
    def opener(self) -> SnapshotOpener:
        self.disk = _Disk("conformance")
        return lambda: MemorySnapshotStorage(self.disk)

    @contextmanager
    def power(self) -> Iterator[PowerSwitch]:
        yield self.disk

    async def damage(self, opener: SnapshotOpener) -> None:
        damage_snapshot(self.disk)
