"""Writes on whole nodes: their results, and what becomes of them when the leader is lost."""

from __future__ import annotations

import asyncio

import pytest
from three_nodes import ALL, last_index, others, six_writers

from raftkit_core.config import Config, ReadPolicy, SnapshotPolicy
from raftkit_core.errors import (
    BadCommand,
    ForwardToLeader,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    QuorumNotEnough,
    Stopped,
)
from raftkit_core.raft import Raft
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.types.kv import CompareAndSet, Get, Put, WriteResult
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time

# --- writes -----------------------------------------------------------------------------------------------------------


async def test_six_writers_with_a_hundred_writes_each_end_on_every_node() -> None:
    config = Config(snapshot_policy=SnapshotPolicy.LogsSinceLast(200))
    async with memory_cluster(3, config=config) as cluster:
        leader = await cluster.leader()
        await six_writers(leader)
        await cluster.applied(last_index(leader))
        assert {len(cluster.raft(node_id).machine) for node_id in ALL} == {600}  # type: ignore[arg-type]
        assert len({cluster.raft(node_id).machine.digest() for node_id in ALL}) == 1


async def test_a_write_gives_its_log_id_and_the_machine_s_result() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        response = await raft.client_write(Put("a", b"1"))
        assert response.data == WriteResult(revision=response.log_id.index)
        assert response.membership is None
        assert cluster.log("n1")[-1].log_id == response.log_id


async def test_a_write_and_forget_gives_its_result_later_in_order() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        first = leader.client_write_ff(Put("a", b"1"))
        second = leader.client_write_ff(Put("a", b"2"))
        assert not first.done()
        assert (await second).data.previous_revision == (await first).log_id.index


async def test_many_writes_are_one_append_and_each_gets_its_own_result() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        before = cluster.hub.counts["append_entries"]
        results = await leader.client_write_many(
            [Put("a", b"1"), CompareAndSet("a", b"other", b"2"), CompareAndSet("a", b"1", b"2")]
        )
        assert isinstance(results[0], ClientWriteResponse)
        assert isinstance(results[1], PreconditionFailed)
        assert isinstance(results[2], ClientWriteResponse)
        assert results[2].log_id.index == results[0].log_id.index + 2
        assert cluster.hub.counts["append_entries"] - before == 2, "one request for each follower"
        assert await leader.client_write_many([]) == []


async def test_concurrent_writes_share_appends() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        before = cluster.hub.counts["append_entries"]
        await asyncio.gather(*(leader.client_write(Put(f"k{number}", b"v")) for number in range(500)))
        assert cluster.hub.counts["append_entries"] - before <= 8


async def test_a_follower_refuses_a_client_write_and_names_the_leader() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        with pytest.raises(ForwardToLeader) as refused:
            await cluster.raft(others(leader)[0]).client_write(Put("a", b"1"))
        assert refused.value.leader == leader.id
        assert refused.value.leader_node is not None
        assert refused.value.leader_node.peer == cluster.address(leader.id).peer
        assert refused.value.outcome == "not_applied"


async def test_garbage_and_oversized_commands_never_become_entries() -> None:
    async with memory_cluster(1, config=Config(max_entry_bytes=1000)) as cluster:
        raft = cluster.raft("n1")
        before = last_index(raft)
        for command in (Put("k", b"x" * 2000), Put("k" * 5000, b""), "no command", None):
            with pytest.raises(BadCommand):
                await raft.client_write(command)
            with pytest.raises(BadCommand):
                await raft.write(command)
        assert last_index(raft) == before


async def test_a_refused_command_is_a_result_and_the_node_goes_on() -> None:
    async with memory_cluster(3) as cluster:
        follower = cluster.raft(others(await cluster.leader())[0])
        with pytest.raises(PreconditionFailed):
            await follower.write(CompareAndSet("a", b"x", b"y"))
        await follower.write(Put("a", b"x"))


async def test_too_many_uncommitted_bytes_are_refused_until_the_earlier_ones_commit() -> None:
    async with memory_cluster(3, config=Config(max_uncommitted_bytes=10_000)) as cluster:
        leader = await cluster.leader()
        for node_id in others(leader):
            cluster.hub.isolate(node_id)
        pending = [leader.client_write_ff(Put(f"k{number}", b"x" * 3000)) for number in range(4)]
        await asyncio.sleep(0.05)
        assert isinstance(pending[3].exception(), Overloaded)
        cluster.hub.heal()
        await asyncio.gather(*pending[:3])
        await leader.client_write(Put("k4", b"x" * 3000))


async def test_a_cancelled_write_leaves_the_node_as_it_was() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        task = asyncio.ensure_future(leader.client_write(Put("a", b"1")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await leader.client_write(Put("b", b"2"))
        assert leader.metrics().value.pending_writes == 0


async def write_cut_off(
    cluster: MemoryCluster, leader: Raft, timeout: float = 30.0
) -> asyncio.Future[ClientWriteResponse]:
    """A write that reaches the leader's log and nobody else's."""
    cluster.hub.isolate(leader.id)
    pending = leader.client_write_ff(Put("cut", b"off"), timeout=timeout)
    await asyncio.sleep(0.05)
    assert not pending.done()
    return pending


# --- what becomes of a write when the leader is lost ------------------------------------------------------------------


async def test_a_write_replaced_by_another_leader_s_entry_is_told_that_it_was_not_applied() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        pending = await write_cut_off(cluster, leader)
        new_leader = await cluster.leader(*others(leader))
        await new_leader.client_write(Put("a", b"1"))
        assert not pending.done(), "losing leadership answers nobody"
        cluster.hub.heal()
        with pytest.raises(NotApplied):
            await pending
        assert await new_leader.read(Get("cut")) is None


async def test_a_write_that_commits_after_the_leader_stepped_down_succeeds() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.cut(others(leader)[0], leader.id)
        cluster.hub.cut(others(leader)[1], leader.id)
        pending = leader.client_write_ff(Put("a", b"1"), timeout=30.0)
        await cluster.eventually(lambda: not leader._core.engine.is_leader, "the leader steps down")
        assert not pending.done()
        cluster.hub.heal()
        assert (await pending).data.changed
        assert (await leader.read(Get("a"))).value == b"1"


async def test_a_write_without_an_answer_by_its_deadline_has_an_unknown_outcome() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        pending = await write_cut_off(cluster, leader, timeout=0.5)
        with pytest.raises(OutcomeUnknown) as told:
            await pending
        assert told.value.outcome == "unknown"


async def test_a_write_under_way_at_shutdown_has_an_unknown_outcome_and_a_later_one_a_definite_one() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        pending = await write_cut_off(cluster, leader)
        await cluster.stop(leader.id)
        with pytest.raises(OutcomeUnknown) as told:
            await pending
        assert isinstance(told.value.__cause__, Stopped)
        with pytest.raises(Stopped) as refused:
            await leader.client_write(Put("a", b"1"))
        assert refused.value.outcome == "not_applied"


async def test_d09_a_write_superseded_by_a_snapshot_is_answered_as_unknown() -> None:
    config = Config(max_in_snapshot_log_to_keep=0, purge_batch_size=1, snapshot_policy=SnapshotPolicy.Never())
    async with memory_cluster(3, config=config) as cluster:
        leader = await cluster.leader()
        pending = await write_cut_off(cluster, leader)
        new_leader = await cluster.leader(*others(leader))
        for number in range(20):
            await new_leader.client_write(Put(f"k{number}", b"v"))
        new_leader.trigger().snapshot()
        await new_leader.wait(5).metrics(lambda m: m.purged == m.last_applied, "everything purged")
        cluster.hub.heal()
        with pytest.raises(OutcomeUnknown, match="snapshot"):
            await pending
        assert cluster.raft(leader.id).machine.query(Get("k19")).value == b"v"


async def test_an_isolated_leader_refuses_writes_once_its_lease_is_over_then_steps_down() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.isolate(leader.id)
        await asyncio.sleep(0.65)
        with pytest.raises(QuorumNotEnough) as refused:
            await leader.client_write(Put("a", b"1"))
        assert refused.value.outcome == "not_applied"
        await leader.wait(5).metrics(lambda m: m.state is not ServerState.LEADER, "stepping down")
        with pytest.raises(QuorumNotEnough):
            await leader.write(Put("a", b"1"), timeout=2)
        with pytest.raises(QuorumNotEnough):
            await leader.read(Get("a"), timeout=2)
        assert await leader.read(Get("a"), ReadPolicy.STALE) is None
