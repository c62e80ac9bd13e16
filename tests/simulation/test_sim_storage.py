"""The simulated disks keep the contracts of storage: what a simulation shows is about the node, not about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from damage import damage_snapshot
from raftkit_core.errors import StorageFull
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.testing import LogStorageConformance, SnapshotStorageConformance, StateMachineConformance
from raftkit_core.testing.conformance.kit import PowerSwitch
from raftkit_core.testing.conformance.log_storage import Opener
from raftkit_core.testing.conformance.snapshot_storage import SnapshotOpener
from raftkit_core.testing.simulation.sim_disk import SimDisk, SimLogStorage, SimSnapshotStorage
from raftkit_core.testing.simulation.sim_machine import DurableKv
from raftkit_core.types.kv import CompareAndSet, Put


class TestSimLogStorage(LogStorageConformance):
    def opener(self) -> Opener:
        self.disk = SimDisk("n1")
        self.disk.at_once, self.disk.latency = 0.5, (0.0, 0.001)
        return lambda: SimLogStorage(self.disk)

    @contextmanager
    def power(self) -> Iterator[PowerSwitch]:
        yield self.disk

    async def make_next_write_fail(self, storage: RaftLogStorage) -> None:
        self.disk.fail_writes = StorageFull("the disk is full")

    async def damage_entry(self, opener: Opener, index: int) -> None:
        self.disk.rotten[index] = None

    async def damage_vote(self, opener: Opener) -> None:
        self.disk.rotten_vote = True


class TestSimSnapshots(SnapshotStorageConformance):
    def opener(self) -> SnapshotOpener:
        self.disk = SimDisk("n1")
        self.disk.at_once, self.disk.latency = 0.5, (0.0, 0.001)
        return lambda: SimSnapshotStorage(self.disk)

    @contextmanager
    def power(self) -> Iterator[PowerSwitch]:
        yield self.disk

    async def damage(self, opener: SnapshotOpener) -> None:
        damage_snapshot(self.disk)


class TestDurableKv(StateMachineConformance):
    def opener(self) -> Any:
        disk = SimDisk("n1")
        return lambda: DurableKv(disk)

    async def make_next_write_fail(self, machine: Any) -> None:
        machine._disk.fail_writes = StorageFull("the disk is full")

    def commands(self, count: int) -> list[Any]:
        return [Put(f"k{number % 7}", f"v{number}".encode()) for number in range(count)]

    def refusal(self) -> tuple[Sequence[Any], Any]:
        return [Put("k", b"1")], CompareAndSet("k", b"2", b"3")
