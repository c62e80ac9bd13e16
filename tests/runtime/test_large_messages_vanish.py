"""N17: a path that lets small messages pass and swallows large ones costs lag, not the peer."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.config import Config
from raftkit_core.network.disturbances import DROP
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time


async def test_a_follower_behind_a_path_that_swallows_large_appends_catches_up_in_small_ones() -> None:
    async with memory_cluster(3, config=Config()) as cluster:
        leader = await cluster.leader()
        behind = next(name for name in cluster.rafts if name != leader.id)
        sizes: list[int] = []

        def swallow(_src: str, dst: str, kind: str, message: object) -> str | None:
            entries = getattr(message, "entries", None)
            if dst != behind or not entries:
                return None
            sizes.append(len(entries))
            return DROP if len(entries) > 4 else None

        cluster.hub.pre_hook = lambda _src, dst, kind, _message: (
            DROP if dst == behind and kind == "append_entries" else None
        )
        await asyncio.gather(*(leader.write(Put(f"k{number}", b"x")) for number in range(200)))
        last = leader.metrics().value.last_log_index
        cluster.hub.pre_hook = swallow  # type: ignore[assignment]
        await asyncio.wait_for(cluster.applied(last or 0, behind), 60)
        assert max(sizes) > 4 >= min(sizes)
        assert leader.metrics().value.current_leader == leader.id
