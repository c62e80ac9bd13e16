"""Any node takes what the leader does: forwarded by one hop."""

from __future__ import annotations

import asyncio

import pytest
from three_nodes import ALL, others

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import ForwardToLeader, OutcomeUnknown
from raftkit_core.network.disturbances import DROP
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put

pytestmark = pytest.mark.virtual_time


async def test_any_node_takes_writes_and_reads() -> None:
    async with memory_cluster(3, ["n4"]) as cluster:
        for number, node_id in enumerate([*ALL, "n4"]):
            response = await cluster.raft(node_id).write(Put(f"k{number}", node_id.encode()))
            assert response.data.changed
            for policy in (ReadPolicy.READ_INDEX, ReadPolicy.LEASE):
                for reader in [*ALL, "n4"]:
                    found = await cluster.raft(reader).read(Get(f"k{number}"), policy)
                    assert found.value == node_id.encode()


async def test_a_forwarded_write_takes_one_hop_and_carries_its_remaining_deadline() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        seen = []

        def look(src: NodeId, dst: NodeId, kind: str, message: object) -> None:
            if kind == "forward":
                seen.append((src, dst, message.timeout_ms))  # type: ignore[attr-defined]

        cluster.hub.pre_hook = look
        follower = others(leader)[0]
        await cluster.raft(follower).write(Put("a", b"1"), timeout=3.0)
        assert seen == [(follower, leader.id, 3000)]


async def test_a_forward_is_never_forwarded_again() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        one, two = (cluster.raft(node_id) for node_id in others(leader))
        request_body = one.machine.codec.encode_command(Put("a", b"1"))
        from raftkit_core.runtime.operations import Write, _encoder
        from raftkit_core.types.messages import ForwardRequest

        client = one._core.peers.get(two.id, one._core.engine.effective.nodes[two.id])
        with pytest.raises(ForwardToLeader) as refused:
            await client.forward(ForwardRequest("write", _encoder.encode(Write(request_body)), 1000), 1.0)
        assert refused.value.leader == leader.id


async def test_a_lost_answer_to_a_forwarded_write_is_an_unknown_outcome() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        await follower.write(Put("warm", b"up"))
        task = asyncio.ensure_future(follower.write(Put("a", b"1"), timeout=1.0))
        await asyncio.sleep(0)
        cluster.hub.cut(leader.id, follower.id)
        with pytest.raises(OutcomeUnknown):
            await task
        cluster.hub.heal()
        assert (await leader.read(Get("a"))).value == b"1", "it had been applied"


async def test_a_forward_that_was_lost_on_the_way_is_an_unknown_outcome_too() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        cluster.hub.pre_hook = lambda _src, _dst, kind, _message: DROP if kind == "forward" else None
        with pytest.raises(OutcomeUnknown):
            await follower.write(Put("a", b"1"), timeout=1.0)


async def test_a_forward_under_way_when_its_node_stops_is_an_unknown_outcome() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        await follower.write(Put("warm", b"up"))
        cluster.hub.latency = 0.05
        task = asyncio.ensure_future(follower.write(Put("a", b"1"), timeout=5.0))
        await asyncio.sleep(0.06)
        await cluster.kill(follower.id)
        with pytest.raises(OutcomeUnknown):
            await task
        cluster.hub.latency = 0.0
        await asyncio.sleep(1)
        assert (await leader.read(Get("a"))).value == b"1", "it was under way, and is applied"


async def test_a_write_waits_for_the_next_leader_until_its_deadline() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        await cluster.kill(leader.id)
        response = await follower.write(Put("a", b"1"), timeout=10.0)
        assert response.data.changed


async def test_a_write_to_a_leader_that_shuts_down_is_carried_out_by_the_next_one() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = cluster.raft(others(leader)[0])
        stopping = asyncio.ensure_future(cluster.stop(leader.id))
        results = await asyncio.gather(*(outcome(follower.write(Put(f"k{n}", b"v"))) for n in range(20)))
        await stopping
        for number, result in enumerate(results):
            assert isinstance(result, ClientWriteResponse | OutcomeUnknown), result
            if isinstance(result, ClientWriteResponse):
                assert await follower.read(Get(f"k{number}")) is not None


async def test_without_a_cluster_a_write_says_how_to_make_one() -> None:
    async with memory_cluster(1, initialize=False) as cluster:
        for call in (
            cluster.raft("n1").write(Put("a", b"1"), timeout=0.5),
            cluster.raft("n1").read(Get("a"), timeout=0.5),
        ):
            with pytest.raises(ForwardToLeader) as refused:
                await call
            assert "raftkit cluster init" in str(refused.value.hint)
