"""``Simulation``: a cluster one can break by hand."""

from __future__ import annotations

import pytest

from raftkit_core.errors import QuorumNotEnough, RaftError
from raftkit_core.testing import InvariantBroken, Simulation
from raftkit_core.testing.linearizability import judging
from raftkit_core.testing.simulation import sim_judgement
from raftkit_core.types.kv import KeyValue

pytestmark = pytest.mark.virtual_time


async def test_a_cluster_elects_serves_and_survives() -> None:
    async with Simulation(seed=1, nodes=5) as sim:
        client = sim.client("c1")
        first = await sim.leader()
        await client.put("a", "1")
        sim.isolate(first)
        second = await sim.leader()
        assert second != first
        await client.cas("a", "1", "2", node=second)
        sim.heal()
        sim.crash(second)
        third = await sim.leader()
        assert third != second
        await sim.restart(second)
        assert await client.get("a") == b"2"
        await sim.run_for(2)
        sim.check()
        assert len(sim.history.operations) == 3


async def test_a_paused_leader_is_replaced_and_follows_when_it_wakes() -> None:
    async with Simulation(seed=2, nodes=3) as sim:
        first = await sim.leader()
        sim.pause(first)
        assert sim.is_paused(first)
        second = await sim.leader()
        assert second != first
        await sim.client().put("a", "1", node=second)
        sim.resume(first)
        await sim.run_for(2)
        assert sim.raft(first).current_leader() == second
        sim.check()


async def test_the_minority_side_of_a_partition_writes_nothing() -> None:
    async with Simulation(seed=3, nodes=5) as sim:
        first = await sim.leader()
        others = [node for node in sim.ids if node != first]
        sim.partition({first, others[0]}, set(others[1:]))
        await sim.run_for(3)
        with pytest.raises(RaftError) as refused:
            await sim.client().put("a", "1", node=first, timeout=1)
        assert isinstance(refused.value, QuorumNotEnough)
        assert await sim.leader() in others[1:]
        sim.heal()
        await sim.run_for(2)
        sim.check()


async def test_a_cut_goes_one_way() -> None:
    async with Simulation(seed=4, nodes=3) as sim:
        leader = await sim.leader()
        follower = next(node for node in sim.ids if node != leader)
        sim.cut(leader, follower)
        await sim.run_for(5)
        assert await sim.leader() == leader, "pre-vote: a node that hears nobody deposes nobody"
        assert sim.raft(leader).metrics().value.current_term == 1
        sim.check()


async def test_a_wiped_node_is_not_a_voter_any_more() -> None:
    async with Simulation(seed=5, nodes=3) as sim:
        leader = await sim.leader()
        await sim.client().put("a", "1")
        victim = next(node for node in sim.ids if node != leader)
        sim.wipe(victim)
        await sim.restart(victim)
        await sim.run_for(3)
        assert await sim.client().get("a", node=leader) == b"1"
        assert sim.raft(victim).metrics().value.last_applied is None
        sim.check()


async def test_a_history_that_is_wrong_or_too_long_to_judge_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Simulation(seed=6, nodes=1) as sim:
        await sim.leader()
        await sim.client().put("a", "1")
        sim.check()
        invented = sim.history.call("liar", "get", "a", now=sim.now)
        invented.ok(sim.now + 1, KeyValue(key="a", value=b"2", revision=9))
        with pytest.raises(InvariantBroken, match="S21"):
            sim.check()
    async with Simulation(seed=7, nodes=1) as sim:
        await sim.leader()
        for number in range(3):
            await sim.client().cas("a", None if number == 0 else "1", "1")
        monkeypatch.setattr(judging, "explains", lambda operations, durable: False)
        monkeypatch.setattr(sim_judgement, "SEARCH_BUDGET", 1)
        with pytest.raises(InvariantBroken, match="S21 undecided"):
            sim.check()
