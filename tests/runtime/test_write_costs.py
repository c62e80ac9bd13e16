"""What a write costs in things that can be counted: turns of the loop, frames, storage writes, engine calls.

Nothing here measures time. A change that adds a turn, or takes a batch apart, fails here rather than in a benchmark.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from raftkit_core import Raft
from raftkit_core.engine.engine import Engine
from raftkit_core.runtime.command_runner import APPLY_SECONDS
from raftkit_core.storage.memory import MemoryLogStorage
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time


async def settled(cluster: MemoryCluster) -> None:
    """Everybody has everything, and no probe, no commit notice is under way."""
    leader = await cluster.leader()
    await leader.client_write(Put("warm", b"v"))
    await asyncio.sleep(0.05)
    cluster.hub.counts.clear()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often storages wrote entries, and engines were given writes or appends."""
    counts: Counter[str] = Counter()

    def count(owner: type, name: str, what: str, when: Any = lambda *arguments: True) -> None:
        original = getattr(owner, name)

        def call(self: Any, *arguments: Any) -> Any:
            if when(*arguments):
                counts[what] += 1
            return original(self, *arguments)

        monkeypatch.setattr(owner, name, call)

    count(MemoryLogStorage, "write", "storage writes", lambda batch: bool(batch.entries))
    count(Engine, "handle_client_write", "proposals")
    count(Engine, "handle_append_entries", "appends taken", lambda request, *_: bool(request.entries))
    return counts


async def test_a_lone_write_is_answered_in_the_third_turn_of_the_loop() -> None:
    """Proposed in the first; taken, answered by the peers and committed in the second."""
    async with memory_cluster(3) as cluster:
        await settled(cluster)
        leader = await cluster.leader()
        written = leader.client_write_ff(Put("k", b"v"))
        turns = 0
        while not written.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns <= 3


async def test_writes_of_one_turn_cost_one_of_everything(counted: Counter[str]) -> None:
    async with memory_cluster(3) as cluster:
        await settled(cluster)
        leader = await cluster.leader()
        counted.clear()
        await asyncio.gather(*(leader.client_write(Put(f"k{number}", b"v")) for number in range(100)))
        await asyncio.sleep(0.05)
        assert counted == {"proposals": 1, "storage writes": 3, "appends taken": 2}
        assert cluster.hub.counts["append_entries"] == 2


async def test_a_client_that_writes_on_causes_no_commit_notices(counted: Counter[str]) -> None:
    """Each append says what is committed: nothing else has to."""
    async with memory_cluster(3) as cluster:
        await settled(cluster)
        leader = await cluster.leader()
        counted.clear()
        for number in range(20):
            await leader.client_write(Put(f"k{number}", b"v"))
        assert counted == {"proposals": 20, "storage writes": 60, "appends taken": 40}
        assert cluster.hub.counts["append_entries"] == 40
        assert cluster.hub.counts["heartbeat"] == 0
        await asyncio.sleep(0.01)
        assert cluster.hub.counts["heartbeat"] == 2, "the last commit is told"


def followers_of(cluster: MemoryCluster, leader: Raft) -> list[Raft]:
    return [raft for raft in cluster.rafts.values() if raft is not leader]


async def test_a_follower_answers_every_append_and_applies_several_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader waits for the one, nobody for the other: it costs as much for one write as for many."""
    async with memory_cluster(3) as cluster:
        await settled(cluster)
        leader = await cluster.leader()
        follower = followers_of(cluster, leader)[0]
        seen: list[str] = []
        waiting, machine = follower._core.waiting, follower.machine
        respond, apply = waiting.respond, machine.apply

        def answered(*arguments: Any) -> None:
            seen.append("answer")
            respond(*arguments)

        def applied(batch: Any) -> Any:
            seen.append(f"apply {len(batch.entries)}")
            return apply(batch)

        monkeypatch.setattr(waiting, "respond", answered)
        monkeypatch.setattr(machine, "apply", applied)
        for number in range(5):
            await leader.client_write(Put("k", b"%d" % number))
        assert seen == ["answer"] * 5
        await asyncio.sleep(2 * APPLY_SECONDS)
        assert seen[:6] == [*["answer"] * 5, "apply 4"], "the fifth was not known to be committed yet"


async def test_who_waits_for_what_is_applied_does_not_wait_for_more_to_come() -> None:
    async with memory_cluster(3) as cluster:
        await settled(cluster)
        leader = await cluster.leader()
        follower = followers_of(cluster, leader)[0]
        for number in range(2):
            written = await leader.client_write(Put("k", b"%d" % number))
        worker, loop = follower._core.worker, asyncio.get_running_loop()
        assert worker.applied_index < written.log_id.index - 1, "committed here, and not applied"
        before = loop.time()
        await worker.wait_applied(written.log_id.index - 1)
        assert loop.time() == before
        later = asyncio.create_task(worker.wait_applied(written.log_id.index + 1))
        await asyncio.sleep(0)
        await leader.client_write(Put("k", b"2"))
        await leader.client_write(Put("k", b"3"))  # says that the one before is committed
        await later
        assert loop.time() - before < APPLY_SECONDS


async def test_a_leader_applies_at_once_also_where_no_writer_waits() -> None:
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        assert leader._core.worker.applied == leader._core.engine.state.committed
