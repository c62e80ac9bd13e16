"""Scenarios of snapshots and purging (openraft.md §3.1 snapshot_building, snapshot_streaming)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.network.disturbances import DROP
from raftkit_core.raft import Raft
from raftkit_core.state_machine.interface import ApplyBatch
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.interface import SnapshotSink
from raftkit_core.storage.memory import MemorySnapshotStorage
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote

pytestmark = pytest.mark.virtual_time

EAGER = Config(snapshot_policy=SnapshotPolicy.LogsSinceLast(50), max_in_snapshot_log_to_keep=2, purge_batch_size=1)
ON_REQUEST = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0, purge_batch_size=1)


async def write(raft: Raft, count: int, tag: str = "k", size: int = 1) -> int:
    index = 0
    for number in range(count):
        index = (await raft.client_write(Put(f"{tag}{number}", b"v" * size))).log_id.index
    return index


async def snapshot(raft: Raft) -> None:
    """Build one of everything applied, and see it published."""
    raft.trigger().snapshot()
    await raft.wait(10).metrics(lambda m: m.snapshot is not None and m.snapshot == m.last_applied, "a snapshot")


async def test_the_policy_builds_snapshots_and_purges_but_for_what_it_keeps() -> None:
    async with memory_cluster(1, config=EAGER) as cluster:
        raft = cluster.raft("n1")
        await write(raft, 60)
        metrics = await raft.wait(5).metrics(lambda m: m.purged is not None, "a purge")
        assert metrics.snapshot is not None
        assert metrics.purged is not None
        assert metrics.snapshot.index - metrics.purged.index == 2
        assert cluster.disk("n1").last_purged == metrics.purged
        assert cluster.log("n1")[0].index == metrics.purged.index + 1


async def test_policy_never_builds_no_snapshot_until_asked() -> None:
    async with memory_cluster(1, config=ON_REQUEST) as cluster:
        raft = cluster.raft("n1")
        await raft.client_write_many([Put(f"k{number}", b"v") for number in range(6000)])
        await asyncio.sleep(3)
        assert raft.metrics().value.snapshot is None
        assert await raft.get_snapshot() is None
        await snapshot(raft)
        held = await raft.get_snapshot()
        assert held is not None
        assert held.meta.last_log_id == raft.metrics().value.last_applied
        await held.close()


async def test_a_snapshot_can_be_asked_of_a_follower_too() -> None:
    async with memory_cluster(3, config=ON_REQUEST) as cluster:
        leader = await cluster.leader()
        index = await write(leader, 5)
        await cluster.applied(index)
        for node_id in ("n1", "n2", "n3"):
            await snapshot(cluster.raft(node_id))
        one, two, three = [cluster.raft(node_id).metrics().value.snapshot for node_id in ("n1", "n2", "n3")]
        assert one == two == three


async def test_d05_a_request_during_a_build_is_carried_out_after_it() -> None:
    machine = HeldSnapshots()
    async with memory_cluster(1, config=ON_REQUEST, machine=lambda: machine) as cluster:
        raft = cluster.raft("n1")
        await write(raft, 5)
        machine.gate.clear()
        raft.trigger().snapshot()
        await asyncio.sleep(0.1)
        index = await write(raft, 5, "more")
        raft.trigger().snapshot()
        machine.gate.set()
        await raft.wait(5).metrics(lambda m: m.snapshot is not None and m.snapshot.index == index, "the second one")


async def test_d14_two_requests_at_one_position_make_no_trouble() -> None:
    async with memory_cluster(1, config=ON_REQUEST) as cluster:
        raft = cluster.raft("n1")
        await write(raft, 3)
        await snapshot(raft)
        await snapshot(raft)
        raft.trigger().snapshot()
        raft.trigger().snapshot()
        await write(raft, 3)
        assert raft.fatal is None


async def test_a_purge_on_request_never_goes_beyond_the_snapshot() -> None:
    config = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=10_000)
    async with memory_cluster(1, config=config) as cluster:
        raft = cluster.raft("n1")
        middle = await write(raft, 10)
        await snapshot(raft)
        last = await write(raft, 10, "more")
        assert raft.metrics().value.purged is None
        raft.trigger().purge_log(last)
        metrics = await raft.wait(5).metrics(lambda m: m.purged is not None, "a purge")
        assert metrics.purged is not None
        assert metrics.purged.index == middle
        assert cluster.log("n1")[0].index == middle + 1


async def test_a_new_node_gets_the_snapshot_and_the_rest_of_the_log() -> None:
    async with memory_cluster(1, config=EAGER) as cluster:
        leader = cluster.raft("n1")
        index = await write(leader, 130)
        await cluster.start("n2")
        await leader.add_learner("n2", cluster.address("n2"))
        await cluster.applied(index)
        assert cluster.disk("n2").last_purged is not None
        assert cluster.raft("n2").machine.digest() == leader.machine.digest()
        assert cluster.raft("n2").metrics().value.membership.membership.learner_ids == ("n2",)


async def test_a_lagging_follower_is_brought_back_by_a_snapshot() -> None:
    async with memory_cluster(3, config=EAGER) as cluster:
        leader = await cluster.leader()
        lagging = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        cluster.hub.isolate(lagging)
        index = await write(leader, 200)
        cluster.hub.heal()
        await cluster.applied(index)
        assert cluster.raft(lagging).machine.digest() == leader.machine.digest()
        await leader.client_write(Put("after", b"v"))
        replication = leader.metrics().value.replication
        assert replication is not None
        await leader.wait(5).metrics(
            lambda m: m.replication is not None and m.replication[lagging].state == "pipeline", "the log again"
        )


async def test_d04_a_leader_that_purged_everything_still_brings_a_new_node_up() -> None:
    async with memory_cluster(1, config=ON_REQUEST) as cluster:
        leader = cluster.raft("n1")
        await write(leader, 20)
        await snapshot(leader)
        await leader.wait(5).metrics(lambda m: m.purged == m.last_log_id, "an empty log")
        await cluster.start("n2")
        await leader.add_learner("n2", cluster.address("n2"))
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        assert cluster.raft("n2").machine.query(Get("k19")).value == b"v"


async def test_isolated_learners_do_not_hold_up_purging() -> None:
    async with memory_cluster(1, ["n2", "n3"], config=EAGER) as cluster:
        for node_id in ("n2", "n3"):
            cluster.hub.isolate(node_id)
        await write(cluster.raft("n1"), 120)
        await asyncio.sleep(3)
        assert len(cluster.log("n1")) <= 52 + 2


async def test_a_node_restarts_from_its_snapshot_and_the_log_after_it() -> None:
    async with memory_cluster(1, config=EAGER) as cluster:
        await write(cluster.raft("n1"), 80)
        digest = cluster.raft("n1").machine.digest()
        raft = await cluster.restart("n1")
        assert (await raft.read(Get("k79"))).value == b"v"
        assert raft.machine.digest() == digest
        assert raft.metrics().value.snapshot is not None


async def test_an_install_replaces_a_conflicting_tail_and_its_membership() -> None:
    async with memory_cluster(3, ["n4"], config=ON_REQUEST) as cluster:
        leader = await cluster.leader("n1", "n2", "n3")
        others = [node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id]
        cluster.hub.isolate(leader.id)
        lost = [leader.client_write_ff(Put(f"lost{number}", b"v"), timeout=60) for number in range(30)]
        change = asyncio.ensure_future(leader.add_learner("n4", cluster.address("n4"), timeout=60, blocking=False))
        new_leader = await cluster.leader(*others)
        await write(new_leader, 10)
        await snapshot(new_leader)
        await new_leader.wait(5).metrics(lambda m: m.purged == m.last_applied, "an empty log")
        cluster.hub.heal()
        index = await write(new_leader, 1, "end")
        await cluster.applied(index)
        assert cluster.log(leader.id) == cluster.log(new_leader.id)
        assert cluster.raft(leader.id).metrics().value.membership == new_leader.metrics().value.membership
        await asyncio.gather(*lost, change, return_exceptions=True)


async def test_a_broken_transfer_resumes_where_it_stopped() -> None:
    offsets: list[int] = []

    class SlowDisk(MemorySnapshotStorage):
        """Takes 10 ms for every chunk."""

        async def sink(self, snapshot_id: str, *, resume: bool = False) -> SnapshotSink:
            sink = await super().sink(snapshot_id, resume=resume)
            write_now = sink.write

            async def write_slowly(chunk: bytes) -> None:
                await asyncio.sleep(0.01)
                await write_now(chunk)

            sink.write = write_slowly  # type: ignore[method-assign]
            return sink

    async with memory_cluster(1, config=ON_REQUEST, snapshots=SlowDisk) as cluster:
        leader = cluster.raft("n1")
        await write(leader, 12, size=900_000)
        await snapshot(leader)
        await leader.wait(5).metrics(lambda m: m.purged == m.last_log_id, "an empty log")
        await cluster.start("n2")

        def look(_src: NodeId, _dst: NodeId, kind: str, _message: Any) -> None:
            if kind == "snapshot_offset":
                kept = cluster.disk("n2").kept
                offsets.append(0 if kept is None else len(kept[1]))

        cluster.hub.pre_hook = look
        adding = asyncio.ensure_future(leader.add_learner("n2", cluster.address("n2")))
        await cluster.eventually(lambda: offsets, "the transfer to begin")
        await asyncio.sleep(0.025)
        cluster.hub.cut("n1", "n2", silent=False)
        await asyncio.sleep(0.3)
        cluster.hub.heal()
        await adding
        assert cluster.raft("n2").machine.digest() == leader.machine.digest()
        assert offsets[0] == 0
        assert any(offset > 0 for offset in offsets[1:]), offsets


async def test_d06_a_transfer_to_an_unreachable_node_is_given_up_and_begun_anew_with_the_newest_snapshot() -> None:
    async with memory_cluster(1, ["n2"], config=EAGER) as cluster:
        leader = cluster.raft("n1")
        cluster.hub.isolate("n2")
        await write(leader, 120)
        await asyncio.sleep(30)
        assert cluster.hub.counts["snapshot_offset"] < 60, "it backs off"
        first = leader.metrics().value.snapshot
        await write(leader, 60, "later")
        assert leader.metrics().value.snapshot != first
        newest = leader.metrics().value.snapshot
        cluster.hub.heal()
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        assert cluster.raft("n2").metrics().value.snapshot == newest


async def test_a_membership_change_does_not_wait_for_a_running_transfer() -> None:
    async with memory_cluster(1, config=ON_REQUEST) as cluster:
        leader = cluster.raft("n1")
        await write(leader, 5, size=900_000)
        await snapshot(leader)
        await cluster.start("n2")
        adding = asyncio.ensure_future(leader.add_learner("n2", cluster.address("n2"), timeout=3))
        await cluster.eventually(lambda: cluster.hub.counts["snapshot_offset"], "the transfer to begin")
        cluster.hub.isolate("n2")
        started = asyncio.get_running_loop().time()
        await leader.change_membership(["n1"], retain=True)
        assert asyncio.get_running_loop().time() - started < 1
        cluster.hub.heal()
        await asyncio.wait([adding])
        adding.exception()


class HeldSnapshots(KvStateMachine):
    """Gives its view at once and its bytes only when ``gate`` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    def snapshot(self) -> AsyncIterator[bytes]:
        return self._later(super().snapshot())

    async def _later(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        await self.gate.wait()
        async for chunk in chunks:
            yield chunk


class HeldRestores(KvStateMachine):
    """Restores only when ``gate`` is open."""

    gate: asyncio.Event

    async def restore(self, meta: SnapshotMeta, chunks: AsyncIterator[bytes]) -> None:
        await self.gate.wait()
        await super().restore(meta, chunks)


async def test_building_a_snapshot_holds_up_neither_append_nor_apply() -> None:
    machine = HeldSnapshots()
    async with memory_cluster(1, config=ON_REQUEST, machine=lambda: machine) as cluster:
        raft = cluster.raft("n1")
        before = await write(raft, 5)
        machine.gate.clear()
        raft.trigger().snapshot()
        await asyncio.sleep(0.1)
        started = asyncio.get_running_loop().time()
        await write(raft, 50, "meanwhile")
        assert asyncio.get_running_loop().time() - started < 0.5
        assert raft.metrics().value.snapshot is None
        machine.gate.set()
        metrics = await raft.wait(5).metrics(lambda m: m.snapshot is not None, "the snapshot")
        assert metrics.snapshot is not None
        assert metrics.snapshot.index == before, "of the moment it was asked for"
        raft = await cluster.restart("n1")


async def test_a_node_that_installs_answers_votes_and_heartbeats_and_calls_appends_busy() -> None:
    HeldRestores.gate = asyncio.Event()
    HeldRestores.gate.set()
    async with memory_cluster(3, config=EAGER, machine=HeldRestores) as cluster:
        leader = await cluster.leader()
        lagging = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        cluster.hub.isolate(lagging)
        index = await write(leader, 200)
        HeldRestores.gate.clear()
        cluster.hub.heal()
        await cluster.eventually(lambda: cluster.raft(lagging)._core.engine.is_installing, "the install to begin")
        term = leader.metrics().value.current_term
        appends = cluster.hub.counts["append_entries"]
        for _ in range(30):
            await leader.client_write(Put("meanwhile", b"v"))
            await asyncio.sleep(0.1)
        spent = cluster.hub.counts["append_entries"] - appends
        assert spent < 30 + 40, f"a busy peer is left alone for a while, not asked {spent} times"
        contact = leader.metrics().value.replication
        assert contact is not None
        assert (contact[lagging].last_contact_ms or 0) <= 300, "its heartbeats are answered"
        assert cluster.raft(lagging).metrics().value.state is ServerState.FOLLOWER
        HeldRestores.gate.set()
        await cluster.applied(index + 30)
        assert leader.metrics().value.current_term == term, "it did not campaign meanwhile"


async def test_a_write_waits_for_a_slow_machine_and_keeps_the_order_with_snapshots() -> None:
    class Slow(KvStateMachine):
        async def _later(self, batch: ApplyBatch) -> Any:
            await asyncio.sleep(0.2)
            return super().apply(batch)

        def apply(self, batch: ApplyBatch) -> Any:
            return self._later(batch)

    async with memory_cluster(3, config=ON_REQUEST, machine=Slow) as cluster:
        leader = await cluster.leader()
        writes = [asyncio.ensure_future(leader.client_write(Put(f"k{number}", b"v"))) for number in range(20)]
        await asyncio.sleep(0.1)
        leader.trigger().snapshot()
        results = await asyncio.gather(*writes)
        assert [result.log_id.index for result in results] == sorted(result.log_id.index for result in results)
        snapshot_at = (await leader.wait(5).metrics(lambda m: m.snapshot is not None, "it")).snapshot
        assert snapshot_at is not None
        raft = await cluster.restart(leader.id)
        await cluster.leader()
        await cluster.applied(results[-1].log_id.index)
        assert raft.machine.query(Get("k19")) is not None


async def test_heartbeats_go_on_while_a_snapshot_is_sent() -> None:
    """D10: the peer's lease must not end because something large is in flight to it."""
    async with memory_cluster(3, config=EAGER) as cluster:
        leader = await cluster.leader()
        lagging = next(node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id)
        cluster.hub.isolate(lagging)
        await write(leader, 200)
        cluster.hub.pre_hook = lambda _src, _dst, kind, _message: DROP if kind == "snapshot_offset" else None
        cluster.hub.heal()
        term = leader.metrics().value.current_term
        await asyncio.sleep(5)
        contact = cluster.raft(lagging).metrics().value.millis_since_leader_contact
        assert contact is not None
        assert contact < 300
        assert leader.metrics().value.current_term == term
        cluster.hub.pre_hook = None
        await cluster.applied(leader.metrics().value.last_log_index or 0)


async def test_a_snapshot_handed_over_is_installed_only_under_the_leader_s_vote_and_only_if_it_is_new() -> None:
    async with memory_cluster(3, config=ON_REQUEST) as cluster:
        leader = await cluster.leader()
        behind, current = [node_id for node_id in ("n1", "n2", "n3") if node_id != leader.id]
        cluster.hub.isolate(behind)
        index = await write(leader, 3)
        await cluster.applied(index, leader.id, current)
        await snapshot(leader)
        held = await leader.get_snapshot()
        assert held is not None
        vote = leader.metrics().value.vote
        lower = Vote(LeaderId(0, leader.id), True)
        refused = await cluster.raft(current).install_full_snapshot(lower, held)
        assert refused.vote == vote
        assert (await cluster.raft(current).install_full_snapshot(vote, held)).vote == vote
        assert cluster.raft(current).metrics().value.snapshot is None, "there was nothing new in it"
        await cluster.raft(behind).install_full_snapshot(vote, held)
        assert cluster.raft(behind).metrics().value.snapshot == held.meta.last_log_id
        assert cluster.raft(behind).machine.query(Get("k2")) is not None
        assert cluster.disk(behind).last_purged == held.meta.last_log_id
        await held.close()


async def test_a_machine_that_lags_behind_the_commits_is_not_snapshotted_again_and_again() -> None:
    gate = asyncio.Event()
    gate.set()
    views: list[int] = []

    class Lagging(KvStateMachine):
        def apply(self, batch: ApplyBatch) -> Any:
            return self._later(batch)

        async def _later(self, batch: ApplyBatch) -> Any:
            await gate.wait()
            return super().apply(batch)

        def snapshot(self) -> AsyncIterator[bytes]:
            views.append(len(self))
            return super().snapshot()

    config = Config(snapshot_policy=SnapshotPolicy.LogsSinceLast(10))
    async with memory_cluster(1, config=config, machine=Lagging) as cluster:
        raft = cluster.raft("n1")
        await write(raft, 12)
        gate.clear()
        pending = [raft.client_write_ff(Put(f"more{number}", b"v"), timeout=60) for number in range(60)]
        await asyncio.sleep(5)
        assert len(views) <= 3, f"{len(views)} snapshots of one state"
        gate.set()
        await asyncio.gather(*pending)
        await raft.wait(5).metrics(
            lambda m: m.snapshot is not None and (m.applied_index or 0) - m.snapshot.index < 10, "a newer snapshot"
        )
