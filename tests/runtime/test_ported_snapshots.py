"""Scenarios of snapshots that replace logs and memberships (openraft.md §3.1 snapshot_building, snapshot_streaming)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import StoreLostWrites
from raftkit_core.raft import Raft
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.entry import BLANK, MEMBERSHIP, Entry, encode_membership
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import AppendEntriesRequest, Success
from raftkit_core.types.snapshot import SnapshotMeta

pytestmark = pytest.mark.virtual_time

KEEP_TWO = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=2, purge_batch_size=1)
KEEP_NONE = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)


async def write(raft: Raft, count: int, tag: str = "k") -> LogId:
    written = await raft.client_write_many([Put(f"{tag}{number}", b"v") for number in range(count)])
    last = written[-1]
    assert not isinstance(last, BaseException)
    return last.log_id


async def snapshot(raft: Raft, at: LogId) -> None:
    raft.trigger().snapshot()
    await raft.wait(10).snapshot(at)


@pytest.mark.parametrize("chunk_bytes", [10, 1024 * 1024])
async def test_a_new_node_gets_a_snapshot_in_chunks_of_any_size_and_then_the_log(chunk_bytes: int) -> None:
    config = Config(
        snapshot_policy=SnapshotPolicy.LogsSinceLast(20),
        max_in_snapshot_log_to_keep=0,
        purge_batch_size=1,
        snapshot_chunk_bytes=chunk_bytes,
    )
    async with memory_cluster(1, config=config) as cluster:
        leader = cluster.raft("n1")
        for number in range(30):
            await leader.client_write(Put(f"k{number}", b"v"))
        await leader.wait(5).metrics(lambda m: m.purged is not None and m.purged == m.snapshot, "a purge")
        at = leader.metrics().value.snapshot
        await cluster.start("n2")
        await leader.add_learner("n2", cluster.address("n2"))
        last = (await leader.client_write(Put("more", b"v"))).log_id
        await cluster.applied(last.index)
        node = cluster.raft("n2").metrics().value
        assert node.purged == at
        assert len(cluster.log("n2")) == last.index - index_of(at)
        assert cluster.raft("n2").machine.digest() == leader.machine.digest()


async def test_an_append_below_what_is_applied_and_purged_succeeds() -> None:
    async with memory_cluster(1, ["n2"], config=KEEP_TWO) as cluster:
        leader = cluster.raft("n1")
        first = cluster.log("n1")[1].log_id
        last = await write(leader, 20)
        await cluster.applied(last.index)
        await snapshot(cluster.raft("n2"), last)
        await cluster.raft("n2").wait(5).metrics(lambda m: m.purged is not None, "a purge")
        again = AppendEntriesRequest(leader.metrics().value.vote, first, [], None, 500)
        answer = await cluster.raft("n2").append_entries(again, PeerIdentity("n1", leader.store_id))
        assert isinstance(answer, Success)


async def test_two_entries_are_kept_behind_a_snapshot_and_an_isolated_learner_gets_the_second_one() -> None:
    async with memory_cluster(1, ["n2"], config=KEEP_TWO) as cluster:
        leader = cluster.raft("n1")
        for round_ in range(2):
            last = await write(leader, 10, f"{round_}/")
            await snapshot(leader, last)
            await leader.wait(5).purged(LogId(last.leader_id, last.index - 2))
            assert [entry.index for entry in cluster.log("n1")] == [last.index - 1, last.index]
            cluster.hub.isolate("n2")
        cluster.hub.heal()
        await cluster.applied(last.index)
        await cluster.raft("n2").wait(2).snapshot(last)
        assert cluster.log("n2") == []
        more = await write(leader, 1, "more")
        await cluster.applied(more.index)
        assert [entry.index for entry in cluster.log("n2")] == [more.index]


async def test_a_snapshot_s_membership_replaces_a_foreign_one_in_the_log() -> None:
    async with memory_cluster(1, ["n2"], config=KEEP_NONE) as cluster:
        leader = cluster.raft("n1")
        members = leader.metrics().value.membership.membership
        last = await write(leader, 10)
        await cluster.applied(last.index)
        cluster.hub.isolate("n2")
        foreign = Membership.of([["n1", "n2", "n3"]], {**members.nodes, **cluster.members("n3")})
        vote = leader.metrics().value.vote
        at = [LogId(vote.leader_id, last.index + number) for number in range(1, 12)]
        lost = [
            Entry(at[0], 0, MEMBERSHIP, encode_membership(foreign)),
            *(Entry(later, 0, BLANK, b"") for later in at[1:]),
        ]
        node = cluster.raft("n2")
        request = AppendEntriesRequest(vote, last, lost, last, 500)
        assert isinstance(await node.append_entries(request, PeerIdentity("n1", leader.store_id)), Success)
        assert node.metrics().value.membership.membership == foreign
        await cluster.kill("n1")
        leader = await cluster.start("n1")
        await leader.wait(5).current_leader("n1")
        covered = await write(leader, 20, "new")
        await snapshot(leader, covered)
        await leader.wait(5).purged(covered)
        cluster.hub.heal()
        more = await write(leader, 1, "more")
        await cluster.applied(more.index)
        metrics = cluster.raft("n2").metrics().value
        assert metrics.membership == metrics.committed_membership == leader.metrics().value.membership
        assert metrics.membership.membership == members
        assert cluster.log("n2") == cluster.log("n1")


async def test_two_snapshots_in_a_row_keep_the_membership() -> None:
    async with memory_cluster(1, ["n2"], config=KEEP_NONE) as cluster:
        leader = cluster.raft("n1")
        expected = leader.metrics().value.membership
        for round_ in range(2):
            last = await write(leader, 10, f"{round_}/")
            await snapshot(leader, last)
            await leader.wait(5).purged(last)
            held = await leader.get_snapshot()
            assert held is not None
            assert held.meta.membership == expected
            await held.close()
        leader = await cluster.restart("n1")
        await leader.wait(5).current_leader("n1")
        assert leader.metrics().value.membership == expected


async def test_a_log_that_was_purged_and_whose_snapshot_is_gone_is_not_started() -> None:
    async with memory_cluster(1, config=KEEP_NONE) as cluster:
        last = await write(cluster.raft("n1"), 10)
        await snapshot(cluster.raft("n1"), last)
        await cluster.raft("n1").wait(5).purged(last)
        await cluster.kill("n1")
        cluster.disk("n1").snapshot = None
        with pytest.raises(StoreLostWrites):
            await cluster.start("n1")


async def test_writes_go_on_arriving_after_a_learner_got_its_snapshot() -> None:
    async with memory_cluster(1, config=KEEP_NONE) as cluster:
        leader = cluster.raft("n1")
        last = await write(leader, 50)
        await snapshot(leader, last)
        await cluster.start("n2")
        await leader.add_learner("n2", cluster.address("n2"))
        await asyncio.sleep(1)
        for number in range(3):
            index = (await leader.client_write(Put(f"after{number}", b"v"))).log_id.index
            await cluster.applied(index)
        assert cluster.raft("n2").machine.query(Get("after2")).value == b"v"


async def test_a_machine_that_refuses_a_snapshot_stops_its_node_and_nobody_else() -> None:
    class Refusing(KvStateMachine):
        async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
            raise ValueError("this is not for me")

    async with memory_cluster(1, config=KEEP_NONE, machine=Refusing) as cluster:
        leader = cluster.raft("n1")
        last = await write(leader, 10)
        await snapshot(leader, last)
        await leader.wait(5).purged(last)
        node = await cluster.start("n2")
        await leader.add_learner("n2", cluster.address("n2"), blocking=False)
        await cluster.eventually(lambda: node.fatal, "the node says why it stopped")
        assert "this is not for me" in str(node.fatal)
        await leader.client_write(Put("a", b"1"))
