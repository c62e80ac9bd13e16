"""``memory:`` keeps the contract of log storage."""

from __future__ import annotations

from raftkit_core.errors import StorageFull
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.conformance.log_storage import LogStorageConformance, Opener


class TestMemoryLogStorage(LogStorageConformance):
    def opener(self) -> Opener:
        disk = MemoryDisk("conformance")
        return lambda: MemoryLogStorage(disk)

    async def make_next_write_fail(self, storage: RaftLogStorage) -> None:
        assert isinstance(storage, MemoryLogStorage)
        storage.disk.fail_writes = StorageFull("the disk is full")
