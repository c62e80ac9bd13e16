"""Membership planning as one call: restartable, and it says what it does next."""

from __future__ import annotations

import pytest

from raftkit_core.testing.cluster import memory_cluster

pytestmark = pytest.mark.virtual_time


async def test_set_members_adds_changes_and_removes_and_tells_every_step() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await cluster.start("n4")
        leaving = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        goal = {node_id: cluster.address(node_id) for node_id in ("n1", "n2", "n3", "n4") if node_id != leaving}
        steps: list[str] = []
        done = await leader.set_members(goal, on_step=steps.append)
        assert done.membership is not None
        assert done.membership.configs == (tuple(sorted(goal)),)
        assert leaving not in done.membership.nodes
        assert steps == [
            "add n4 as a learner and let it catch up",
            f"change the voters to {', '.join(sorted(goal))}",
            "leave the joint configuration",
            "done",
        ]
        again: list[str] = []
        repeated = await leader.set_members(goal, on_step=again.append)
        assert repeated.membership == done.membership
        assert again == [f"change the voters to {', '.join(sorted(goal))}", "done"]
