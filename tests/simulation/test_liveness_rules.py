"""Rules V5 to V12: what must come about, and how soon, in clusters where one thing is wrong."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise

import pytest

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.errors import RaftError
from raftkit_core.testing import Simulation
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time

T = 1.5
"""Lease plus the largest election timeout, at the defaults."""


def terms(sim: Simulation) -> int:
    return max(sim.raft(node).metrics().value.current_term for node in sim.running)


async def keep_writing(sim: Simulation, name: str, acknowledged: list[float], node: str | None = None) -> None:
    client = sim.client(name)
    number = 0
    while True:
        number += 1
        with suppress(RaftError):
            await client.put(f"{name}.{number % 5}", f"{name}.{number}", node=node, timeout=1.0)
            acknowledged.append(sim.now)
        await asyncio.sleep(0.02)


async def test_v5_after_the_leader_is_killed_another_serves_within_three_timeouts() -> None:
    for seed in range(8):
        async with Simulation(seed=seed, nodes=3) as sim:
            leader = await sim.leader()
            await sim.run_for(1)
            sim.crash(leader, reset=False)
            began = sim.now
            other = await sim.leader()
            await sim.client().put("a", "1", node=other)
            assert sim.now - began <= 3 * T, f"seed {seed}: {sim.now - began:.2f} s"


async def test_v6_a_lagging_member_catches_up_while_writes_go_on() -> None:
    config = Config(snapshot_policy=SnapshotPolicy.LogsSinceLast(50), max_in_snapshot_log_to_keep=0, purge_batch_size=1)
    async with Simulation(seed=1, nodes=3, config=config) as sim:
        leader = await sim.leader()
        lagging = next(node for node in sim.ids if node != leader)
        sim.crash(lagging)
        acknowledged: list[float] = []
        writer = asyncio.ensure_future(keep_writing(sim, "w", acknowledged))
        await sim.run_for(5)
        await sim.restart(lagging)
        target = sim.raft(leader).metrics().value.applied_index
        assert target is not None
        assert target > 100
        await sim.raft(lagging).wait(2 * T).applied_index_at_least(target)
        await sim.run_for(0.5)
        assert sim.trace.coverage["snapshot.installed"] == 1, "what it lacked was purged, and came once"
        writer.cancel()
        await asyncio.wait([writer])


async def test_v7_a_joint_configuration_is_left_though_its_leader_dies_in_it() -> None:
    async with Simulation(seed=2, nodes=4, voters=3) as sim:
        leader = await sim.settle()
        await sim.raft(leader).add_learner("n4", sim.address("n4"))
        change = asyncio.ensure_future(sim.raft(leader).change_membership({"n2", "n3", "n4"}))
        for node in ("n2", "n3", "n4"):
            if node != leader:
                sim.cut(node, leader)  # it is in the logs, and the leader never hears of that
        await sim.run_for(0.1)
        assert sim.raft(leader).metrics().value.membership.membership.is_joint
        sim.crash(leader)
        with pytest.raises(RaftError):
            await asyncio.wait_for(change, 2 * T)
        sim.heal()
        other = await sim.leader()
        await sim.eventually(lambda: sim.agreed(["n2", "n3", "n4"]), "the joint one to be committed")
        await sim.raft(other).change_membership({"n2", "n3", "n4"})
        for node in ("n2", "n3", "n4"):
            await sim.raft(node).wait(T).metrics(lambda m: not m.committed_membership.membership.is_joint, "a uniform")
        await sim.restart(leader)
        sim.check()


async def test_v8_a_follower_that_hears_and_never_answers_delays_nobody() -> None:
    async with Simulation(seed=3, nodes=4, voters=3) as sim:
        leader = await sim.leader()
        hung = next(node for node in sim.voters if node != leader)
        for other in sim.ids:
            if other != hung:
                sim.cut(hung, other)
        client = sim.client()
        slowest = 0.0
        for number in range(40):
            began = sim.now
            await client.put("a", str(number), node=leader)
            slowest = max(slowest, sim.now - began)
            await asyncio.sleep(0.05)
        began = sim.now
        await sim.raft(leader).add_learner("n4", sim.address("n4"), blocking=False)
        assert max(slowest, sim.now - began) < 0.1, "one heartbeat interval"


async def test_v9_a_removed_node_that_goes_on_does_not_stop_writes() -> None:
    async with Simulation(seed=4, nodes=4) as sim:
        leader = await sim.settle()
        removed = next(node for node in sim.ids if node != leader)
        sim.isolate(removed)
        await sim.raft(leader).change_membership([node for node in sim.ids if node != removed])
        sim.heal()
        for node in sim.ids:
            if node not in (removed, leader):
                sim.cut(node, removed)  # it may never hear of it, and campaigns
        sim.cut(leader, removed)
        acknowledged: list[float] = []
        writer = asyncio.ensure_future(keep_writing(sim, "w", acknowledged, leader))
        await sim.run_for(20 * T)
        writer.cancel()
        await asyncio.wait([writer])
        gaps = [later - earlier for earlier, later in pairwise(acknowledged)]
        assert max(gaps) < T
        assert await sim.leader() == leader


@pytest.mark.parametrize("fault", ["cut", "hung_disk", "crash", "pause"])
async def test_v10_every_call_ends_in_its_time(fault: str) -> None:
    async with Simulation(seed=5, nodes=3) as sim:
        leader = await sim.leader()
        follower = next(node for node in sim.ids if node != leader)
        for node in sim.ids:
            if fault == "hung_disk":
                sim.disk(node).hung = True
            elif node != follower and fault == "cut":
                sim.isolate(node)
            elif node != follower and fault == "crash":
                sim.crash(node)
            elif node != follower and fault == "pause":
                sim.pause(node)
        raft = sim.raft(follower)
        for call in (
            raft.write(Put("a", b"1"), timeout=2.0),
            raft.read(lambda machine: None, timeout=2.0),
            raft.wait(2.0).current_leader("n9"),
            raft.client_write(Put("a", b"1"), timeout=2.0),
        ):
            began = sim.now
            with suppress(RaftError):  # a read may succeed while disks hang
                await call
            assert sim.now - began <= 2.0 + 0.1 + 0.05
        await raft.shutdown()


async def test_v11_without_faults_nobody_is_elected_after_the_first() -> None:
    async with Simulation(seed=6, nodes=5) as sim:
        await sim.leader()
        await sim.run_for(60)
        assert terms(sim) == 1
        assert sim.trace.coverage["election.won"] == 1


@pytest.mark.parametrize("who", ["leader", "follower"])
async def test_v12_a_quick_restart_causes_at_most_one_election(who: str) -> None:
    async with Simulation(seed=7, nodes=3) as sim:
        leader = await sim.leader()
        await sim.run_for(1)
        node = leader if who == "leader" else next(each for each in sim.ids if each != leader)
        await sim.restart(node)
        await sim.run_for(10)
        assert sim.trace.coverage["election.won"] - 1 == (1 if who == "leader" else 0)


def test_v3_the_core_serves_while_the_others_are_broken_for_ever() -> None:
    """Seeds whose ending is one of the three: dead, mute, deaf."""
    from raftkit_core.testing.simulation.runtime_run import run
    from raftkit_core.testing.simulation.runtime_scenario import plan

    endings: dict[str, int] = {}
    for seed in range(60):
        scenario = plan(seed, "network", seconds=2.0)
        if scenario.ending != "all" and scenario.ending not in endings:
            endings[scenario.ending] = seed
            report = run(scenario)
            assert report.violation is None, f"seed {seed}: {report.violation}"
            assert report.coverage[f"ending.{scenario.ending}"] == 1
    assert len(endings) == 3
