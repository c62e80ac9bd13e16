"""``memory:`` keeps the contract of log storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raftkit_core.errors import StorageFull
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage
from raftkit_core.testing.conformance.kit import PowerSwitch
from raftkit_core.testing.conformance.log_storage import LogStorageConformance, Opener


class _Disk(MemoryDisk):
    def cut(self) -> None:
        """A memory disk is durable at once: nothing is lost with the power."""

    def restore(self) -> None:
        self.crash()


class TestMemoryLogStorage(LogStorageConformance):
    def opener(self) -> Opener:
        self.disk = _Disk("conformance")
        return lambda: MemoryLogStorage(self.disk)

    @contextmanager
    def power(self) -> Iterator[PowerSwitch]:
        yield self.disk

    async def make_next_write_fail(self, storage: RaftLogStorage) -> None:
        assert isinstance(storage, MemoryLogStorage)
        storage.disk.fail_writes = StorageFull("the disk is full")
