"""Whom a node lets speak whose name a transport has proved, and which terms it does not believe."""

from __future__ import annotations

import asyncio

import pytest

from raftkit_core.errors import IdentityError
from raftkit_core.runtime.service import TERM_JUMP_MAX
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.messages import HeartbeatRequest, VoteRequest
from raftkit_core.types.vote import LeaderId, Vote

pytestmark = pytest.mark.virtual_time


async def test_a_stranger_is_shut_out_while_a_leader_is_at_work_and_let_in_when_nobody_leads() -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
        await follower.wait(5).current_leader(leader.id)
        for raft in (leader, follower):
            assert raft._service.admits("n1")
            assert raft._service.admits("n3")
            assert not raft._service.admits("n9")
        for node_id in [name for name in cluster.rafts if name != follower.id]:
            await cluster.kill(node_id)
        await asyncio.sleep(1)
        # Perhaps it only lags, and who leads now was added meanwhile.
        assert follower._service.admits("n9")


async def test_a_pristine_node_lets_anybody_say_hello_who_proved_its_name() -> None:
    async with memory_cluster(0) as cluster:
        raft = await cluster.start("n1")
        assert raft._service.admits("n9")


async def test_a_term_that_no_election_can_have_led_to_is_refused_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        other = next(name for name in cluster.rafts if name != leader.id)
        peer = PeerIdentity(other, cluster.raft(other).store_id, 1)
        vote = leader.metrics().value.vote
        for term in (vote.term + TERM_JUMP_MAX + 1, 2**62, 2**63 - 1):
            for _ in range(3):
                with pytest.raises(IdentityError, match="no election"):
                    await leader.vote(VoteRequest(Vote(LeaderId(term, other), False), None), peer)
                with pytest.raises(IdentityError, match="no election"):
                    await leader._service.heartbeat(
                        HeartbeatRequest(Vote(LeaderId(term, other), True), None, None, 500), peer
                    )
        await asyncio.sleep(2)
        assert leader.metrics().value.vote == vote
        assert len([record for record in caplog.records if "refused" in record.message]) == 1


async def test_the_leader_a_node_follows_is_let_in_also_if_it_is_no_member_known_here() -> None:
    """It was added while this node was away. On one connection it is heard already: shut out of the other, this node
    would hear it for ever and never get an entry."""
    async with memory_cluster(3) as cluster:
        leader = await cluster.leader()
        follower = next(raft for raft in cluster.rafts.values() if raft is not leader)
        await follower.wait(5).current_leader(leader.id)
        for node_id in [name for name in cluster.rafts if name != follower.id]:
            await cluster.kill(node_id)
        await asyncio.sleep(1)
        newer = Vote(LeaderId(follower.metrics().value.vote.term + 5, "n9"), True)
        await follower._service.heartbeat(HeartbeatRequest(newer, None, None, 500), PeerIdentity("n9", "9" * 32, 1))
        assert not follower._service.admits("n8")
        assert follower._service.admits("n9")
