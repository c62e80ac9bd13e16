"""Whatever change adds a node, the leader asks which store it has: an unbound pristine node could never join."""

from __future__ import annotations

import pytest

from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.membership import AddNodes, ChangeMembers, Node, ReplaceAllNodes, SetNodes

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
