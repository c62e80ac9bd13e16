"""Scenarios of append and heartbeat requests, in both leader-id modes (openraft.md §3.1 append_entries)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from three_nodes import ALL

from raftkit_core.config import Config, SnapshotPolicy
from raftkit_core.raft import Raft
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster
from raftkit_core.types.entry import BLANK, MEMBERSHIP, Entry, encode_membership
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Put
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership
from raftkit_core.types.messages import AppendEntriesRequest, Conflict, HigherVote, Success, VoteRequest
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import LeaderId, Vote

pytestmark = pytest.mark.virtual_time

both_modes = pytest.mark.parametrize("single", [False, True], ids=["default", "single_term_leader"])


def mode(single: bool, **settings: Any) -> Config:
    return Config(single_term_leader=single, **settings)


class Feeder:
    """Sends ``node`` hand-made appends in the name of ``leader``; positions count from the end of the common log."""

    def __init__(self, node: Raft, leader: NodeId, store_id: str, base: LogId) -> None:
        self._node = node
        self._leader = leader
        self._peer = PeerIdentity(leader, store_id)
        self.base = base

    def at(self, term: int, index: int) -> LogId:
        return self.base if index == 0 else LogId(LeaderId(term, self._leader), self.base.index + index)

    async def append(
        self,
        term: int,
        prev: LogId | None,
        *entries: tuple[int, int],
        payloads: dict[int, Membership] | None = None,
        commit: LogId | None = None,
    ) -> Any:
        members = payloads or {}
        sent = [
            Entry(self.at(*entry), 0, MEMBERSHIP, encode_membership(members[entry[1]]))
            if entry[1] in members
            else Entry(self.at(*entry), 0, BLANK, b"")
            for entry in entries
        ]
        request = AppendEntriesRequest(Vote(LeaderId(term, self._leader), True), prev, sent, commit, 500)
        return await self._node.append_entries(request, self._peer)


async def learner_alone(cluster: MemoryCluster) -> Feeder:
    """The leader n1 has gone; its learner n2 is fed by hand."""
    leader = cluster.raft("n1")
    base = leader.metrics().value.last_log_id
    assert base is not None
    await cluster.applied(base.index)
    store_id = leader.store_id
    await cluster.kill("n1")
    return Feeder(cluster.raft("n2"), "n1", store_id, base)


def terms(cluster: MemoryCluster, feeder: Feeder) -> list[int]:
    return [entry.log_id.term for entry in cluster.log("n2") if entry.index > feeder.base.index]


@both_modes
async def test_an_append_without_entries_still_says_where_the_log_differs(single: bool) -> None:
    async with memory_cluster(1, ["n2"], config=mode(single)) as cluster:
        feeder = await learner_alone(cluster)
        assert isinstance(await feeder.append(2, feeder.at(2, 5)), Conflict)
        assert isinstance(await feeder.append(2, feeder.base, (2, 1), (2, 2)), Success)
        conflict = await feeder.append(2, feeder.at(2, 3))
        assert isinstance(conflict, Conflict)
        assert conflict.index == feeder.base.index + 3
        assert conflict.last_log_id == feeder.at(2, 2)


@both_modes
async def test_a_learner_s_log_follows_each_request(single: bool) -> None:
    async with memory_cluster(1, ["n2"], config=mode(single)) as cluster:
        feeder = await learner_alone(cluster)
        first = cluster.log("n2")[0].log_id
        assert isinstance(await feeder.append(2, None), Success)
        assert isinstance(await feeder.append(2, feeder.base), Success)
        new = [(2, 1), (2, 2), (2, 3), (2, 4)]
        for _ in range(2):
            assert isinstance(await feeder.append(2, feeder.base, *new, commit=feeder.base), Success)
            assert terms(cluster, feeder) == [2, 2, 2, 2], "the same again changes nothing"
        assert isinstance(await feeder.append(2, first), Success)
        assert isinstance(await feeder.append(3, feeder.at(2, 2), (3, 3)), Success)
        assert terms(cluster, feeder) == [2, 2, 3], "the first difference and what follows is replaced"
        assert isinstance(await feeder.append(3, feeder.at(3, 2000)), Conflict)
        assert terms(cluster, feeder) == [2, 2, 3]
        assert isinstance(await feeder.append(4, feeder.at(4, 3)), Conflict)
        assert terms(cluster, feeder) == [2, 2], "a conflicting prev is removed"
        assert isinstance(await feeder.append(4, feeder.at(2, 2), (3, 3), (3, 4), (3, 5)), Success)
        assert isinstance(await feeder.append(4, feeder.at(3, 3), (4, 4)), Success)
        assert terms(cluster, feeder) == [2, 2, 3, 4]
        assert isinstance(await feeder.append(4, feeder.at(4, 200)), Conflict)
        assert isinstance(await feeder.append(3, feeder.at(3, 3)), HigherVote)
        assert terms(cluster, feeder) == [2, 2, 3, 4]


@both_modes
async def test_the_effective_membership_is_the_last_one_in_the_log_and_goes_back_with_it(single: bool) -> None:
    async with memory_cluster(1, ["n2"], config=mode(single)) as cluster:
        feeder = await learner_alone(cluster)
        node = cluster.raft("n2")
        known = node.metrics().value.membership.membership.nodes
        nodes = {**cluster.members("n3", "n4"), **known}
        members = {2: Membership.of([["n1", "n2"]], nodes), 4: Membership.of([["n1", "n2", "n3", "n4"]], nodes)}
        new = [(2, 1), (2, 2), (2, 3), (2, 4)]
        assert isinstance(await feeder.append(2, feeder.base, *new, payloads=members), Success)
        assert node.metrics().value.membership.membership.voter_ids == ("n1", "n2", "n3", "n4")
        assert node.metrics().value.state is ServerState.FOLLOWER
        assert isinstance(await feeder.append(3, feeder.at(2, 2), (3, 3)), Success)
        assert node.metrics().value.membership.membership.voter_ids == ("n1", "n2")
        assert node.metrics().value.membership.log_id == feeder.at(2, 2)


@both_modes
async def test_a_leader_that_hears_a_greater_one_stores_its_vote_and_follows(single: bool) -> None:
    async with memory_cluster(2, config=mode(single, enable_elect=False)) as cluster:
        leader = await cluster.leader()
        other = cluster.raft("n2" if leader.id == "n1" else "n1")
        last = leader.metrics().value.last_log_id
        assert last is not None
        await cluster.applied(last.index)
        greater = Vote(LeaderId(2, other.id), True)
        request = AppendEntriesRequest(greater, last, [], last, 500)
        assert isinstance(await leader.append_entries(request, PeerIdentity(other.id, other.store_id)), Success)
        assert cluster.disk(leader.id).vote == greater
        assert leader.metrics().value.state is ServerState.FOLLOWER
        assert leader.current_leader() == other.id


@both_modes
async def test_a_leader_learns_of_a_higher_vote_from_an_answer_and_quits(single: bool) -> None:
    async with memory_cluster(3, config=mode(single, enable_elect=False)) as cluster:
        leader = await cluster.leader()
        voter, candidate = [cluster.raft(node_id) for node_id in ALL if node_id != leader.id]
        last = leader.metrics().value.last_log_id
        assert last is not None
        await cluster.applied(last.index)
        leader.runtime_config().heartbeat(False)
        asked = VoteRequest(Vote(LeaderId(10, candidate.id)), last)
        peer = PeerIdentity(candidate.id, candidate.store_id)
        assert not (await voter.vote(asked, peer)).granted, "the leader's lease runs"
        await asyncio.sleep(0.8)
        assert (await voter.vote(asked, peer)).granted
        leader.trigger().heartbeat()
        await leader.wait(1).state(ServerState.FOLLOWER)
        assert leader.metrics().value.vote == asked.vote
        await cluster.eventually(lambda: cluster.disk(leader.id).vote == asked.vote, "the vote on the disk")


@both_modes
async def test_heartbeats_keep_votes_withheld_and_write_nothing(single: bool) -> None:
    async with memory_cluster(3, config=mode(single, enable_elect=False)) as cluster:
        leader = await cluster.leader()
        voter, candidate = [cluster.raft(node_id) for node_id in ALL if node_id != leader.id]
        last = leader.metrics().value.last_log_id
        assert last is not None
        longer = VoteRequest(Vote(LeaderId(10, candidate.id)), LogId(last.leader_id, last.index + 10))
        peer = PeerIdentity(candidate.id, candidate.store_id)
        for _ in range(3):
            await asyncio.sleep(0.5)
            contact = voter.metrics().value.millis_since_leader_contact
            assert contact is not None
            assert contact <= 150
            assert not (await voter.vote(longer, peer)).granted
        assert voter.metrics().value.last_log_id == last
        leader.runtime_config().heartbeat(False)
        await asyncio.sleep(1.5)
        assert (await voter.vote(longer, peer)).granted


@both_modes
async def test_more_than_fifty_conflicting_entries_are_replaced(single: bool) -> None:
    async with memory_cluster(3, config=mode(single)) as cluster:
        await cluster.applied(1)
        for node_id in ALL:
            await cluster.stop(node_id)
        for node_id, term in (("n1", 20), ("n3", 30)):
            disk = cluster.disk(node_id)
            start = len(disk.entries)
            leader_id = LeaderId(term, node_id)
            disk.entries += [Entry(LogId(leader_id, start + number), 0, BLANK, b"") for number in range(100)]
            disk.vote = Vote(leader_id)
        await cluster.start("n1")
        winner = await cluster.start("n3")
        assert (await cluster.leader()).id == "n3"
        last = (await winner.client_write(Put("end", b"v"))).log_id
        await cluster.applied(last.index)
        assert cluster.log("n1") == cluster.log("n3")
        assert cluster.log("n1")[60].log_id.term == 30


async def test_one_entry_per_request_and_a_slow_network_lose_nothing() -> None:
    config = Config(
        max_payload_entries=1, max_in_snapshot_log_to_keep=0, snapshot_policy=SnapshotPolicy.LogsSinceLast(100)
    )
    async with memory_cluster(3, ["n4", "n5"], config=config) as cluster:
        cluster.hub.latency = 0.005
        leader = await cluster.leader("n1", "n2", "n3")

        async def writer(name: str) -> None:
            for number in range(125):
                await leader.client_write(Put(f"{name}/{number}", b"v"))

        await asyncio.gather(*(writer(f"w{number}") for number in range(4)))
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        assert {len(raft.machine) for raft in cluster.rafts.values()} == {500}  # type: ignore[arg-type]
