"""Writes that depend on the leader, the log or the membership, and waiting for what a restart found."""

from __future__ import annotations

import pytest

from raftkit_core.errors import ConditionFailed, WaitTimeout
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.kv import Get, Put

pytestmark = pytest.mark.virtual_time


async def test_a_write_that_depends_on_the_log_s_end_enters_it_only_there() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        seen = leader.metrics().value
        condition = WriteCondition(
            leader_id=seen.vote.leader_id, last_log_id=seen.last_log_id, membership_log_id=seen.membership.log_id
        )
        first = await leader.client_write(Put("a", b"1"), condition=condition)
        with pytest.raises(ConditionFailed) as refused:
            await leader.client_write(Put("a", b"2"), condition=condition)
        assert refused.value.outcome == "not_applied"
        assert leader.metrics().value.last_log_id == first.log_id
        assert (await leader.read(Get("a"))).value == b"1"


async def test_a_condition_is_judged_before_neighbours_of_the_same_turn() -> None:
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        condition = WriteCondition(last_log_id=leader.metrics().value.last_log_id)
        plain = leader.client_write_ff(Put("a", b"1"))
        conditional = leader.client_write_ff(Put("a", b"2"), condition=condition)
        await plain
        with pytest.raises(ConditionFailed):
            await conditional


async def test_a_write_of_an_earlier_leadership_is_refused_by_the_next() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        condition = WriteCondition(leader_id=leader.metrics().value.vote.leader_id)
        target = next(raft for raft in cluster.rafts.values() if raft is not leader)
        await leader.transfer_leader(target.id)
        with pytest.raises(ConditionFailed):
            await target.client_write(Put("a", b"1"), condition=condition)


async def test_recovery_is_over_when_the_log_that_was_found_is_committed() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        written = await leader.client_write(Put("a", b"1"))
        for node_id in list(cluster.rafts):
            await cluster.stop(node_id)
        alone = await cluster.restart("n1")
        if alone.metrics().value.committed is None:
            with pytest.raises(WaitTimeout):
                await alone.wait_for_recovery(3)
        await cluster.restart("n2")
        committed = await alone.wait_for_recovery(20)
        assert committed is not None
        assert committed.index >= written.log_id.index
