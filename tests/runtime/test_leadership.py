"""``raft.leadership()``: a block that runs only while this node leads, and ends with the read lease."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.errors import LeadershipLost, WaitTimeout
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time


async def test_the_block_runs_on_the_leader_and_ends_by_itself() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        async with leader.leadership() as term:
            assert term.is_valid
            assert term.term == leader.metrics().value.current_term
            await leader.client_write(Put("a", b"1"))
            term.raise_if_lost()


async def test_a_follower_waits_until_it_leads() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
        with pytest.raises(WaitTimeout):
            async with follower.leadership(timeout=2):
                raise AssertionError("a follower must not enter")
        entered = asyncio.ensure_future(_token_of(follower))
        await leader.transfer_leader(follower.id)
        assert await entered > 0


async def _token_of(raft: object) -> int:
    async with raft.leadership(timeout=30) as term:  # type: ignore[attr-defined]
        return int(term.token)


async def test_an_isolated_leader_s_block_is_cancelled_before_another_node_can_lead() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        loop = asyncio.get_running_loop()
        ended_at = 0.0
        cut_at = 0.0

        async def body() -> None:
            nonlocal ended_at, cut_at
            async with leader.leadership():
                cluster.hub.isolate(leader.id)
                cut_at = loop.time()
                try:
                    await asyncio.sleep(3600)
                finally:
                    ended_at = loop.time()

        with pytest.raises(LeadershipLost):
            await body()
        others = [raft for raft in cluster.rafts.values() if raft is not leader]
        assert all(raft.current_leader() in (None, leader.id) for raft in others)
        assert ended_at - cut_at <= leader.config.leader_lease_ms / 1000
        await others[0].wait(10).metrics(lambda m: m.current_leader not in (None, leader.id))


async def test_a_hand_over_cancels_the_block_before_the_target_leads() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        target = next(raft for raft in cluster.rafts.values() if raft is not leader)
        led_meanwhile = True

        async def body() -> None:
            nonlocal led_meanwhile
            async with leader.leadership():
                leader.trigger().transfer_leader(target.id)
                try:
                    await asyncio.sleep(3600)
                finally:
                    led_meanwhile = target.current_leader() == target.id

        with pytest.raises(LeadershipLost):
            await body()
        assert not led_meanwhile
        await target.wait(5).current_leader(target.id)


async def test_tokens_grow_from_one_leadership_to_the_next() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        first = await _token_of(leader)
        target = next(raft for raft in cluster.rafts.values() if raft is not leader)
        await leader.transfer_leader(target.id)
        assert await _token_of(target) > first


async def test_cancelling_the_caller_is_not_taken_for_a_lost_lease() -> None:
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()

        async def body() -> None:
            async with leader.leadership():
                await asyncio.sleep(3600)

        task = asyncio.ensure_future(body())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
