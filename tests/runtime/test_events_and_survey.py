"""What a node tells of its past, and what any node can say about the whole cluster."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.clock import Clock
from raftkit_core.raft import Raft
from raftkit_core.runtime.events import EventLog
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.kv import Put
from raftkit_core.types.metrics import ServerState

pytestmark = pytest.mark.virtual_time


def told(raft: Raft, kind: str) -> list[str]:
    return [event.message for event in raft.events() if event.kind == kind]


async def test_an_election_a_membership_and_a_snapshot_are_told_in_order() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
        await leader.write(Put("k", b"v"))
        leader.trigger().snapshot()
        await leader.wait(5).metrics(lambda m: m.snapshot is not None, "a snapshot")
        assert told(leader, "role")[-1] == f"{leader.id} won the election and leads"
        assert told(leader, "membership") == [f"{leader.id} sees voters n1, n2, n3"]
        assert told(leader, "snapshot")[0].startswith(f"{leader.id} has a snapshot up to ")
        assert told(follower, "leader")[-1] == f"{follower.id} follows {leader.id}"
        numbers = [event.number for event in leader.events()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert numbers[0] == leader.events()[0].at_ms
        assert leader.events(after=numbers[-1]) == []
        assert leader.counters().elections_won == 1
        assert leader.counters().snapshots == 1
        assert follower.counters().leader_changes == 1


async def test_the_ring_keeps_the_newest_and_counts_all() -> None:
    clock: Clock = VirtualClock()
    log = EventLog("n1", clock, lambda: 7, kept=3)
    for _ in range(5):
        log.on_server_state(ServerState.CANDIDATE)
        log.on_server_state(ServerState.FOLLOWER)
    first = int(clock.wall() * 1000)
    assert [event.number - first for event in log.since()] == [7, 8, 9]
    assert [event.number - first for event in log.since(first + 7, 1)] == [8]
    assert log.since()[0].term == 7
    assert (log.counters.elections_started, log.counters.elections_lost) == (5, 5)


async def test_any_node_surveys_every_member_and_says_who_does_not_answer() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        others = sorted(node_id for node_id in cluster.rafts if node_id != leader.id)
        await asyncio.sleep(0.5)
        reports = await cluster.raft(others[0]).survey()
        assert [report.id for report in reports] == ["n1", "n2", "n3"]
        assert all(report.error is None and report.status is not None for report in reports)
        roles = {report.id: report.status.role for report in reports if report.status}
        assert roles == {leader.id: "leader", others[0]: "follower", others[1]: "follower"}
        last = {report.id: report.events[-1].number for report in reports}
        assert all(not report.events for report in await leader.survey(last))
        await cluster.kill(others[1])
        reports = await cluster.raft(others[0]).survey(timeout=1.0)
        missing = next(report for report in reports if report.id == others[1])
        assert missing.status is None
        assert missing.error


async def test_a_node_without_a_cluster_reports_itself() -> None:
    async with memory_cluster(1, initialize=False) as cluster:
        (report,) = await cluster.raft("n1").survey()
        assert report.status is not None
        assert report.status.members == []
