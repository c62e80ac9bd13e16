"""Scenarios of membership changes that grow, shrink and mix with writes (openraft.md §3.1 membership)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from three_nodes import last_index

from raftkit_core.config import Config
from raftkit_core.errors import RaftError
from raftkit_core.raft import Raft
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.entry import MEMBERSHIP, Entry, encode_membership
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import (
    Membership,
    RemoveNodes,
    SetNodes,
)
from raftkit_core.types.vote import ZERO_LEADER_ID

pytestmark = pytest.mark.virtual_time


async def write_many(raft: Raft, count: int, tag: str = "k") -> int:
    written = await raft.client_write_many([Put(f"{tag}{number}", b"v") for number in range(count)], timeout=30)
    failed = [result for result in written if isinstance(result, BaseException)]
    assert not failed, failed
    return last_index(raft)


async def test_a_single_node_takes_a_thousand_writes_and_holds_them() -> None:
    async with memory_cluster(1) as cluster:
        raft = cluster.raft("n1")
        last = await write_many(raft, 1000)
        metrics = raft.metrics().value
        assert (metrics.current_term, metrics.applied_index, last) == (1, last, 1001)
        assert cluster.disk("n1").vote == metrics.vote
        assert [entry.index for entry in cluster.log("n1")] == list(range(1002))
        assert (await raft.read(Get("k999"))).value == b"v"


async def test_setting_nodes_adds_an_unknown_one_as_a_learner() -> None:
    async with memory_cluster(1, ["n2"]) as cluster:
        await cluster.start("n4")
        leader = cluster.raft("n1")
        known = leader.metrics().value.membership.membership.nodes["n2"]
        await leader.change_membership(SetNodes({"n2": known, **cluster.members("n4")}))
        assert leader.metrics().value.membership.membership.learner_ids == ("n2", "n4")


async def test_a_learner_added_during_a_write_gets_it() -> None:
    async with memory_cluster(1, ["n2", "n3"]) as cluster:
        leader = cluster.raft("n1")
        await leader.change_membership(["n1", "n2", "n3"])
        await cluster.start("n4")
        await asyncio.gather(leader.client_write(Put("a", b"1")), leader.add_learner("n4", cluster.address("n4")))
        await cluster.applied(last_index(leader))
        for raft in cluster.rafts.values():
            assert raft.machine.query(Get("a")).value == b"1"
            assert raft.metrics().value.membership.membership.learner_ids == ("n4",)


async def test_after_a_change_every_member_calls_the_last_entry_both_committed_and_effective() -> None:
    async with memory_cluster(3, ["n4", "n5"]) as cluster:
        leader = await cluster.leader()
        everybody = ("n1", "n2", "n3", "n4", "n5")
        done = await leader.change_membership(everybody)
        await cluster.applied(done.log_id.index)
        for raft in cluster.rafts.values():
            metrics = await raft.wait(2).metrics(lambda m: m.committed == done.log_id, "the commit")
            assert metrics.membership == metrics.committed_membership
            assert (metrics.membership.log_id, metrics.membership.membership.voter_ids) == (done.log_id, everybody)


@pytest.mark.parametrize("count", [100, 500])
async def test_a_learner_that_caught_up_becomes_a_voter_without_starting_over(count: int) -> None:
    async with memory_cluster(1, config=Config(replication_lag_threshold=0)) as cluster:
        leader = cluster.raft("n1")
        await write_many(leader, count)
        await cluster.start("n2")
        await leader.add_learner("n2", cluster.address("n2"))
        before = (leader.metrics().value.replication or {})["n2"].matching
        done = await leader.change_membership(["n1", "n2"])
        after = (leader.metrics().value.replication or {})["n2"].matching
        assert index_of(before) <= index_of(after)
        await cluster.applied(done.log_id.index)
        assert cluster.log("n1") == cluster.log("n2")


async def test_a_joint_entry_to_isolated_voters_does_not_commit_and_the_change_before_it_stands() -> None:
    async with memory_cluster(5) as cluster:
        leader = await cluster.leader()
        kept = [leader.id, *[node_id for node_id in cluster.rafts if node_id != leader.id][:2]]
        gone = [node_id for node_id in cluster.rafts if node_id not in kept]
        for node_id in gone:
            cluster.hub.isolate(node_id)
        done = await leader.change_membership(kept, retain=True)
        assert done.membership is not None
        assert done.membership.configs == (tuple(sorted(kept)),)
        pending = await outcome(leader.change_membership([kept[2], *gone], force=True, timeout=0.4))
        assert isinstance(pending, RaftError)
        assert leader.metrics().value.committed == done.log_id
        assert leader.metrics().value.membership.membership.is_joint


async def test_two_voters_replaced_at_once_get_no_later_writes() -> None:
    async with memory_cluster(3, ["n4", "n5"]) as cluster:
        leader = await cluster.leader()
        removed = [node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id]
        done = await leader.change_membership([leader.id, "n4", "n5"])
        assert any(
            entry.kind == MEMBERSHIP and entry.index == done.log_id.index - 1
            for node_id in removed
            for entry in cluster.log(node_id)
        ), "a quorum of the old voters took the joint entry"
        await asyncio.sleep(3)
        last = await write_many(leader, 100)
        await cluster.applied(last, leader.id, "n4", "n5")
        assert all(cluster.log(node_id)[-1].index < last - 50 for node_id in removed)


async def test_a_learner_is_added_over_a_slow_network_one_entry_at_a_time() -> None:
    async with memory_cluster(1, config=Config(max_payload_entries=1)) as cluster:
        await cluster.start("n2")
        leader = cluster.raft("n1")
        cluster.hub.latency = 0.1
        last = await write_many(leader, 10)
        await leader.add_learner("n2", cluster.address("n2"))
        await cluster.applied(last)


async def test_writes_and_changes_survive_a_network_with_uneven_delays() -> None:
    async with memory_cluster(1) as cluster:
        leader = cluster.raft("n1")
        calls = 0

        def uneven(*_: object) -> float:
            nonlocal calls
            calls += 1
            return (calls * 7 % 11) / 200

        cluster.hub.pre_hook = uneven
        for node_id in ("n2", "n3"):
            await cluster.start(node_id)
            await leader.add_learner(node_id, cluster.address(node_id))
        await leader.client_write(Put("a", b"1"), timeout=20)
        await leader.change_membership(["n1", "n2", "n3"])
        done = await leader.client_write(Put("b", b"2"), timeout=20)
        await cluster.applied(done.log_id.index)
        assert len({str(cluster.log(node_id)) for node_id in ("n1", "n2", "n3")}) == 1


async def test_a_joint_configuration_found_at_the_start_stays_until_somebody_repeats_the_change() -> None:
    async with memory_cluster(1, ["n2"]) as cluster:
        joint = Membership.of([["n1"], ["n1", "n2"]], cluster.raft("n1").metrics().value.membership.membership.nodes)
        await cluster.applied(last_index(cluster.raft("n1")))
        for node_id in ("n1", "n2"):
            await cluster.kill(node_id)
            disk = cluster.disk(node_id)
            at = LogId(disk.entries[-1].log_id.leader_id, disk.entries[-1].index + 1)
            assert at.leader_id != ZERO_LEADER_ID
            disk.entries.append(Entry(at, disk.entries[-1].time_ms, MEMBERSHIP, encode_membership(joint)))
        for node_id in ("n1", "n2"):
            await cluster.start(node_id)
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        await asyncio.sleep(3)
        assert leader.metrics().value.membership.membership.configs == joint.configs
        await leader.change_membership(["n1", "n2"])
        assert leader.metrics().value.membership.membership.configs == (("n1", "n2"),)


async def test_a_wiped_learner_is_taken_back_only_as_a_new_one_and_the_leader_leads_on() -> None:
    async with memory_cluster(3, ["n4"]) as cluster:
        leader = await cluster.leader()
        await write_many(leader, 10)
        await cluster.kill("n4")
        cluster.wipe("n4")
        await cluster.start("n4")
        await write_many(leader, 10, "more")
        await asyncio.sleep(1)
        assert cluster.raft("n4").metrics().value.last_log_id is None, "it is not the store the membership names"
        await leader.change_membership(RemoveNodes(("n4",)))
        await leader.add_learner("n4", cluster.address("n4"))
        last = await write_many(leader, 10, "late")
        await cluster.applied(last)
        assert (await cluster.leader()).id == leader.id
        assert leader.metrics().value.current_term == 1


async def test_the_machine_s_snapshot_carries_the_last_applied_membership() -> None:
    async with memory_cluster(3, ["n4", "n5"]) as cluster:
        leader = await cluster.leader()
        await cluster.applied(last_index(leader))
        for raft in cluster.rafts.values():
            raft.trigger().snapshot()
            await raft.wait(5).metrics(lambda m: m.snapshot is not None, "a snapshot")
            held = await raft.get_snapshot()
            assert held is not None
            assert held.meta.membership == raft.metrics().value.committed_membership
            assert held.meta.membership.membership.learner_ids == ("n4", "n5")
            await held.close()


async def test_applied_indexes_only_ever_grow() -> None:
    seen: list[int] = []
    written: list[int] = []

    class Recording(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            seen.append(batch.last_log_id.index)
            written.extend(entry.log_id.index for entry in batch.entries)
            return super().apply(batch)

    async with memory_cluster(1, machine=Recording) as cluster:
        for round_ in range(10):
            await write_many(cluster.raft("n1"), 1000, f"{round_}/")
    assert len(written) == 10_000
    assert written == sorted(set(written))
    assert seen == sorted(set(seen))
