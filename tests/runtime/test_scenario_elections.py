"""Elections and hand-overs as clients see them."""

from __future__ import annotations

import asyncio

import pytest
from three_nodes import last_index, others

from raftkit_core.config import Config
from raftkit_core.errors import NotApplied
from raftkit_core.testing.cluster import memory_cluster, outcome
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time

# --- elections --------------------------------------------------------------------------------------------------------


async def test_a_new_leader_serves_within_three_timeouts_after_the_old_one_died() -> None:
    async with memory_cluster(3) as cluster:
        for _ in range(3):
            leader = await cluster.leader()
            await cluster.kill(leader.id)
            started = asyncio.get_running_loop().time()
            new_leader = await cluster.leader()
            await new_leader.write(Put("a", b"1"))
            assert asyncio.get_running_loop().time() - started < 4.5
            await cluster.start(leader.id)
            await cluster.leader()


async def test_without_faults_there_is_never_a_second_election() -> None:
    async with memory_cluster(5) as cluster:
        leader = await cluster.leader()
        term = leader.metrics().value.current_term
        await asyncio.sleep(40)
        assert (await cluster.leader()).id == leader.id
        assert leader.metrics().value.current_term == term


async def test_an_isolated_follower_does_not_raise_its_term() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = others(leader)[0]
        term = leader.metrics().value.current_term
        cluster.hub.isolate(follower)
        await asyncio.sleep(10)
        assert cluster.raft(follower).metrics().value.current_term == term
        cluster.hub.heal()
        await asyncio.sleep(3)
        assert (await cluster.leader()).id == leader.id
        assert leader.metrics().value.current_term == term


async def test_a_campaign_on_request_is_refused_while_the_leader_s_lease_runs() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        term = leader.metrics().value.current_term
        cluster.raft(others(leader)[0]).trigger().elect()
        leader.trigger().elect()
        await asyncio.sleep(2)
        assert (await cluster.leader()).id == leader.id
        assert leader.metrics().value.current_term == term


async def test_a_campaign_on_request_wins_once_heartbeats_have_ended() -> None:
    async with memory_cluster(3, config=Config(enable_elect=False)) as cluster:
        leader = await cluster.leader()
        leader.runtime_config().heartbeat(False)
        await asyncio.sleep(0.8)
        target = others(leader)[0]
        cluster.raft(target).trigger().elect()
        await cluster.raft(target).wait(3).current_leader(target)


async def test_conflicting_entries_of_a_deposed_leader_are_overwritten() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        cluster.hub.isolate(leader.id)
        lost = [leader.client_write_ff(Put(f"lost{number}", b"v"), timeout=60) for number in range(100)]
        new_leader = await cluster.leader(*others(leader))
        for number in range(20):
            await new_leader.client_write(Put(f"kept{number}", b"v"))
        cluster.hub.heal()
        await new_leader.client_write(Put("end", b"v"))
        await cluster.applied(last_index(new_leader))
        assert cluster.log(leader.id) == cluster.log(new_leader.id)
        told = await asyncio.gather(*(outcome(write) for write in lost))
        assert {type(error) for error in told[:20]} == {NotApplied}


# --- handing over -----------------------------------------------------------------------------------------------------


async def test_leadership_is_handed_over_without_waiting_for_a_timeout() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        target = others(leader)[1]
        started = asyncio.get_running_loop().time()
        assert await leader.transfer_leader(target) == target
        assert (await cluster.leader()).id == target
        assert asyncio.get_running_loop().time() - started < 0.2
        await cluster.raft(leader.id).write(Put("a", b"1"))


async def test_writes_go_on_after_a_hand_over_that_failed() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        target = others(leader)[0]
        cluster.hub.isolate(target)
        failed = await outcome(leader.transfer_leader(target, timeout=3))
        assert failed.code == "TRANSFER_FAILED"
        assert (await leader.write(Put("a", b"1"))).data.changed


async def test_nobody_hands_over_to_a_learner_or_a_stranger() -> None:
    async with memory_cluster(3, ["n4"]) as cluster:
        leader = await cluster.leader()
        for target in ("n4", "n9"):
            failed = await outcome(leader.transfer_leader(target))
            assert failed.code == "TRANSFER_FAILED"
        assert await leader.transfer_leader(leader.id) == leader.id
