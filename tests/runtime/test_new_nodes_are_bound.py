"""Whatever change adds a node, the leader asks which store it has: an unbound pristine node could never join."""

from __future__ import annotations

import pytest

from raftkit_core.errors import Unreachable
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.membership import AddNodes, ChangeMembers, Node, ReplaceAllNodes, SetNodes
from raftkit_core.types.operations import AddLearner

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize("kind", [AddNodes, SetNodes, ReplaceAllNodes])
async def test_a_node_added_by_any_change_is_bound_to_its_store_and_catches_up(kind: type) -> None:
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        added = await cluster.start("n2")
        nodes: dict[str, Node] = {"n2": cluster.address("n2")}
        if kind is ReplaceAllNodes:
            nodes |= leader.metrics().value.membership.membership.nodes
        change: ChangeMembers = kind(nodes)
        done = await leader.change_membership(change)
        assert done.membership is not None
        assert done.membership.nodes["n2"].store_id == added.store_id
        await cluster.applied(done.log_id.index, "n2")


@pytest.mark.parametrize("asked", ["n1", "n2"], ids=["the leader", "a follower"])
async def test_a_node_that_does_not_run_cannot_be_added_and_is_not_taken_for_a_missing_leader(asked: str) -> None:
    async with memory_cluster(2) as cluster:
        await cluster.leader("n1", "n2")
        address = cluster.address("n9")
        with pytest.raises(Unreachable, match=r"^n9 at memory:.* does not answer") as refused:
            await cluster.raft(asked).call(AddLearner("n9", address), timeout=2)
        assert refused.value.outcome == "not_applied"
        assert "raftkit node run --id n9" in str(refused.value.hint)
