"""``Raft.watch`` over whole nodes: in order and without gaps, whoever leads, whatever is restarted or installed."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import Compacted, RaftError, Stopped
from raftkit_core.raft import Raft
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.types.kv import Delete, KvEvent, Put

pytestmark = pytest.mark.virtual_time

EAGER = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)


async def collect(raft: Raft, into: list[KvEvent], prefix: str = "", from_revision: int | None = 1) -> RaftError:
    """Watch to the end; gives what ended it."""
    try:
        async for event in raft.watch(prefix, from_revision):
            into.append(event)
    except RaftError as error:
        return error
    raise AssertionError("a watch ends by an exception only")


async def write(cluster: MemoryCluster, count: int, tag: str = "k") -> int:
    """Through any node, whoever leads."""
    index = 0
    for number in range(count):
        raft = next(iter(cluster.rafts.values()))
        index = (await raft.write(Put(f"{tag}/{number}", b"v"), timeout=20)).log_id.index
    return index


async def test_every_node_gives_the_same_events_in_log_order() -> None:
    async with memory_cluster(3) as cluster:
        seen: dict[str, list[KvEvent]] = {node_id: [] for node_id in cluster.rafts}
        watching = [asyncio.ensure_future(collect(cluster.raft(node_id), seen[node_id])) for node_id in seen]
        await write(cluster, 50)
        index = (await cluster.raft("n1").write(Delete("k/7"))).log_id.index
        await cluster.applied(index)
        await asyncio.sleep(0.1)
        assert seen["n1"] == seen["n2"] == seen["n3"]
        assert [event.key for event in seen["n1"]] == [*(f"k/{number}" for number in range(50)), "k/7"]
        assert [event.revision for event in seen["n1"]] == sorted(event.revision for event in seen["n1"])
        assert seen["n1"][-1].value is None
        assert seen["n1"][-1].previous_revision == seen["n1"][7].revision
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def test_no_gap_and_no_repetition_when_the_leader_is_killed() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
        seen: list[KvEvent] = []
        watching = asyncio.ensure_future(collect(follower, seen, "k/"))
        await write(cluster, 20, "k/a")
        await cluster.kill(leader.id)
        await cluster.leader()
        index = await write(cluster, 20, "k/b")
        await cluster.applied(index)
        await asyncio.sleep(0.1)
        wanted = [f"k/{tag}/{number}" for tag in "ab" for number in range(20)]
        assert list(dict.fromkeys(event.key for event in seen)) == wanted
        assert len({event.revision for event in seen}) == len(seen)
        await cluster.stop(follower.id)
        assert isinstance(await watching, Stopped)


async def test_a_follower_that_gets_a_snapshot_ends_its_watch_and_another_node_continues_it() -> None:
    async with memory_cluster(3, config=EAGER) as cluster:
        leader = await cluster.leader()
        behind = next(node_id for node_id in cluster.rafts if node_id != leader.id)
        seen: list[KvEvent] = []
        watching = asyncio.ensure_future(collect(cluster.raft(behind), seen))
        await cluster.applied(await write(cluster, 5, "a"))
        await asyncio.sleep(0.1)
        cluster.hub.isolate(behind)
        index = 0
        for number in range(5):
            index = (await leader.client_write(Put(f"b/{number}", b"v"))).log_id.index
        leader.trigger().snapshot()
        await leader.wait(10).metrics(lambda m: m.purged is not None and m.purged.index >= index - 1, "a purge")
        cluster.hub.heal()
        ended = await watching
        assert isinstance(ended, Compacted)
        assert ended.oldest == index + 1
        assert [event.key for event in seen] == [f"a/{number}" for number in range(5)]
        rest: list[KvEvent] = []
        going_on = asyncio.ensure_future(collect(leader, rest, "", seen[-1].revision + 1))
        await asyncio.sleep(0.1)
        assert [event.key for event in rest] == [f"b/{number}" for number in range(5)]
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)


async def test_after_a_restart_the_ring_holds_what_was_replayed() -> None:
    async with memory_cluster(1, config=EAGER) as cluster:
        raft = cluster.raft("n1")
        await write(cluster, 5, "a")
        raft.trigger().snapshot()
        await raft.wait(10).metrics(lambda m: m.snapshot == m.last_applied, "a snapshot")
        in_snapshot = raft.metrics().value.applied_index or 0
        await write(cluster, 5, "b")
        raft = await cluster.restart("n1")
        await cluster.leader()
        with pytest.raises(Compacted) as caught:
            raft.watch("", in_snapshot)
        assert caught.value.oldest == in_snapshot + 1
        await write(cluster, 1, "c")
        events = [event async for event in take(raft, 6, in_snapshot + 1)]
        assert [event.key for event in events] == [*(f"b/{number}" for number in range(5)), "c/0"]


async def take(raft: Raft, count: int, from_revision: int):  # type: ignore[no-untyped-def]
    watch = raft.watch("", from_revision)
    for _ in range(count):
        yield await anext(watch)
