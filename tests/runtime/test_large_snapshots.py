"""What takes long because it is large is waited for: given up, it would be begun anew and take as long again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from raftkit_core.runtime import limits
from raftkit_core.runtime.limits import seconds_for_bytes
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage import memory
from raftkit_core.storage.memory import _MemorySink
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.log_id import index_of
from raftkit_core.types.snapshot import SnapshotMeta


def test_a_deadline_for_a_whole_snapshot_grows_with_its_size() -> None:
    assert seconds_for_bytes(60, 0) == 60
    assert seconds_for_bytes(60, 1 << 30) == 188


class SlowRestore(KvStateMachine):
    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        await asyncio.sleep(90)
        await super().restore(meta, chunks)


@pytest.mark.virtual_time
async def test_a_snapshot_whose_restore_takes_as_long_as_its_size_allows_is_sent_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = 0

    class CountingSink(_MemorySink):
        async def write(self, chunk: bytes) -> None:
            nonlocal written
            written += len(chunk)
            await super().write(chunk)

    monkeypatch.setattr(memory, "_MemorySink", CountingSink)
    monkeypatch.setattr(limits, "SNAPSHOT_BYTES_PER_SECOND", 8)
    async with memory_cluster(1, machine=SlowRestore) as cluster:
        leader = await cluster.leader()
        await leader.write(Put("k", b"v" * 1000))
        leader.trigger().snapshot()
        held = await leader.wait(20).metrics(lambda m: m.snapshot is not None, "a snapshot")
        leader.trigger().purge_log(index_of(held.snapshot))
        await leader.wait(20).metrics(lambda m: m.purged == m.snapshot, "a purge")
        await cluster.start("n2")
        await leader.add_learner("n2", cluster.address("n2"), blocking=False)
        await cluster.applied(index_of(held.snapshot) + 1, "n2", timeout=300)
        assert (await cluster.raft("n2").read(Get("k"))).value == b"v" * 1000
        size_bytes = (await leader.status()).snapshot_size_bytes
        assert written == 2 * size_bytes, "built once, and received once"
