"""Scenarios of writes, metrics and replication limits (openraft.md §3.1 client_api, metrics, replication)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from three_nodes import ALL, others, six_writers

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import ChangeMembershipError, PayloadTooLarge, Stopped, StorageError
from raftkit_core.network.disturbances import DROP
from raftkit_core.storage.memory import MemoryLogStorage
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.condition import WriteCondition
from raftkit_core.types.entry import Entry
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.membership import AddVoters
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time


async def test_writers_end_with_equal_snapshots_near_the_policy_s_index() -> None:
    config = Config(snapshot_policy=SnapshotPolicy.LogsSinceLast(500), enable_elect=False)
    async with memory_cluster(3, config=config) as cluster:
        leader = await cluster.leader()
        await six_writers(leader)
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        for node_id in ALL:
            metrics = await cluster.raft(node_id).wait(2).metrics(lambda m: m.snapshot is not None, "a snapshot")
            assert metrics.snapshot is not None
            assert 499 <= metrics.snapshot.index <= 601


async def test_a_result_of_write_and_forget_is_the_one_of_its_own_entry() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        first = leader.client_write_ff(Put("a", b"1"))
        second = leader.client_write_ff(Put("a", b"2"))
        assert (await second).log_id.index == (await first).log_id.index + 1
        assert ((await first).data.changed, (await second).data.changed) == (True, True)
        assert (await leader.read(Get("a"))).value == b"2"


async def test_the_engine_s_state_can_be_looked_at_until_the_node_stops() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        written = await raft.client_write(Put("a", b"1"))
        assert await raft.with_raft_state(lambda state: state.committed) == written.log_id
        assert await raft.external_request(lambda engine, now: engine.is_leader)
        await raft.shutdown()
        with pytest.raises(Stopped):
            await raft.with_raft_state(lambda state: state.committed)


async def test_after_an_orderly_stop_every_disk_knows_what_was_committed() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        last = None
        for number in range(10):
            last = (await leader.client_write(Put(f"k{number}", b"v"))).log_id
        assert last is not None
        await cluster.applied(last.index)
        for node_id in others(leader):
            await cluster.stop(node_id)
            assert cluster.disk(node_id).committed == last
        await cluster.stop(leader.id)
        assert cluster.disk(leader.id).committed == last


async def test_a_single_voter_s_last_quorum_answer_is_always_now() -> None:
    async with memory_cluster(1) as cluster:
        for _ in range(3):
            assert cluster.raft("n1").metrics().value.millis_since_quorum_ack == 0
            await asyncio.sleep(0.5)


async def test_without_followers_the_last_quorum_answer_gets_ever_older() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        await asyncio.sleep(0.3)
        for node_id in others(leader):
            await cluster.kill(node_id)
        await asyncio.sleep(0.45)
        leader.trigger().heartbeat()
        await asyncio.sleep(0.05)
        age = leader.metrics().value.millis_since_quorum_ack
        assert age is not None
        assert age >= 400


async def test_what_the_metrics_call_purged_is_purged_on_the_disk() -> None:
    config = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)
    async with memory_cluster(1, config=config) as cluster:
        raft = cluster.raft("n1")
        last = (await raft.client_write(Put("a", b"1"))).log_id
        raft.trigger().snapshot()
        await raft.wait(5).purged(last)
        assert cluster.disk("n1").last_purged == last
        assert cluster.log("n1") == []


async def test_only_as_many_entries_commit_as_the_network_lets_through() -> None:
    async with memory_cluster(2, config=Config(max_payload_entries=1, enable_elect=False)) as cluster:
        leader = await cluster.leader()
        base = leader.metrics().value.last_log_index or 0
        await cluster.applied(base)
        limit = base + 2

        def quota(_src: NodeId, _dst: NodeId, kind: str, message: Any) -> str | None:
            entries: list[Entry] = message.entries if kind == "append_entries" else []
            return DROP if entries and entries[-1].index > limit else None

        cluster.hub.pre_hook = quota
        pending = [leader.client_write_ff(Put(f"k{number}", b"v"), timeout=60) for number in range(5)]
        for _ in range(2):
            await asyncio.sleep(3)
            assert leader.metrics().value.applied_index == limit
            assert [write.done() for write in pending].count(True) == limit - base
            limit += 1
        cluster.hub.pre_hook = None
        await asyncio.gather(*pending)


async def test_a_peer_that_takes_few_entries_at_once_gets_no_more_than_it_said() -> None:
    async with memory_cluster(1) as cluster:
        leader = cluster.raft("n1")
        for number in range(12):
            await leader.client_write(Put(f"k{number}", b"v"))
        sizes: list[int] = []
        refused = 0

        def one_at_a_time(_src: NodeId, dst: NodeId, kind: str, message: Any) -> None:
            nonlocal refused
            if kind != "append_entries" or dst != "n2":
                return
            if len(message.entries) > 1:
                refused += 1
                raise PayloadTooLarge(f"{len(message.entries)} entries are too many", entries_hint=1)
            sizes.append(len(message.entries))

        cluster.hub.pre_hook = one_at_a_time
        await cluster.start("n2")
        await leader.add_learner("n2", cluster.address("n2"))
        await cluster.applied(leader.metrics().value.last_log_index or 0, timeout=3)
        assert sizes.count(1) == 15
        assert refused <= 4, "a hint is remembered for a while"


async def test_a_storage_that_cannot_be_read_for_a_peer_stops_the_node_by_name() -> None:
    broken = False

    class Unreadable(MemoryLogStorage):
        async def read(self, *args: Any, **kwargs: Any) -> list[Entry]:
            if broken:
                raise StorageError("the disk cannot be read")
            return await super().read(*args, **kwargs)

    async with memory_cluster(1, storage=Unreadable) as cluster:
        for number in range(30):
            await cluster.raft("n1").client_write(Put(f"k{number}", b"v"))
        leader = await cluster.restart("n1")  # its entries are no longer in memory
        await leader.wait(5).applied_index_at_least(32)
        broken = True
        await cluster.start("n2")
        await outcome(leader.add_learner("n2", cluster.address("n2"), timeout=5))
        assert leader.fatal is not None
        assert "cannot be read" in str(leader.fatal)


async def test_an_uninitialized_node_told_to_add_voters_names_no_leader() -> None:
    async with memory_cluster(1, initialize=False) as cluster:
        refused = await outcome(cluster.raft("n1").change_membership(AddVoters(cluster.members("n2"))))
        assert refused.code == "FORWARD_TO_LEADER"
        assert refused.leader is None
        assert cluster.raft("n1").metrics().value.state is ServerState.LEARNER
        assert not isinstance(refused, ChangeMembershipError)


async def test_a_condition_on_the_membership_refuses_a_write_after_a_change_of_it() -> None:
    async with memory_cluster(1, ["n2"]) as cluster:
        leader = cluster.raft("n1")
        seen = WriteCondition(membership_log_id=leader.metrics().value.membership.log_id)
        await leader.client_write(Put("a", b"1"), condition=seen)
        await leader.change_membership(["n1", "n2"])
        assert (await outcome(leader.client_write(Put("a", b"2"), condition=seen))).code == "CONDITION_FAILED"
