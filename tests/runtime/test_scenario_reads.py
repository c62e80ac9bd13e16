"""Reads on whole nodes: linearizable, by lease, from any node."""

from __future__ import annotations

import asyncio

import pytest
from three_nodes import last_index, others

from raftkit_core.config import Config, ReadPolicy
from raftkit_core.errors import ForwardToLeader, QuorumNotEnough, Stopped
from raftkit_core.network.disturbances import DROP
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time


async def test_a_linearizable_read_needs_a_quorum_and_only_the_leader_confirms_it() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.ensure_linearizable()
        for node_id in others(leader):
            with pytest.raises(ForwardToLeader):
                await cluster.raft(node_id).ensure_linearizable()
        cluster.hub.isolate(others(leader)[0])
        await leader.ensure_linearizable()
        cluster.hub.isolate(others(leader)[1])
        with pytest.raises(QuorumNotEnough):
            await leader.ensure_linearizable(timeout=0.3)


async def test_a_lease_read_asks_nobody_and_ends_with_the_lease() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await asyncio.sleep(0.3)
        before = cluster.hub.counts["heartbeat"]
        await leader.ensure_linearizable(ReadPolicy.LEASE)
        assert cluster.hub.counts["heartbeat"] == before
        for node_id in others(leader):
            cluster.hub.isolate(node_id)
        await asyncio.sleep(0.6)
        with pytest.raises(QuorumNotEnough):
            await leader.ensure_linearizable(ReadPolicy.LEASE, timeout=0.2)


async def test_a_read_is_confirmed_only_by_messages_that_left_after_it_arrived() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        for node_id in others(leader):
            cluster.hub.cut(leader.id, node_id)
        read = asyncio.ensure_future(leader.ensure_linearizable(timeout=0.2))
        with pytest.raises(QuorumNotEnough):
            await read


async def test_many_reads_share_one_round() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        await asyncio.sleep(0.001)
        before = cluster.hub.counts["heartbeat"]
        await asyncio.gather(*(leader.read(Get("a")) for _ in range(200)))
        assert cluster.hub.counts["heartbeat"] - before <= 4


async def test_reads_of_a_follower_share_calls_to_the_leader() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        follower = cluster.raft(others(leader)[0])
        for policy in (ReadPolicy.READ_INDEX, ReadPolicy.LEASE):
            before = cluster.hub.counts["read_index"]
            found = await asyncio.gather(*(follower.read(Get("a"), policy) for _ in range(200)))
            assert {item.value for item in found} == {b"1"}
            assert cluster.hub.counts["read_index"] - before == 1


async def test_a_lost_call_of_a_follower_holds_up_the_reads_behind_it_for_one_heartbeat() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        follower = cluster.raft(others(leader)[0])
        asked = 0

        def lose_the_first(_src: NodeId, _dst: NodeId, kind: str, _message: object) -> str | None:
            nonlocal asked
            asked += kind == "read_index"
            return DROP if kind == "read_index" and asked == 1 else None

        cluster.hub.pre_hook = lose_the_first
        lost = asyncio.ensure_future(follower.read(Get("a"), timeout=5))
        await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await follower.read(Get("a"), timeout=5)).value == b"1"
        assert loop.time() - began <= 1.5 * cluster.config.heartbeat_interval_ms / 1000
        assert (await lost).value == b"1", "it asks again when its call has run out"


async def test_a_reader_that_gives_up_takes_nobody_with_it() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        follower = cluster.raft(others(leader)[0])
        first, second = (asyncio.ensure_future(follower.read(Get("a"))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).value == b"1"
        assert first.cancelled()


async def test_a_follower_that_stops_ends_its_readers_and_its_call() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        cluster.hub.cut(follower.id, leader.id)
        reads = [asyncio.ensure_future(outcome(follower.read(Get("a"), timeout=5))) for _ in range(3)]
        await asyncio.sleep(0.01)
        await cluster.stop(follower.id)
        assert [type(result) for result in await asyncio.gather(*reads)] == [Stopped] * 3


async def test_the_read_position_is_the_leader_s_own_first_entry_until_that_commits() -> None:
    async with memory_cluster(3, config=Config(enable_elect=False)) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        await cluster.applied(last_index(leader))
        target = cluster.raft(others(leader)[0])

        def drop_entries(_src: NodeId, _dst: NodeId, kind: str, message: object) -> str | None:
            return DROP if kind == "append_entries" and message.entries else None  # type: ignore[attr-defined]

        await leader.transfer_leader(target.id)
        await target.client_write(Put("b", b"2"))
        cluster.hub.pre_hook = drop_entries
        committed = target.metrics().value.committed
        pending = target.client_write_ff(Put("c", b"3"))
        read_log_id, applied = await target.get_read_log_id()
        assert read_log_id == committed == applied
        cluster.hub.pre_hook = None
        await pending
        read_log_id, applied = await target.get_read_log_id()
        assert read_log_id == (await pending).log_id == applied


async def test_a_deposed_leader_serves_no_read_after_a_pause() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"old"))
        cluster.hub.isolate(leader.id)
        leader.runtime_config().tick(False)  # it notices nothing by itself, like a paused process
        new_leader = await cluster.leader(*others(leader))
        await new_leader.client_write(Put("a", b"new"))
        assert leader.metrics().value.state is ServerState.LEADER
        for policy in (ReadPolicy.LEASE, ReadPolicy.READ_INDEX):
            with pytest.raises(QuorumNotEnough):
                await leader.read(Get("a"), policy, timeout=0.5)
        cluster.hub.heal()
        assert (await leader.read(Get("a"))).value == b"new"
