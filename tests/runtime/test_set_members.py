"""Membership planning as one call: restartable, and it says what it does next."""

from __future__ import annotations

import pytest

from raftkit_core.errors import ChangeMembershipError, ForwardToLeader
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.membership import Node, SetNodes

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


async def test_another_address_of_a_member_is_refused_before_anything_is_changed() -> None:
    """It would not be taken: the plan adds and removes, and says so rather than leaving the caller in the belief."""
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await cluster.start("n4")
        goal = cluster.members("n1", "n2", "n3", "n4")
        steps: list[str] = []
        moved = Node(goal["n2"].peer, client="http://127.0.0.1:9")
        for other in (Node(f"memory:{cluster.name}/n5"), moved):
            with pytest.raises(ChangeMembershipError, match=r"the member n2 is at .*, not at"):
                await leader.set_members({**goal, "n2": other}, on_step=steps.append)
        assert steps == []
        assert "n4" not in leader.metrics().value.membership.membership.nodes
        follower = next(raft for node_id, raft in cluster.rafts.items() if node_id not in (leader.id, "n4"))
        with pytest.raises(ForwardToLeader):
            await follower.set_members({**goal, "n2": moved})
        await leader.change_membership(SetNodes({"n2": moved}))
        for again in (moved, goal["n2"]):
            done = await leader.set_members({**goal, "n2": again})
            assert done.membership is not None
            assert done.membership.nodes["n2"].client == moved.client
