"""A store that went back behind what it had acknowledged is told so by the leader, and retires itself for good."""

from __future__ import annotations

import copy

import pytest

from raftkit_core.errors import LogReversion, NeedsRejoin
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time


async def test_a_rolled_back_follower_retires_and_is_never_opened_again() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        victim = next(node_id for node_id in cluster.rafts if node_id != leader.id)
        await leader.client_write(Put("a", b"1"))
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        image = {name: copy.copy(value) for name, value in vars(cluster.disk(victim)).items()}
        for number in range(20):
            await leader.client_write(Put(f"k{number}", b"v"))
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        await cluster.kill(victim)
        for name, value in image.items():
            if name not in ("holder", "opened_by"):
                setattr(cluster.disk(victim), name, value)
        cluster.disk(victim).crash()
        reverted = await cluster.restart(victim)
        await cluster.eventually(lambda: reverted.fatal is not None, "the rolled back store to stop")
        assert isinstance(reverted.fatal, LogReversion)
        assert "rejoin" in (reverted.fatal.hint or "")
        await cluster.kill(victim)
        with pytest.raises(NeedsRejoin, match="retired"):
            await cluster.restart(victim)
        assert (await leader.client_write(Put("b", b"2"))).log_id.index > 20
