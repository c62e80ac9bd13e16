"""What simulation has found in the product, made small."""

from __future__ import annotations

from typing import Any

import pytest

from raftkit_core.network.reply import Reply
from raftkit_core.testing import Simulation
from raftkit_core.types.messages import AppendEntriesRequest, Busy

pytestmark = pytest.mark.virtual_time


async def test_a_follower_that_was_busy_once_is_asked_again_without_a_new_write() -> None:
    """Runtime seed 7035 of profile ``disk``: the answer to a probe was ``Busy``, and the leader waited for it for
    ever."""
    async with Simulation(seed=1, nodes=3) as sim:
        leader = await sim.settle()
        follower = next(node for node in sim.ids if node != leader)
        raft = sim.raft(follower)
        take = raft._service.append_entries
        refused: list[AppendEntriesRequest] = []

        def busy_once(request: AppendEntriesRequest, peer: Any) -> Any:
            if refused or not request.entries:
                return take(request, peer)
            refused.append(request)
            answer: Reply[Any] = Reply()
            answer.set_result(Busy(raft.store_id))
            return answer

        raft._service.append_entries = busy_once  # type: ignore[method-assign]
        await sim.client().put("a", "1", node=leader)
        assert refused
        await sim.settle(timeout=5)
        assert sim.raft(follower).metrics().value.last_applied == sim.raft(leader).metrics().value.last_applied
        sim.check()
