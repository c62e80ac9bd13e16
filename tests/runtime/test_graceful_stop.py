"""A leader that is shut down answers what it took before its connections close."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.errors import RaftError
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time

ALL = ("n1", "n2", "n3")


@pytest.mark.parametrize("latency", [0.0, 0.003])
async def test_writes_through_other_nodes_see_no_unknown_outcome_when_their_leader_stops(latency: float) -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.latency = latency
        done = asyncio.Event()
        told: list[object] = []

        async def writer(number: int) -> None:
            raft = cluster.raft([node_id for node_id in ALL if node_id != leader.id][number % 2])
            count = 0
            while not done.is_set():
                count += 1
                told.append(await outcome(raft.write(Put(f"{number}/{count}", b"v"), timeout=20)))
                await asyncio.sleep(0.001)

        writing = [asyncio.ensure_future(writer(number)) for number in range(10)]
        await asyncio.sleep(0.3)
        began = asyncio.get_running_loop().time()
        await cluster.stop(leader.id)
        assert asyncio.get_running_loop().time() - began < 2
        await asyncio.sleep(0.3)
        done.set()
        await asyncio.gather(*writing)
        assert len(told) > 50
        assert [str(each) for each in told if isinstance(each, RaftError)] == []


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
