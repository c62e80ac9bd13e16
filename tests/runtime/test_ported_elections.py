"""Scenarios of elections and restarts, in both leader-id modes (openraft.md §3.1 elect, life_cycle)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from three_nodes import ALL, others

from raftkit_core.config import Config, ReadPolicy
from raftkit_core.errors import NotAllowed, NotApplied, NotInMembers, QuorumNotEnough, WaitTimeout
from raftkit_core.network.disturbances import DROP
from raftkit_core.raft import Raft
from raftkit_core.testing.cluster import MemoryCluster, memory_cluster, outcome
from raftkit_core.types.entry import BLANK, Entry
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.log_id import LogId, index_of
from raftkit_core.types.membership import RemoveVoters
from raftkit_core.types.messages import AppendEntriesRequest
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.vote import LeaderId, Vote

pytestmark = pytest.mark.virtual_time

SLOW = {"election_timeout_min_ms": 3000, "election_timeout_max_ms": 4000}
both_modes = pytest.mark.parametrize("single", [False, True], ids=["default", "single_term_leader"])


def mode(single: bool, **settings: Any) -> Config:
    return Config(single_term_leader=single, **settings)


def term_of(raft: Raft) -> int:
    return raft.metrics().value.current_term


def drop_entries(_src: NodeId, _dst: NodeId, kind: str, message: Any) -> str | None:
    """Heartbeats and probes pass, entries do not."""
    return DROP if kind == "append_entries" and message.entries else None


@both_modes
async def test_fresh_nodes_become_one_cluster_with_one_leader(single: bool) -> None:
    async with memory_cluster(3, initialize=False, config=mode(single)) as cluster:
        with pytest.raises(NotInMembers):
            await cluster.raft("n1").initialize(cluster.members("n2", "n3"))
        await cluster.raft("n1").initialize(cluster.members(*ALL))
        leader = await cluster.leader()
        await cluster.applied(1)
        states = [cluster.raft(node_id).metrics().value.state for node_id in ALL]
        assert states.count(ServerState.FOLLOWER) == 2
        assert {cluster.disk(node_id).vote for node_id in ALL} == {leader.metrics().value.vote}
        with pytest.raises(NotAllowed):
            await cluster.raft("n1").initialize(cluster.members(*ALL))


@both_modes
async def test_only_the_node_with_the_greater_last_log_is_elected(single: bool) -> None:
    async with memory_cluster(2, config=mode(single)) as cluster:
        await cluster.applied(1)
        for node_id in ("n1", "n2"):
            await cluster.stop(node_id)
        longer = len(cluster.log("n2"))
        for node_id, term, count in (("n1", 9, 1), ("n2", 8, 5)):
            disk = cluster.disk(node_id)
            disk.entries += [Entry(LogId(LeaderId(term, "n1"), longer + at), 0, BLANK, b"") for at in range(count)]
            disk.vote = Vote(LeaderId(9, "n1"))
        for node_id in ("n1", "n2"):
            await cluster.start(node_id)
        assert (await cluster.leader()).id == "n1", "the greater term wins over the longer log"


@both_modes
async def test_a_node_told_to_campaign_takes_over_once_nobody_leads_actively(single: bool) -> None:
    async with memory_cluster(3, config=mode(single, enable_elect=False)) as cluster:
        leader = await cluster.leader()
        for target in [*others(leader), leader.id]:
            await cluster.applied(leader.metrics().value.last_log_index or 0)
            term = term_of(leader)
            leader.runtime_config().heartbeat(False)
            await asyncio.sleep(0.8)
            cluster.raft(target).trigger().elect()
            await cluster.raft(target).wait(2).state(ServerState.LEADER)
            leader = await cluster.leader()
            assert (leader.id, term_of(leader) > term) == (target, True)


@both_modes
async def test_restarted_followers_wait_a_whole_timeout_before_they_campaign(single: bool) -> None:
    async with memory_cluster(3, config=mode(single, **SLOW)) as cluster:
        leader = await cluster.leader()
        term = term_of(leader)
        pair = others(leader)
        for node_id in [*pair, leader.id]:
            await cluster.kill(node_id)
        for node_id in pair:
            await cluster.start(node_id)
        await asyncio.sleep(1)
        assert {term_of(cluster.raft(node_id)) for node_id in pair} == {term}
        new_leader = await cluster.leader(timeout=9)
        assert term_of(new_leader) > term


@both_modes
async def test_a_restarted_single_voter_leads_at_once_whatever_vote_it_finds(single: bool) -> None:
    async with memory_cluster(1, config=mode(single, **SLOW)) as cluster:
        await cluster.raft("n1").client_write(Put("a", b"1"))
        for committed in (False, True):
            await cluster.kill("n1")
            found = cluster.disk("n1").vote
            assert found is not None
            cluster.disk("n1").vote = Vote(found.leader_id, committed)
            raft = await cluster.start("n1")
            await raft.wait(1).state(ServerState.LEADER)
            assert term_of(raft) > found.term
            await raft.client_write(Put("b", b"2"))
        assert (await cluster.raft("n1").read(Get("a"))).value == b"1"


@both_modes
async def test_a_restarted_single_voter_applies_its_log_again_though_no_commit_was_saved(single: bool) -> None:
    async with memory_cluster(1, config=mode(single)) as cluster:
        last = 0
        for number in range(10):
            last = (await cluster.raft("n1").client_write(Put(f"k{number}", b"v"))).log_id.index
        await cluster.kill("n1")
        cluster.disk("n1").committed = None
        raft = await cluster.start("n1")
        await raft.wait(2).applied_index_at_least(last)
        assert raft.machine.query(Get("k9")).value == b"v"


@both_modes
async def test_a_store_with_a_leader_s_vote_and_no_membership_starts_as_a_learner(single: bool) -> None:
    async with memory_cluster(1, initialize=False, config=mode(single)) as cluster:
        await cluster.kill("n1")
        cluster.disk("n1").vote = Vote(LeaderId(1, "n1"), True)
        raft = await cluster.start("n1")
        await asyncio.sleep(5)
        assert raft.metrics().value.state is ServerState.LEARNER
        assert raft.current_leader() is None


@both_modes
async def test_a_new_leader_s_first_read_waits_for_its_own_first_entry(single: bool) -> None:
    async with memory_cluster(3, config=mode(single, enable_elect=False)) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        await cluster.applied(leader.metrics().value.last_log_index or 0)
        target = cluster.raft(others(leader)[0])
        cluster.hub.pre_hook = drop_entries
        await leader.transfer_leader(target.id)
        own_first = target.metrics().value.last_log_id
        assert index_of(target.metrics().value.last_applied) < index_of(own_first)
        read_log_id, applied = await target.get_read_log_id()
        assert read_log_id == own_first
        assert index_of(applied) < index_of(own_first)
        with pytest.raises(WaitTimeout):
            await target.ensure_linearizable(timeout=0.3)
        cluster.hub.pre_hook = None
        assert await target.ensure_linearizable() == own_first
        assert (await target.read(Get("a"))).value == b"1"


@both_modes
async def test_a_restarted_node_serves_no_read_by_the_commits_it_finds_on_its_disk(single: bool) -> None:
    async with memory_cluster(3, config=mode(single)) as cluster:
        leader = await cluster.leader()
        await leader.client_write(Put("a", b"1"))
        for node_id in ALL:
            await cluster.stop(node_id)
        alone = await cluster.start(leader.id)
        await asyncio.sleep(3)
        for policy in (ReadPolicy.READ_INDEX, ReadPolicy.LEASE):
            with pytest.raises(QuorumNotEnough):
                await alone.read(Get("a"), policy, timeout=1)
        await cluster.start(others(leader)[0])
        assert (await alone.read(Get("a"))).value == b"1"


@both_modes
async def test_a_returning_leader_catches_up_with_what_was_written_without_it(single: bool) -> None:
    async with memory_cluster(3, config=mode(single)) as cluster:
        leader = await cluster.leader()
        await cluster.kill(leader.id)
        new_leader = await cluster.leader()
        last = 0
        for number in range(10):
            last = (await new_leader.client_write(Put(f"k{number}", b"v"))).log_id.index
        await cluster.start(leader.id)
        await cluster.applied(last)
        assert (await cluster.leader()).id == new_leader.id


@both_modes
async def test_five_voters_elect_a_leader_while_the_old_one_is_cut_off_which_then_follows(single: bool) -> None:
    async with memory_cluster(5, config=mode(single)) as cluster:
        leader = await cluster.leader()
        cluster.hub.isolate(leader.id)
        rest = [node_id for node_id in cluster.rafts if node_id != leader.id]
        new_leader = await cluster.leader(*rest)
        blank = new_leader.metrics().value.last_log_index or 0
        await cluster.applied(blank, *rest)
        cluster.hub.heal()
        await leader.wait(5).current_leader(new_leader.id)
        await cluster.applied(blank)


@both_modes
async def test_a_follower_nobody_hears_disturbs_nobody_and_campaigns_only_if_it_hears_no_leader(
    single: bool,
) -> None:
    async with memory_cluster(3, config=mode(single)) as cluster:
        leader = await cluster.leader()
        mute = others(leader)[0]
        term = term_of(leader)
        for node_id in ALL:
            cluster.hub.cut(mute, node_id)  # answers too: nobody can keep a connection to it
        await asyncio.sleep(10)
        assert {term_of(cluster.raft(node_id)) for node_id in ALL} == {term}
        assert leader.metrics().value.state is ServerState.LEADER
        cluster.hub.heal()
        cluster.hub.pre_hook = lambda src, _dst, _kind, _message: DROP if src == mute else None
        await asyncio.sleep(10)  # now its answers pass, and so heartbeats reach it
        assert cluster.raft(mute).metrics().value.state is ServerState.FOLLOWER
        assert {term_of(cluster.raft(node_id)) for node_id in ALL} == {term}
        assert (await cluster.leader()).id == leader.id


@both_modes
async def test_elections_go_on_although_the_chosen_successor_is_dead(single: bool) -> None:
    async with memory_cluster(3, config=mode(single)) as cluster:
        leader = await cluster.leader()
        dead, third = others(leader)
        await cluster.kill(dead)
        assert (await outcome(leader.transfer_leader(dead, timeout=2))).code == "TRANSFER_FAILED"
        await cluster.kill(leader.id)
        await cluster.start(dead)
        new_leader = await cluster.leader()
        assert new_leader.id in (dead, third)
        await new_leader.client_write(Put("a", b"1"))


@both_modes
async def test_a_hand_over_is_known_to_all_and_ends_lease_reads_of_the_old_leader(single: bool) -> None:
    async with memory_cluster(3, ["n4"], config=mode(single)) as cluster:
        leader = await cluster.leader()
        target = others(leader)[0]
        cluster.hub.isolate(target)
        handing_over = asyncio.ensure_future(outcome(leader.transfer_leader(target, timeout=2)))
        await asyncio.sleep(0.1)
        before = cluster.hub.counts["heartbeat"]
        await leader.ensure_linearizable(ReadPolicy.LEASE, timeout=0.1)
        assert cluster.hub.counts["heartbeat"] > before, "the lease answers no read any more: a quorum does"
        await handing_over
        cluster.hub.heal()
        leader = await cluster.leader()
        target = others(leader)[1]
        await leader.transfer_leader(target)
        await cluster.leader()
        assert {raft.current_leader() for raft in cluster.rafts.values()} == {target}


# --- a write under way when another leader speaks ---------------------------------------------------------------------


async def write_nobody_acknowledges(cluster: MemoryCluster) -> tuple[Raft, Raft, Any]:
    """Of two voters one leads, and its write reaches its own log alone."""
    leader = await cluster.leader()
    other = cluster.raft("n2" if leader.id == "n1" else "n1")
    await cluster.applied(leader.metrics().value.last_log_index or 0)
    cluster.hub.isolate(other.id)
    pending = leader.client_write_ff(Put("a", b"1"), timeout=30)
    await asyncio.sleep(0.05)
    return leader, other, pending


@both_modes
async def test_a_write_kept_and_committed_by_the_next_leader_succeeds(single: bool) -> None:
    async with memory_cluster(2, config=mode(single, enable_elect=False)) as cluster:
        leader, other, pending = await write_nobody_acknowledges(cluster)
        at = leader.metrics().value.last_log_id
        vote = Vote(LeaderId(10, other.id), True)
        peer = PeerIdentity(other.id, other.store_id)
        await leader.append_entries(AppendEntriesRequest(vote, at, [], at, 500), peer)
        assert (await pending).log_id == at
        assert leader.machine.query(Get("a")).value == b"1"


@both_modes
async def test_a_write_replaced_by_the_next_leader_is_answered_when_that_is_committed(single: bool) -> None:
    async with memory_cluster(2, config=mode(single, enable_elect=False)) as cluster:
        leader, other, pending = await write_nobody_acknowledges(cluster)
        at = leader.metrics().value.last_log_id
        assert at is not None
        prev = cluster.log(leader.id)[at.index - 1].log_id
        leader_id = LeaderId(10, other.id)
        vote, peer = Vote(leader_id, True), PeerIdentity(other.id, other.store_id)
        instead = Entry(LogId(leader_id, at.index), 0, BLANK, b"")
        await leader.append_entries(AppendEntriesRequest(vote, prev, [instead], prev, 500), peer)
        assert not pending.done(), "a truncated entry may still come back: only a commit decides"
        await leader.append_entries(AppendEntriesRequest(vote, instead.log_id, [], instead.log_id, 500), peer)
        with pytest.raises(NotApplied):
            await pending


# --- membership changes that need an election -------------------------------------------------------------------------


@both_modes
async def test_a_cluster_reduced_to_another_voter_goes_on_there(single: bool) -> None:
    async with memory_cluster(3, config=mode(single, enable_elect=False)) as cluster:
        leader = await cluster.leader()
        heir = others(leader)[0]
        await leader.change_membership([heir])
        raft = cluster.raft(heir)
        raft.runtime_config().elect(True)
        await raft.wait(5).state(ServerState.LEADER)
        await raft.client_write(Put("a", b"1"))
        assert raft.metrics().value.membership.membership.voter_ids == (heir,)


@both_modes
async def test_when_the_leader_removes_itself_the_new_set_leads_on_and_keeps_its_learner(single: bool) -> None:
    async with memory_cluster(2, ["n3", "n4", "n5"], config=mode(single)) as cluster:
        leader = await cluster.leader()
        term = term_of(leader)
        kept = "n2" if leader.id == "n1" else "n1"
        await leader.change_membership([kept, "n4", "n5"])
        new_set = [kept, "n4", "n5"]
        new_leader = await cluster.leader(*new_set)
        assert term_of(new_leader) > term
        members = new_leader.metrics().value.membership.membership
        assert (members.voter_ids, members.learner_ids) == (tuple(new_set), ("n3",))
        index = (await new_leader.client_write(Put("a", b"1"))).log_id.index
        await cluster.applied(index, *new_set, "n3")
        await leader.wait(5).state(ServerState.LEARNER)


@both_modes
async def test_a_removed_voter_gets_none_of_what_is_written_later(single: bool) -> None:
    async with memory_cluster(5, config=mode(single)) as cluster:
        leader = await cluster.leader()
        removed = next(node_id for node_id in ("n5", "n4") if node_id != leader.id)
        await leader.client_write_many([Put(f"k{number}", b"v") for number in range(100)])
        await leader.change_membership(RemoveVoters((removed,)))
        await cluster.raft(removed).wait(5).state(ServerState.LEARNER)
        await asyncio.sleep(3)  # its stream is over
        await leader.client_write_many([Put(f"late{number}", b"v") for number in range(100)])
        total = leader.metrics().value.last_log_index or 0
        assert index_of(cluster.log(removed)[-1].log_id) < total - 50
