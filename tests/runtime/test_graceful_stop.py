"""A leader that is shut down answers what it took before its connections close."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from three_nodes import ALL

from raftkit_core.errors import RaftError, Stopped
from raftkit_core.storage.interface import LogBatch
from raftkit_core.storage.memory import MemoryLogStorage
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize("latency", [0.0, 0.003, 0.02])
async def test_writes_through_other_nodes_see_no_unknown_outcome_when_their_leader_stops(latency: float) -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.latency = latency
        done = asyncio.Event()
        told: list[object] = []
        answered_at: list[float] = []
        loop = asyncio.get_running_loop()

        async def writer(number: int) -> None:
            raft = cluster.raft([node_id for node_id in ALL if node_id != leader.id][number % 2])
            count = 0
            while not done.is_set():
                count += 1
                told.append(await outcome(raft.write(Put(f"{number}/{count}", b"v"), timeout=20)))
                answered_at.append(loop.time())
                await asyncio.sleep(0.001)

        writing = [asyncio.ensure_future(writer(number)) for number in range(10)]
        await asyncio.sleep(0.3)
        began = loop.time()
        await cluster.stop(leader.id)
        assert loop.time() - began < 2
        assert {raft.metrics().value.current_leader for raft in cluster.rafts.values()} & set(ALL) - {leader.id}
        await asyncio.sleep(0.3)
        done.set()
        await asyncio.gather(*writing)
        assert len(told) > 50
        assert [str(each) for each in told if isinstance(each, RaftError)] == []
        # It handed leadership over: nobody had to find out that it was gone, which takes an election timeout.
        gaps = [after - before for before, after in itertools.pairwise(answered_at)]
        assert max(gaps) < cluster.config.election_timeout_min_ms / 1000 / 2


class SlowDisk(MemoryLogStorage):
    """Takes 50 ms for every write while ``is_slow``."""

    is_slow = False

    async def write(self, batch: LogBatch) -> None:  # type: ignore[override]
        if self.is_slow:
            await asyncio.sleep(0.05)
        super().write(batch)


async def test_what_a_leader_has_taken_is_answered_before_its_connections_close_also_if_its_own_disk_is_slow() -> None:
    """Two others are a quorum, so leadership is handed over while this node still writes what it took."""
    async with memory_cluster(3, storage=SlowDisk) as cluster:
        leader = await cluster.leader()
        opened = cluster.disk(leader.id).opened_by
        assert isinstance(opened, SlowDisk)
        opened.is_slow = True
        others = [node_id for node_id in ALL if node_id != leader.id]
        waiting = [
            asyncio.ensure_future(outcome(cluster.raft(others[number % 2]).write(Put(f"k{number}", b"v"), timeout=20)))
            for number in range(10)
        ]
        await asyncio.sleep(0.01)
        await cluster.stop(leader.id)
        told = await asyncio.gather(*waiting)
        assert [str(each) for each in told if isinstance(each, RaftError)] == []


async def test_what_a_follower_has_forwarded_is_answered_before_its_connections_close() -> None:
    """And what comes meanwhile is refused for certain: its own leader may be slow, other nodes are there."""
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(next(node_id for node_id in ALL if node_id != leader.id))
        cluster.hub.latency = 0.05
        waiting = [
            asyncio.ensure_future(outcome(follower.write(Put(f"k{number}", b"v"), timeout=20))) for number in range(10)
        ]
        await asyncio.sleep(0.01)
        stopping = asyncio.ensure_future(cluster.stop(follower.id))
        await asyncio.sleep(0.01)
        late = await outcome(follower.write(Put("late", b"v"), timeout=20))
        assert isinstance(late, Stopped)
        assert (late.outcome, late.retryable) == ("not_applied", True)
        assert [str(each) for each in await asyncio.gather(*waiting) if isinstance(each, RaftError)] == []
        await stopping


async def test_a_leader_that_stops_says_so_from_the_beginning() -> None:
    """Whoever watches it sends nothing new here while it hands over."""
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.latency = 0.05
        assert not leader.is_stopping
        stopping = asyncio.ensure_future(cluster.stop(leader.id))
        await asyncio.sleep(0.01)
        assert leader.is_stopping
        assert leader.metrics().value.running, "it is still at work"
        await stopping
        assert leader.is_stopping


async def test_a_leader_without_a_quorum_is_shut_down_within_bounds_all_the_same() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        for node_id in ALL:
            if node_id != leader.id:
                await cluster.kill(node_id)
        pending = asyncio.ensure_future(outcome(leader.client_write(Put("k", b"v"), timeout=60)))
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()
        await cluster.stop(leader.id)
        assert asyncio.get_running_loop().time() - began < 5
        told = await pending
        assert isinstance(told, RaftError)
        assert told.outcome == "unknown"
