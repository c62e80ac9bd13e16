"""An idle cluster leaves the disk alone: nothing is written, so nothing is synced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryLogStorage
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time


class CountingStorage(MemoryLogStorage):
    """Every durable write, of any node of the test."""

    writes: list[Any]

    def write(self, batch: LogBatch) -> None:
        self.writes.append(batch)
        super().write(batch)

    async def save_identity(self, identity: StoreIdentity) -> None:
        self.writes.append(identity)
        await super().save_identity(identity)


async def test_two_minutes_of_heartbeats_write_nothing() -> None:
    writes: list[Any] = []
    storage = type("Counting", (CountingStorage,), {"writes": writes})
    async with memory_cluster(3, learners=["n4"], storage=storage) as cluster:
        leader = await cluster.leader()
        index = (await leader.write(Put("k", b"v"))).log_id.index
        await cluster.applied(index)
        await asyncio.sleep(5)
        writes.clear()
        term = leader.metrics().value.current_term
        await asyncio.sleep(120)
        assert writes == []
        assert leader.metrics().value.current_term == term, "it was idle, not broken"
        await leader.write(Put("k", b"w"))
        assert writes, "the storage counts"
